"""Folders that are built once, whoever asks first."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from lightning_lm.errors import Refused, refuse
from lightning_lm.faults import problem_of
from lightning_lm.files import checksums, folder_damage, remove, replacing

log = logging.getLogger(__name__)
DEFAULT_CACHE = "~/.cache/lightning-lm"
CHECKSUMS = "checksums.json"


def build_once(folder: Path, build: Callable[[Path], None]) -> bool:
    """Make ``folder`` by ``build(scratch)`` and a rename, unless it is there whole; returns whether that was needed.

    Its files are read for their checksums, about a second per gigabyte. Of several processes one builds and the others
    wait. A process that dies leaves only a scratch folder, which the next builder removes, and its lock is released by
    the system. Raises Refused where the disk can't be written.
    """
    if _is_whole(folder):
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if _is_whole(folder):
                return False
            for scratch in folder.parent.glob(f".{folder.name}.*.tmp"):
                remove(scratch)
            with replacing(folder) as scratch:
                scratch.mkdir()
                build(scratch)
                (scratch / CHECKSUMS).write_text(json.dumps(checksums(scratch)))
    except OSError as error:
        if problem := problem_of(error, {"data.cache_dir": folder.parent}):
            raise Refused(problem) from error
        wrong = f"can't be written ({error.strerror or error})"
        raise refuse("data.cache_dir", folder.parent, wrong, "make room, or choose another folder") from error
    return True


def _is_whole(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        expected = json.loads((folder / CHECKSUMS).read_text())
        wrong = folder_damage(folder, expected) if expected else f"{CHECKSUMS} is empty"
    except FileNotFoundError:
        wrong = f"{CHECKSUMS} is missing"  # as of entries from before there were any: what they hold can't be checked
    except (ValueError, AttributeError, OSError) as error:
        wrong = f"{CHECKSUMS}: {error}"
    if wrong:
        log.warning("%s: %s; it is made again", folder, wrong)
    return not wrong
