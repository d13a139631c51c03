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
    assert build_once(tmp_path / "a" / "b", lambda folder: (folder / "file").touch())
    assert not build_once(tmp_path / "a" / "b", fail)


def test_cache_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match=f"data.cache_dir={tmp_path}/file/a: a file is where a folder"):
        build_once(tmp_path / "file" / "a" / "b", os.listdir)


@pytest.mark.parametrize("damage", ["a", "abd", "abc\0", None], ids=["cut off", "changed", "longer", "missing"])
def test_a_damaged_entry_is_made_again(damage, tmp_path, caplog):
    def build(folder: Path) -> None:
        (folder / "file").write_text("abc")

    entry = tmp_path / "entry"
    assert build_once(entry, build) and not build_once(entry, build)
    (entry / "file").unlink()
    if damage is not None:
        (entry / "file").write_text(damage)
    assert build_once(entry, build)
    assert f"{entry}: file is {'missing' if damage is None else 'damaged'}" in caplog.text
    assert (entry / "file").read_text() == "abc" and not build_once(entry, build)


def test_an_entry_whose_content_can_not_be_checked_is_made_again(tmp_path, caplog):
    """As one from before there were checksums: text and tokenizer are there, and give the same tokens."""
    (tmp_path / "entry").mkdir()
    assert build_once(tmp_path / "entry", lambda folder: (folder / "file").touch())
    assert f"{tmp_path / 'entry'}: checksums.json is missing; it is made again" in caplog.text
