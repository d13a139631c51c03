"""A folder has one process at work in it; environment.json knows the code's new files, too."""

import errno
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, in_fresh_process

from lightning_lm.errors import Refused
from lightning_lm.runs.folder import alone_in


def test_new_files_of_code_are_kept_with_the_changes(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(clone)], check=True)
    shutil.copytree(ROOT / "src", clone / "src", dirs_exist_ok=True)
    (clone / "src" / "lightning_lm" / "optim" / "mine.py").write_text("RATE = 0.123\n")
    (clone / "README.md").write_text("changed\n")
    (clone / "notes.txt").write_text("no code\n")
    code = "from lightning_lm.runs.folder import _uncommitted; print(_uncommitted())"
    printed = subprocess.check_output([sys.executable, "-c", code], env={"PYTHONPATH": str(clone / "src")}, text=True)
    assert "+RATE = 0.123" in printed and "+changed" in printed and "no code" not in printed
    assert "+++ b/src/lightning_lm/optim/mine.py" in printed


def test_one_process_at_a_time_works_in_a_folder(tmp_path):
    folder = tmp_path / "outputs" / "run"
    with alone_in(folder, "run_dir"):
        for holder in (folder, tmp_path / "link" / "run"):  # by another path, too
            if not holder.exists():
                (tmp_path / "link").symlink_to(tmp_path / "outputs")
            with pytest.raises(Refused, match="^run_dir=.*another process is at work in it"):
                in_fresh_process(hold, holder)
        (folder / "file").touch()
    with alone_in(folder, "run_dir"):
        assert (folder / "file").exists()


def hold(folder, new=False):
    with alone_in(folder, "run_dir", new=new) as place:
        (place / "file").touch()
        return place


def test_a_folder_that_nobody_named_is_a_new_one(tmp_path):
    first = tmp_path / "run"
    with alone_in(first, "run_dir", new=True) as place:
        assert place == first
        assert in_fresh_process(hold, first, True) == tmp_path / "run_2"
        (place / "file").touch()
    assert [hold(first, new=True).name for _ in range(2)] == ["run_3", "run_4"]


def test_where_nothing_came_into_a_folder_it_goes(tmp_path):
    """From one that holds other files, too, but for a lock that was there before."""
    for name in ("there", "others/file", "run/file"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "run" / ".lock").touch()
    for name in ("there", "a/b", "others", "run"):
        with alone_in(tmp_path / name, "run_dir"):
            assert (tmp_path / name / ".lock").exists()
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["others", "others/file", "run", "run/.lock", "run/file", "there"]


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with alone_in(tmp_path / "run", "run_dir") as place:
        assert place.exists()
    assert "run_dir: its file system has no locks" in caplog.text
