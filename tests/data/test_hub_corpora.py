"""Datasets of the Hub, or of a local folder, as a corpus; what can't be had is refused, with the setting."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_corpora import refusal, rows

from lightning_lm.data.corpora.hub import hub_corpus
from lightning_lm.data.schema import HubDataConfig

SPLITS = {"train": "train", "validation": "validation"}


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    folder = tmp_path / "data"
    folder.mkdir()
    for split in SPLITS:
        texts = [f"{split} {i}" for i in range(20)]
        pq.write_table(pa.table({"text": texts, "label": list(range(20))}), folder / f"{split}.parquet")
    return folder


def test_local_dataset(dataset):
    loaded = hub_corpus(str(dataset), None, None, "text", {**SPLITS, "test": "train[90%:]"})
    assert rows(loaded, "validation") == [f"validation {i}" for i in range(20)]
    assert rows(loaded, "test") == ["train 18", "train 19"]
    assert len(set(loaded.keys.values())) == 3
    assert hub_corpus(str(dataset), None, None, "text", SPLITS).keys["train"] == loaded.keys["train"]


def test_wrong_names_of_a_dataset(dataset):
    def told(column="text", name=None, **splits):
        call = hub_corpus(str(dataset), name, None, column, {"train": "train", **splits})
        return rows(call)

    remedy = "the dataset has the splits train, validation; did you mean validation?"
    assert refusal(told, validation="validaton")[0] == f"data.splits.validation=validaton: {remedy}"
    both = refusal(told, column="txet", test="tset")
    assert both[0].startswith("data.text_column=txet: the split train of ") and "text, label" in both[0]
    assert both[1].startswith("data.splits.test=tset: the dataset has the splits train, validation")
    assert refusal(told, column="label")[0].startswith("data.text_column=label: row 1 of the split train of")
    assert "the dataset has the configurations default" in refusal(told, name="nope")[0]
    assert refusal(told, validation="train[x:]")[0].startswith("data.splits=train[x:]: ")


def test_pinned_revision_asks_nobody(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: 1 / 0)
    pinned = hub_corpus("some/data", None, "0" * 40, "text", SPLITS)
    other = hub_corpus("some/data", None, "1" * 40, "text", SPLITS)
    assert len(set(pinned.keys.values()) | set(other.keys.values())) == 4
    assert pinned.source == "some/data@" + "0" * 40


def test_hub_out_of_reach(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", offline)
    told = refusal(hub_corpus, "some/data", None, None, "text", SPLITS)
    assert len(told) == 1 and told[0].startswith("data.path=some/data: the Hugging Face Hub can't be reached")
    assert "data=text" in told[0] and "experiment=quickstart" in told[0]


def test_unknown_dataset(tmp_path):
    told = refusal(hub_corpus, str(tmp_path / "nope" / "x" / "y"), None, None, "text", SPLITS)
    assert len(told) == 1 and told[0].startswith(f"data.path={tmp_path}/nope/x/y: ")


def test_a_dataset_without_a_test_split(dataset, caplog):
    loaded = hub_corpus(str(dataset), None, None, "text", {**SPLITS, "test": "test"})
    assert set(loaded.keys) == set(SPLITS)
    assert "has no test split, and so the run has no test" in caplog.text
    settings = HubDataConfig(path=str(dataset), splits={**SPLITS, "test": None})
    assert list(settings.problems()) == [] and set(settings.build().keys) == set(SPLITS)


def test_shards_that_disagree_name_the_cause(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    (tmp_path / "data").mkdir()
    for name, record in (
        ("train-0.jsonl", {"text": "a", "x": None}),
        ("train-1.jsonl", {"text": "b", "x": {"t": "c"}}),
    ):
        (tmp_path / "data" / name).write_text(json.dumps(record) + "\n")
    (told,) = refusal(hub_corpus, str(tmp_path / "data"), None, None, "text", {"train": "train"})
    assert told.endswith("check its files: each must have the same columns") and "An error occurred" not in told
