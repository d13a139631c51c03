"""The reference text that CPython carries, as a corpus."""

import hashlib
import io
from collections.abc import Iterator
from itertools import chain

from lightning_lm.data.corpora.corpus import Corpus, content_hash
from lightning_lm.data.readers import batched
from lightning_lm.errors import refuse


def python_docs_corpus() -> Corpus:
    """The English reference text in ``pydoc_data.topics``: a row is a line, a document a topic, sorted by name.

    A topic is in one split: in the order of their names' hashes, those that begin in the first 5 % of the text are for
    the test, those of the next 5 % for validation. The text depends on Python's version. Raises Refused without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        wrong = "this Python comes without pydoc_data.topics"
        raise refuse("data", "python_docs", wrong, "use data=text data.train=FILE") from error
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    before, total = 0, sum(map(len, topics.values()))
    for topic in sorted(topics, key=lambda topic: hashlib.sha256(topic.encode()).digest()):
        share = before / total
        parts["test" if share < 0.05 else "validation" if share < 0.1 else "train"].append(topic)
        before += len(topics[topic])
    texts = {split: [topics[topic] for topic in sorted(chosen)] for split, chosen in parts.items()}

    def rows(split: str) -> Iterator[list[str]]:
        return batched(chain.from_iterable(map(io.StringIO, texts[split])))

    def begins(split: str) -> Iterator[bool]:
        return (number == 0 for topic in texts[split] for number, _ in enumerate(io.StringIO(topic)))

    keys = {split: content_hash(text) for split, text in texts.items()}
    return Corpus(keys, rows, "pydoc_data.topics", begins=begins)
