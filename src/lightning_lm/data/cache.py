"""Folders that are built once, whoever asks first."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from lightning_lm.errors import refuse

DEFAULT_CACHE = "~/.cache/lightning-lm"


def build_once(folder: Path, build: Callable[[Path], None]) -> bool:
    """Make ``folder`` by ``build(temporary)`` and a rename, unless it is there; returns whether it had to be built.

    Of several processes one builds and the others wait. A process that dies leaves only a temporary folder, which the
    next builder removes, and its lock is released by the system. Raises Refused where the disk can't be written.
    """
    if folder.exists():
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if folder.exists():
                return False
            temporary = folder.with_name(f"{folder.name}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                temporary.mkdir()
                build(temporary)
                os.replace(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        wrong = f"can't be written ({error.strerror or error})"
        raise refuse("data.cache_dir", folder.parent, wrong, "make room, or choose another folder") from error
    return True
