"""``train.py`` as a command: what it prints, its exit code, and that a refusal leaves nothing behind."""

import subprocess
import sys

import pytest
from conftest import ROOT


def command(*arguments: str, cwd=ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / "train.py"), *arguments], cwd=cwd, capture_output=True, text=True)


def test_command_refuses_in_one_line_and_leaves_nothing(tmp_path):
    done = command("optimizer.lrr=3", cwd=tmp_path)
    told = "error: optimizer.lrr=3: no such setting; did you mean optimizer.lr?\n"
    assert (done.returncode, done.stderr, done.stdout) == (2, told, "")
    assert list(tmp_path.glob("outputs/*")) == []


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("optimizer.lr=-1", "optimizer.lr=-1.0: out of range; give a positive number, such as 2e-5"),
        ("seed=x", "seed=x: not a whole number; give a whole number"),
        ("foo", "foo=: no value; write foo=VALUE"),
        ("data=hub", "data.path=null: no dataset; give an id of the Hub, such as Salesforce/wikitext"),
    ],
)
def test_wherever_it_is_noticed_a_refusal_is_one_line(typed, told, train_py, tmp_path):
    assert train_py(typed) == (2, "", f"error: {told}\n")
    assert list(tmp_path.glob("outputs/*")) == []


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("--optimizer.lr=0.02", "--optimizer.lr=0.02: no such flag; settings have no dashes: optimizer.lr=0.02"),
        ("~logger", "~logger=: its defaults would stay; choose an option: logger=OPTION"),
        ("~logger=wandb", "~logger=wandb: its defaults would stay; choose an option: logger=OPTION"),
        ("hydra.job.chdir=true", "hydra.job.chdir=true: relative paths would lead elsewhere; leave it out"),
        ("++hydra.job.chdir=true", "hydra.job.chdir=true: relative paths would lead elsewhere; leave it out"),
        ("optimizer=[adamw,muon]", "optimizer=[adamw,muon]: it takes one option; name one; -m lists several"),
        ("hydra.run.dir=mine", "hydra.run.dir=mine: no run would be gone on with there; write run_dir=mine"),
        ("hydra.sweep.dir=mine", "hydra.sweep.dir=mine: this is a single run; add -m for a sweep, or leave it out"),
        ("hydra.sweeper.trials=3", "hydra.sweeper.trials=3: this is a single run; add -m"),
        ("-m seed=0,1", "seed=0,1: behind a flag and other settings; write flags, such as -m, first"),
        ("--experiment", "--experiment=: no such flag; settings have no dashes: experiment=VALUE"),
        ("--experimental-rerun=a.pickle", "--experimental-rerun=a.pickle: it would run what a file holds; a run again"),
        ("--config-dir=nowhere", "--config-dir=nowhere: no such folder; check the path"),
        ("--cfg=bogus", "--cfg=: invalid choice: 'bogus' (choose from 'job', 'hydra', 'all'); see python train.py"),
        ("--package=x", "--package=x: only --cfg shows a part; leave it out, or add --cfg job"),
        (
            "--config-path=run",
            "--config-path=run: a run is composed from conf/; a run again: lightning-lm rerun RUN; a recipe",
        ),
    ],
)
def test_what_would_do_nothing_or_something_else_is_refused(typed, told, train_py, tmp_path):
    code, out, err = train_py("experiment=quickstart", *typed.split())
    assert (code, out, len(err.splitlines())) == (2, "", 1) and err.startswith(f"error: {told}")
    assert [path for path in tmp_path.rglob("*") if path.name != "outputs"] == []


@pytest.mark.parametrize("typed", ["run_dir=mine", "++run_dir=mine", "experiment=named"])
def test_a_folder_is_named_however_it_is_typed(typed, train_py, tmp_path):
    """Where nobody names it, a run would get a folder beside this one."""
    for folder in ("mine", "recipes/experiment"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "mine" / "other.txt").touch()
    (tmp_path / "recipes" / "experiment" / "named.yaml").write_text("# @package _global_\nrun_dir: mine\n")
    code, _, err = train_py("--config-dir=recipes", typed, "logger=none")
    assert (code, err) == (2, "error: run_dir=mine: the folder isn't empty and holds no run; choose a new one\n")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["other.txt"]


def test_a_working_folder_that_has_vanished(tmp_path):
    done = subprocess.run(
        ["sh", "-c", 'cd "$1"; rmdir "$1"; "$2" "$3"', "sh", tmp_path, sys.executable, ROOT / "train.py"],
        capture_output=True,
        text=True,
    )
    line = "error: folder=.: the working folder has vanished; change to one that is there\n"
    assert (done.returncode, done.stderr) == (2, line)


def test_broken_recipe_is_named(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\noptimizer:\n  lrr: 3\n")
    done = command(f"--config-dir={tmp_path}", "experiment=mine")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: conf/experiment/mine.yaml: Key 'lrr' not in")


def test_every_job_of_a_multirun_tells_its_own(tmp_path):
    done = command("-m", "optimizer.lr=-1,-2", "logger=none", cwd=tmp_path)
    assert done.returncode == 2
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert [line.split(":")[1].strip() for line in told] == ["optimizer.lr=-1.0", "optimizer.lr=-2.0"]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["experiment=quickstart", "--cfg", "job"]])
def test_showing_is_no_run(arguments, tmp_path):
    done = command(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("python train.py" in done.stdout) == (arguments == ["--help"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "code", "stderr"),
    [
        ("KeyError('a bug')", 1, "KeyError: 'a bug'"),
        ("OSError('disk full')", 1, "OSError: disk full"),
        ("refuse('data.train', 'x', 'no such file', 'check the path')", 2, "error: data.train=x: no such file; check"),
    ],
)
def test_what_a_run_raises(raised, code, stderr, tmp_path):
    script = f"""import runpy, sys, types
from lightning_lm.errors import refuse
def train(config, **_):
    raise {raised}
sys.modules["lightning_lm.run"] = types.SimpleNamespace(train=train, logging_to=None)
sys.argv = ["train.py"]
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert stderr in done.stderr
    assert ("Traceback" in done.stderr) == (code == 1)


IMPORTING = """class Finder:
    def find_spec(name, *rest):
        if name == "hydra":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder)"""
COMPOSING = """from omegaconf import basecontainer
change = basecontainer.BaseContainer._set_item_impl
calls = []
def signalled(*arguments):
    calls.append(arguments)
    if len(calls) == 100:
        signal.raise_signal(signal.SIGINT)
    change(*arguments)
basecontainer.BaseContainer._set_item_impl = signalled"""
CHECKING = """from multiprocessing import forkserver
connect = forkserver.connect_to_new_process
def signalled(*arguments):
    ends = connect(*arguments)
    signal.raise_signal(signal.SIGINT)
    return ends
forkserver.connect_to_new_process = signalled"""
BETWEEN = """from lightning_lm.sweeps import sweeper
claim = sweeper.claim_folder
def signalled(*arguments):
    claim(*arguments)
    signal.raise_signal(signal.SIGINT)
sweeper.claim_folder = signalled"""


@pytest.mark.parametrize(
    ("signalled", "stderr"),
    [
        (IMPORTING, "interrupted\n"),
        (COMPOSING, "interrupted\n"),
        (CHECKING, "checking the jobs …\ninterrupted: the same command with hydra.sweep.dir=mine goes on\n"),
        (BETWEEN, "checking the jobs …\ninterrupted: the same command with hydra.sweep.dir=mine goes on\n"),
    ],
    ids=["while it imports", "while it composes", "while it checks a sweep's jobs", "between a sweep's jobs"],
)
def test_an_interrupt_is_no_traceback(signalled, stderr, tmp_path):
    arguments = ["train.py", "-m", "experiment=quickstart", "optimizer.lr=1e-3,2e-3", "hydra.sweep.dir=mine"]
    script = f"""import runpy, signal, sys
{signalled}
sys.argv = {arguments}
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, stderr)
