"""What jobs of a sweep share and must not: its folder, and the GPUs of a machine."""

import subprocess
import sys
import threading
import time

import pytest
from conftest import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from lightning_lm.config.composition import as_settings
from lightning_lm.config.schema import with_before
from lightning_lm.errors import Refused
from lightning_lm.logs import JOB, columns
from lightning_lm.runs.folder import read_json_file, write_json
from lightning_lm.runs.settings import take_before
from lightning_lm.sweeps import jobs as sweep
from lightning_lm.sweeps.gpus import claimed


def test_a_value_that_is_typed_twice_is_no_second_job():
    swept = {}
    for text in ("seed=0,1", "optimizer.lr=1e-3,0.01,0.001"):
        (swept[text.partition("=")[0]],) = OverridesParser.create().parse_overrides([text])
    with pytest.raises(Refused, match=r"^optimizer.lr=1e-3,0.01,0.001: a value is there twice; leave one of them out$"):
        sweep.combinations(swept)
    del swept["optimizer.lr"]
    assert sweep.combinations(swept) == [{"seed": "0"}, {"seed": "1"}]


def test_a_folder_takes_the_same_sweep_only(tmp_path):
    jobs = [{"seed": "0"}, {"seed": "1"}]
    sweep.claim_folder(tmp_path / "s", {"optimizer.lr": "1", "logger": "none"}, jobs, 2)
    grown = [*jobs, {"seed": "2"}]
    assert sweep.claim_folder(tmp_path / "s", {"optimizer.lr": "1"}, grown, 3) == grown
    assert sweep.claim_folder(tmp_path / "s", {"optimizer.lr": "1"}, jobs, 2) == grown, "the command of before goes on"
    assert read_json_file(tmp_path / "s" / "sweep.json")["search"] == grown
    for fixed, search in [
        ({"optimizer.lr": "2"}, jobs),
        ({"optimizer.lr": "1"}, jobs[::-1]),
    ]:
        with pytest.raises(Refused, match="holds another sweep"):
            sweep.claim_folder(tmp_path / "s", fixed, search, len(search))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(Refused, match="holds no sweep"):
        sweep.claim_folder(tmp_path / "other", {}, jobs, 2)


NEW = "trainer.exact_gradient_norm"  # has come since, and its default isn't what the code did before


@pytest.mark.parametrize("begun", [True, False])
def test_jobs_of_a_sweep_from_before_go_by_what_it_had(begun, tmp_path):
    sweep.claim_folder(tmp_path, {}, [{"seed": "0"}, {"seed": "1"}], 2)
    assert NEW in read_json_file(tmp_path / "sweep.json")["with_before"]
    write_json(tmp_path / "sweep.json", {"fixed": {}, "search": [{"seed": "0"}, {"seed": "1"}]})
    if begun:
        settings = as_settings(compose("data=python_docs"))
        del settings["trainer"]["exact_gradient_norm"]
        (tmp_path / "0").mkdir()
        (tmp_path / "0" / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
    sweep.claim_folder(tmp_path, {}, [{"seed": "0"}, {"seed": "1"}], 2)
    known = read_json_file(tmp_path / "sweep.json")["with_before"]
    assert (NEW in known) is not begun, "a sweep without jobs has no past"
    sweep.claim_folder(tmp_path, {}, [{"seed": "0"}, {"seed": "1"}], 2)
    assert read_json_file(tmp_path / "sweep.json")["with_before"] == known, (
        "what it is doesn't change by being claimed again"
    )


def test_what_a_sweep_did_not_know_does_what_was_done_before():
    job = compose("data=python_docs", "optimizer=muon")
    take_before(job, {NEW})
    assert (job.trainer.exact_gradient_norm, job.optimizer.layout_aware) == (False, True)
    take_before(job, with_before())
    assert job.optimizer.layout_aware is False


def test_jobs_side_by_side_log_lines_of_80_columns(monkeypatch):
    assert columns() == 80
    monkeypatch.setenv(JOB, "[1/4] ")
    assert columns() == 74


def test_a_sweeps_process_tells_of_its_imports_once(tmp_path):
    code = "import sys; from pathlib import Path; from lightning_lm.logs import logging_to, tell_of_imports\n"
    code += "for _ in range(2):\n  with logging_to(Path(sys.argv[1])): tell_of_imports()"
    ended = subprocess.run([sys.executable, "-c", code, tmp_path / "log"], capture_output=True, text=True, check=True)
    assert ended.stderr == "loading torch and transformers …\n"


def test_jobs_side_by_side_have_gpus_of_their_own(tmp_path, monkeypatch):
    """Six jobs that want two of five devices each: never more than two at once, and no device in two of them."""
    using: list[str] = []
    most = []

    def job() -> None:
        with claimed(["0", "1", "2", "3", "4"], 2, tmp_path) as mine:
            assert len(set(mine)) == 2 and not set(mine) & set(using)
            using.extend(mine)
            most.append(len(using))
            time.sleep(0.1)
            for device in mine:
                using.remove(device)

    failed = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    threads = [threading.Thread(target=job) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(most) == 6 and max(most) <= 4
