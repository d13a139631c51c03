"""Faults of the machine and of other libraries end in one line that names the setting, the cause and the remedy."""

import errno
import itertools
import json
import logging
import shutil
import subprocess

import pytest
from conftest import compose
from resumable import assert_same, settings

from lightning_lm.errors import Fault, Refused
from lightning_lm.faults import innermost, problem_of, told_in_one_line
from lightning_lm.hub.push import push
from lightning_lm.launch import start
from lightning_lm.logs import logging_to
from lightning_lm.runs.folder import FIGURES, read_json_file


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "x", "{run}/a"), "run_dir={run}/a: the disk is full; without what was being written, "),
        (OSError(errno.EDQUOT, "x", "{cache}/a"), "data.cache_dir={cache}/a: your quota of this disk is used up"),
        (OSError(errno.EROFS, "x", "{run}"), "run_dir={run}: its file system is read-only; choose a folder"),
        (PermissionError(errno.EACCES, "x", "/text"), "file=/text: there is no permission for it; correct"),
        (
            NotADirectoryError(errno.ENOTDIR, "x", "{run}/export"),
            "run_dir={run}/export: a file is where a folder should",
        ),
        (IsADirectoryError(errno.EISDIR, "x", "{run}"), "run_dir={run}: a folder is where a file should be; move it"),
        (OSError(errno.EFBIG, "x"), "file={run}, {cache}: a file would be larger than the limit; raise the limit"),
        (OSError(errno.ENAMETOOLONG, "x", "/long"), "file=/long: its name is too long; choose a shorter one"),
        (FileNotFoundError(errno.ENOENT, "x", "/text"), "file=/text: it has vanished; see what removes it"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "run_dir="),
        (OSError("1024 requested and 0 written"), "run_dir="),
        (MemoryError(), "memory=short: MemoryError; choose a smaller model"),
        (RuntimeError("CUDA out of memory. Tried"), "memory=short: CUDA out of memory. Tried; choose a smaller"),
    ],
)
def test_what_is_a_fault(error, line, tmp_path):
    places = {"run_dir": tmp_path / "run", "data.cache_dir": tmp_path / "run" / "cache"}
    names = {"run": places["run_dir"], "cache": places["data.cache_dir"]}
    if error.args and isinstance(getattr(error, "filename", None), str):
        error.filename = error.filename.format(**names)
    wrapped = ValueError("what a library makes of it")
    wrapped.__cause__ = error
    assert str(problem_of(wrapped, places)).startswith(line.format(**names))


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (errno.ENOSPC, "file=what was being written: the disk is full; make room"),
        (errno.ENOENT, "file=the working folder: it has vanished"),
    ],
)
def test_a_file_that_nobody_has_named(number, line):
    assert str(problem_of(OSError(number, "x"), {})).startswith(line)


@pytest.mark.parametrize("error", [ValueError("x"), ConnectionResetError(errno.ECONNRESET, "x"), KeyError("a")])
def test_a_bug_is_none(error):
    with pytest.raises(type(error)), told_in_one_line({}):
        raise error


def test_the_innermost_cause_is_told():
    try:
        try:
            try:
                raise KeyError("bogus")
            except KeyError as error:
                raise ValueError("") from error
        except ValueError as error:
            raise RuntimeError("An error occurred") from error
    except RuntimeError as outer:
        assert innermost(outer) == "there is no 'bogus'"


@pytest.fixture
def small_disk(tmp_path):
    """A file system whose size can be changed."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def size(text: str, *options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={text}", *options]), "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount")

    size("700k")
    size.folder = folder
    yield size
    subprocess.run(["umount", "-R", "-l", str(folder)], capture_output=True)


def test_a_full_disk_costs_nothing_but_time(small_disk, dropping, text, tmp_path, reference, capsys):
    run = small_disk.folder / "run"
    job = compose(*settings(dropping, text, run, f"data.cache_dir={tmp_path / 'cache'}"))
    with pytest.raises(Fault, match=f"^run_dir={run}.*: the disk is full; .*; the same command then goes on$"):
        start(job, named=True)
    assert "Traceback" not in capsys.readouterr().err
    assert read_json_file(run / "summary.json")["status"] == "failed"
    assert not list(run.rglob(".*.tmp")), "what was being written is removed"
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk.folder)], check=True)
    start(job, named=True)
    assert_same(run, reference())


def test_a_log_that_can_not_be_written_hides_no_fault(small_disk):
    subprocess.run(["mount", "-o", "remount,size=8k", str(small_disk.folder)], check=True)
    with pytest.raises(Fault), logging_to(small_disk.folder / "train.log") as keep:
        keep()
        (small_disk.folder / "filling").write_bytes(b"0" * 4096)
        logging.getLogger("lightning_lm").warning("a line longer than what is left\n" * 1000)
        raise Fault()


def test_a_cache_that_gets_full(small_disk, dropping, text, tmp_path):
    subprocess.run(["mount", "-o", "remount,size=16k", str(small_disk.folder)], check=True)
    job = compose(*settings(dropping, text, tmp_path / "run", f"data.cache_dir={small_disk.folder / 'cache'}"))
    with pytest.raises(Refused, match="^data.cache_dir=.*the disk is full|^data.cache_dir=.*can't be written"):
        start(job, named=True)
    assert not (tmp_path / "run").exists()
    assert not [
        path for path in small_disk.folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".json")
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *itertools.product(["summary.json", "environment.json", "ledger.json"], ["", "{", "[1]"]),
        ("summary.json", '{"status": "finished"}'),
        ("summary.json", '{"status": 5}'),
        ("summary.json", json.dumps({"status": "finished", **dict.fromkeys(FIGURES, "many")})),
        ("environment.json", '{"options": 3}'),
    ],
)
def test_a_damaged_file_of_a_run_is_named(name, content, dropping, text, tmp_path, reference):
    run = tmp_path / "run"
    run.mkdir()
    for file in ("config.yaml", "environment.json", "ledger.json"):
        (run / file).write_bytes((reference() / file).read_bytes())
    (run / name).write_text(content)
    with pytest.raises(Refused) as refused:
        start(compose(*settings(dropping, text, run, f"data.cache_dir={reference().parent / 'cache'}")), named=True)
    (problem,) = refused.value.problems
    assert str(problem).startswith(f"file={run / name}: it is damaged: ")


@pytest.mark.parametrize("content", ["", "- a", "trainer: 3", "trainer:\n  max_steps: x"])
def test_a_damaged_config_is_one_line(content, dropping, text, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(content)
    with pytest.raises(Refused) as refused:
        start(compose(*settings(dropping, text, tmp_path / "run")), named=True)
    assert len(refused.value.problems) == 1 and "config.yaml" in str(refused.value)


@pytest.mark.parametrize(("name", "content"), [("config.yaml", "- a"), ("summary.json", "null"), ("ledger.json", "{")])
def test_with_a_damaged_file_nothing_is_pushed(name, content, reference, tmp_path):
    shutil.copytree(reference(), tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(Refused, match=f"{name}.*(damaged|is no run's)"):
        push(tmp_path / "run", "me/model", dry_run=True)
