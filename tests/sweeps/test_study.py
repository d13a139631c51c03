"""Searches by Optuna: the space is what Hydra's words say, and a study that was cut off draws what it would have."""

import json
import math
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lightning_lm.errors import Refused
from lightning_lm.sweeps import study


def parse(*texts: str):
    return {o.get_key_element(): o for o in OverridesParser.create().parse_overrides([*texts])}


def test_the_search_space_is_written_as_hydra_writes_it():
    found = study.space(
        parse(
            "a=interval(0,0.1)",
            "b=tag(log,interval(1e-5,1e-2))",
            "c=int(interval(1,8))",
            "d=range(2,10,2)",
            "e=range(0.5,2,0.5)",
            "f=x,'y z'",
            "g=choice(true,[1,2])",
        )
    )
    assert found == {
        "a": FloatDistribution(0, 0.1),
        "b": FloatDistribution(1e-5, 1e-2, log=True),
        "c": IntDistribution(1, 8),
        "d": IntDistribution(2, 8, step=2),
        "e": FloatDistribution(0.5, 1.5, step=0.5),
        "f": CategoricalDistribution(["x", "'y z'"]),
        "g": CategoricalDistribution(["True", "[1,2]"]),
    }
    with pytest.raises(Refused, match=r"a=interval\(2,1\)"):
        study.space(parse("a=interval(2,1)"))


def test_a_seeded_study_that_was_cut_off_draws_what_it_would_have_drawn(tmp_path):
    def draw(folder: Path, *stops: int) -> list[dict[str, str]]:
        folder.mkdir(exist_ok=True)
        for stop in stops:
            ours = study.Study(folder, study.space(parse("optimizer.lr=tag(log,interval(1e-5,1))")), "tpe", 3, None)
            while batch := ours.next_batch(stop, 1):
                rate = float(ours.jobs()[batch[0]]["optimizer.lr"])
                (folder / str(batch[0]) / "summary.json").write_text(
                    json.dumps({"status": "finished", "val/loss": abs(math.log(rate) + 5)})
                )
                ours.tell(batch, [None])
        return ours.jobs()

    whole = draw(tmp_path / "whole", 14)
    assert draw(tmp_path / "parts", 2, 5, 14) == whole
    assert study.Study(tmp_path / "whole", {}, "tpe", 3, None).ended() == [*range(14)]
    assert len({job["optimizer.lr"] for job in whole}) == 14
