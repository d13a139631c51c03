"""What a stand-in Hub keeps: repositories with their commits, and the names that Git gives to what is in them."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Repo:
    """One repository: the files of each commit, the last of which is ``main``."""

    commits: dict[str, dict[str, bytes]]
    private: bool = False
    messages: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.head]


class Refusal(Exception):
    """An error as the Hub answers it: status, code in the header, words in the body."""

    def __init__(self, status: int, code: str, message: str = "", commit: str | None = None):
        super().__init__(message or code)
        self.status, self.code, self.commit = status, code, commit


def read_folder(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def object_id(content: bytes, kind: str = "blob") -> str:
    """Git's name for a blob."""
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


def commit_id(files: dict[str, bytes]) -> str:
    return object_id(json.dumps({name: object_id(content) for name, content in files.items()}).encode(), "commit")
