"""A dataset of the Hugging Face Hub, or of a local folder, as a corpus."""

import logging
import re
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from lightning_lm.data.corpora.corpus import Corpus, content_hash
from lightning_lm.data.readers import batched, checked
from lightning_lm.errors import Problem, Refused, nearest, refuse
from lightning_lm.faults import innermost, problem_of

log = logging.getLogger(__name__)
CUT = "cut it off: data.splits.train='train[:95%]' data.splits.validation='train[95%:]'"


def hub_corpus(path: str, name: str | None, revision: str | None, text_column: str, splits: dict[str, str]) -> Corpus:
    """A dataset of the Hub, or of a local folder; ``splits`` names for each of ours one of the dataset's, or a slice.

    With a commit's 40 hex digits as ``revision``, a start whose tokens are cached asks neither Hub nor disk.
    Raises Refused for a dataset, configuration, split or column that isn't there, or a Hub that can't be reached.
    """
    loaded = cache(lambda: _load(path, name, revision, text_column, splits))

    def rows(split: str) -> Iterator[list[str]]:
        if split not in loaded():
            raise refuse(f"data.splits.{split}", splits[split], "the dataset has no such split", "set it to null")
        batches = loaded()[split].select_columns(text_column).with_format("arrow").iter(1000)
        texts = chain.from_iterable(batch[text_column].to_pylist() for batch in batches)
        return batched(checked(texts, f"the split {splits[split]} of {path}", text_column))

    pinned = revision and re.fullmatch("[0-9a-f]{40}", revision) and not Path(path).exists()
    keys = {}
    for ours, theirs in splits.items():
        if not pinned and ours not in loaded():
            continue
        version = revision if pinned else loaded()[ours]._fingerprint
        keys[ours] = content_hash("hub", path, name, text_column, theirs, version)
    return Corpus(keys, rows, " ".join(filter(None, (path, name))) + (f"@{revision}" if revision else ""))


def _load(path: str, name: str | None, revision: str | None, column: str, splits: dict[str, str]) -> dict[str, Any]:
    dataset = _load_dataset(path, name, revision)
    problems, chosen = [], {}
    for ours, theirs in splits.items():
        if ours == theirs == "test" and theirs not in dataset and len(splits) > 1:
            log.warning("data.splits.test: %s has no test split, and so the run has no test", path)
            continue
        if theirs not in dataset and re.split(r"[\[+]", theirs)[0] not in dataset:
            wrong = f"the dataset has the splits {', '.join(dataset)}"
            others = [name for name in dataset if ours == "train" or name != splits.get("train")]
            remedy = nearest(theirs, others) if others else CUT
            problems.append(Problem(f"data.splits.{ours}", theirs, wrong, remedy))
            continue
        chosen[ours] = dataset[theirs] if theirs in dataset else _load_dataset(path, name, revision, theirs)
        columns = chosen[ours].column_names
        if column not in columns:
            wrong = f"the split {theirs} of {path} has the columns {', '.join(columns)}"
            problems.append(Problem("data.text_column", column, wrong, nearest(column, columns)))
    if problems:
        raise Refused(*dict.fromkeys(problems))
    return chosen


def _load_dataset(path: str, name: str | None, revision: str | None, split: str | None = None) -> Any:
    """``datasets.load_dataset``, with whatever is wrong with the names as a refusal."""
    from datasets import load_dataset
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import httpx  # whichever of its versions is in use

    try:
        return load_dataset(path, name, revision=revision, split=split)
    except (ConnectionError, httpx.TransportError, LocalEntryNotFoundError) as error:
        wrong = "the Hugging Face Hub can't be reached and the dataset isn't in the local cache"
        remedy = "use local files with data=text data.train=… or try experiment=quickstart"
        raise refuse("data.path", path, wrong, remedy) from error
    except MemoryError:
        raise
    except Exception as error:
        if valid := re.search(r"(?:Available: |configs: )\[(.*?)\]", str(error)):
            names = re.findall(r"'(.*?)'", valid[1])
            wrong = f"the dataset has the configurations {', '.join(names)}"
            remedy = nearest(name, names) if name else "name one of them"
            raise refuse("data.name", name or "null", wrong, remedy) from error
        if (problem := problem_of(error, {})) is not None and not isinstance(error, FileNotFoundError):
            raise Refused(problem) from error
        setting, value, remedy = "data.path", path, _remedy(path, error)
        if str(error).startswith("Revision"):
            setting, value = "data.revision", str(revision)
        elif split and isinstance(error, ValueError):
            setting, value, remedy = "data.splits", split, "correct it"
        raise refuse(setting, value, innermost(error), remedy) from error


def _remedy(path: str, error: Exception) -> str:
    """What to do about a dataset that ``datasets`` can't load."""
    place = Path(path)
    if "no longer supported" in str(error):
        return "choose one that is data, without code"
    if not place.exists():
        return f"see {path}'s page"
    if place.is_file():
        return f"use data=text data.train={path}"
    if (place / "dataset_info.json").is_file() or (place / "dataset_dict.json").is_file():  # of save_to_disk
        return f"use data=text data.train='{place / '**' / '*.arrow'}'"
    if not any(place.rglob("*.*")):
        return "name a folder with files such as train.jsonl and validation.jsonl"
    return "check its files: each must be whole, and have the same columns"
