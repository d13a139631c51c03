"""Files and folders that reach the disk whole or not at all, and whose damage shows."""

import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHUNK = 2**22  # bytes read at once


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside ``path``; the file or folder that the block makes there takes its place, once it is on disk.

    A power cut, too, leaves the old one or the new one. Where the block fails, the old one stays.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    remove(scratch)
    try:
        yield scratch
        for file in files_in(scratch):
            _sync(file)
        if path.is_dir():
            shutil.rmtree(path)
        scratch.replace(path)
        _sync(path.parent)
    finally:
        remove(scratch)


def remove_scratch(folder: Path) -> None:
    """Remove what processes that died have left below a folder in which no other process is at work."""
    for scratch in folder.rglob(".*.tmp"):
        remove(scratch)


def linked(source: Path, target: Path) -> None:
    """Give a file a second name, in place of what had it; a copy where the file system has no links."""
    with replacing(target) as scratch:
        try:
            os.link(source, scratch)
        except OSError:
            shutil.copyfile(source, scratch)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def files_in(path: Path) -> list[Path]:
    """The file itself, or all files below the folder."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def checksums(folder: Path) -> dict[str, int]:
    """File → CRC-32 of its content, of all files below a folder."""
    return {str(file.relative_to(folder)): _crc32(file) for file in files_in(folder)}


def folder_damage(folder: Path, expected: dict[str, int]) -> str | None:
    """What is wrong with a folder whose files had these checksums; None where nothing is."""
    for name, checksum in expected.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _crc32(folder / name) != checksum:
            return f"{name} is damaged: its checksum is another"
    return None


def export_damage(run: Path) -> str | None:
    """What is wrong with the files of a run's export; None where nothing is, or where it has no checksums yet."""
    try:
        check = json.loads((run / "export_check.json").read_text(encoding="utf-8"))
        return folder_damage(run / "export", check.get("crc32", {}))
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError) as error:
        return f"export_check.json is damaged: {error}"


def zip_damage(path: Path) -> str | None:
    """What is wrong with a file that ``torch.save`` has written, a ZIP archive whose records carry their CRC-32."""
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except Exception as error:  # damaged headers can raise any error
        return f"it is cut off or damaged: {error}"
    return record and f"its record {record} is damaged: the checksum is another"


def _crc32(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
