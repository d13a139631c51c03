"""What is built once for all processes: a failure leaves nothing behind."""

import os
from pathlib import Path

import pytest

from lightning_lm.data.cache import build_once
from lightning_lm.errors import Refused


def test_a_failed_build_leaves_nothing(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_once(tmp_path / "a" / "b", fail)
    assert [path.name for path in (tmp_path / "a").iterdir() if path.is_dir()] == []
    assert build_once(tmp_path / "a" / "b", lambda folder: None)
    assert not build_once(tmp_path / "a" / "b", fail)


def test_cache_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match=f"data.cache_dir={tmp_path}/file/a: can't be written"):
        build_once(tmp_path / "file" / "a" / "b", os.listdir)
