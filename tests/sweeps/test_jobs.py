"""What jobs of a sweep share and must not: its folder, and the GPUs of a machine."""

import threading
import time

import pytest

from lightning_lm.errors import Refused
from lightning_lm.sweeps import jobs as sweep
from lightning_lm.sweeps.gpus import claimed


def test_a_folder_takes_the_same_sweep_only(tmp_path):
    jobs = [{"seed": "0"}, {"seed": "1"}]
    sweep.claim_folder(tmp_path / "s", {"optimizer.lr": "1", "logger": "none"}, jobs, 2)
    sweep.claim_folder(tmp_path / "s", {"optimizer.lr": "1"}, [*jobs, {"seed": "2"}], 3)  # it may grow
    for fixed, search in [
        ({"optimizer.lr": "2"}, jobs),
        ({"optimizer.lr": "1"}, jobs[:1]),
        ({"optimizer.lr": "1"}, jobs[::-1]),
    ]:
        with pytest.raises(Refused, match="holds another sweep"):
            sweep.claim_folder(tmp_path / "s", fixed, search, len(search))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(Refused, match="holds no sweep"):
        sweep.claim_folder(tmp_path / "other", {}, jobs, 2)


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
