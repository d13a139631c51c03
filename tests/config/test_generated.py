"""Whatever is typed for any setting: a readable list and exit code 2, no traceback, and nothing is left behind."""

import re

import pytest
from conftest import compose
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lightning_lm.config.composition import as_settings, flat
from lightning_lm.config.schema import AXES

BASES = (["data=text"], ["objective=mlm", "optimizer=muon", "scheduler=wsd", "callbacks=ema"], ["model=gpt2-tiny"])
NAMES = sorted({name for base in BASES for name in flat(as_settings(compose(*base)))} | {*AXES})
EDGES = """
null true -1 0 1 1.5 1e999 nan -inf 9223372036854775808 [] {} [null] [1,[2]] {a:1} {a:{b:1}} '' "" ' " ( ] ~ . / ? ???
${} ${nope} ${oc.env:NOPE} ${name} $ \\ % = a=b 1,2 1,,2 range(3) choice(1) interval(0,1) !!python/none \x00 \u202e ü 😀
../.. /dev/null /proc/self/mem ~nobody/x http://u:p@h/ {mask} a:b @ *
"""
VALUES = st.sampled_from(EDGES.split()) | st.integers().map(str) | st.floats().map(str) | st.text(max_size=6)


@st.composite
def typed(draw):
    """An override: of a setting or an axis, also a misspelt one, with or without a sign before it."""
    name = draw(st.sampled_from(NAMES))
    if draw(st.integers(0, 4)) == 0:
        place = draw(st.integers(0, len(name) - 1))
        name = name[:place] + draw(st.sampled_from(["", "x", ".", " ", name[place] * 2])) + name[place + 1 :]
    sign = draw(st.sampled_from(["", "", "", "", "+", "++", "~"]))
    return f"{sign}{name}" if sign == "~" else f"{sign}{name}={draw(VALUES)}"


def refused(train_py, folder, base, overrides):
    """Together with a setting that can't work, so that none begins to train."""
    code, out, err = train_py(*base, *overrides, "seed=-1")
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert lines and all(line.startswith("error: ") for line in lines), err
    assert not re.search(r"Traceback|HYDRA_FULL_ERROR|object_type", err)
    if not any("seed" in text or text.startswith(("+", "~")) for text in overrides):  # told by themselves
        assert any(line.startswith("error: seed=-1: out of range") for line in lines), err
    assert [path for path in folder.rglob("*") if not path.is_dir()] == []  # Hydra makes folders first


QUIET = {
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    "phases": [Phase.generate],  # a command takes half a second, and to make one that fails smaller would take hundreds
}
COMMANDS = (st.sampled_from(BASES), st.lists(typed(), min_size=1, max_size=3))


@settings(max_examples=8, derandomize=True, **QUIET)
@given(*COMMANDS)
def test_a_few(train_py, tmp_path, base, overrides):
    refused(train_py, tmp_path, base, overrides)


@pytest.mark.slow
@settings(max_examples=150, **QUIET)
@given(*COMMANDS)
def test_many(train_py, tmp_path, base, overrides):
    refused(train_py, tmp_path, base, overrides)
