"""Datasets of the Hub, or of a local folder, as a corpus; what can't be had is refused, with the setting."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
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


def test_the_remedy_for_a_dataset_with_one_split_works(dataset):
    (dataset / "validation.parquet").unlink()
    (told,) = refusal(hub_corpus, str(dataset), None, None, "text", SPLITS)
    remedy = "cut it off: data.splits.train='train[:95%]' data.splits.validation='train[95%:]'"
    assert told == f"data.splits.validation=validation: the dataset has the splits train; {remedy}"
    cut = {"train": "train[:95%]", "validation": "train[95%:]"}
    loaded = hub_corpus(str(dataset), None, None, "text", cut)
    assert [len(rows(loaded, split)) for split in cut] == [19, 1]


def write_saved(folder):
    Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(folder))


def write_code(folder):
    folder.mkdir()
    (folder / "data.py").write_text("raise SystemExit")


def write_cut_off(folder):
    folder.mkdir()
    pq.write_table(pa.table({"text": ["a"] * 100}), folder / "train.parquet")
    whole = (folder / "train.parquet").read_bytes()
    (folder / "train.parquet").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("write", "remedy"),
    [
        (lambda folder: folder.mkdir(), "name a folder with files such as train.jsonl and validation.jsonl"),
        (lambda folder: folder.write_text("a"), "use data=text data.train={}"),
        (write_saved, "use data=text data.train='{}/**/*.arrow'"),
        (write_code, "choose one that is data, without code"),
        (write_cut_off, "check its files: each must be whole, and have the same columns"),
    ],
)
def test_the_remedy_fits_what_is_wrong_with_a_dataset(write, remedy, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    write(tmp_path / "data")
    (told,) = refusal(hub_corpus, str(tmp_path / "data"), None, None, "text", SPLITS)
    assert told.startswith(f"data.path={tmp_path}/data: ") and told.endswith(f"; {remedy.format(tmp_path / 'data')}")


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
    assert (
        told.endswith("check its files: each must be whole, and have the same columns")
        and "An error occurred" not in told
    )
