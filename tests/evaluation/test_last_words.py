"""Last words of passages against lm-evaluation-harness's rule as a plain float64 loop, and its own code where it is."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import WORDS
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from lightning_lm import cli
from lightning_lm.evaluation.scoring import evaluate

PASSAGES = 30
KINDS = {"clm": AutoModelForCausalLM, "mlm": AutoModelForMaskedLM, "shifted": AutoModelForMaskedLM}


@pytest.fixture(scope="module")
def passages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some end in a word that the tokenizers cut into several tokens; one has two spaces before its last word."""
    draw, last = np.random.default_rng(0), ("gardenhouse", "king", "don't") * PASSAGES
    texts = [" ".join([*draw.choice(WORDS, 3 + n % 20), last[n]]) for n in range(PASSAGES)]
    texts[4] = "the river  light"
    file = tmp_path_factory.mktemp("last words") / "passages.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def texts_of(passages: Path) -> list[str]:
    return [json.loads(line)["text"] for line in passages.read_text().splitlines()]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, passages: Path, tiny_gpt2: Path, tiny_bert: Path) -> dict[str, Path]:
    """A causal and a masked model that know the last words of most passages, and of some know a wrong one."""
    folder, places = tmp_path_factory.mktemp("fitted"), {"clm": tiny_gpt2, "mlm": tiny_bert, "shifted": tiny_bert}
    for name, kind in KINDS.items():
        model, tokenizer = kind.from_pretrained(places[name]), AutoTokenizer.from_pretrained(places[name])
        optimizer, batch = torch.optim.AdamW(model.parameters(), lr=3e-3), []
        for number, text in enumerate(texts_of(passages)):
            context = text.rpartition(" ")[0].rstrip()
            ids = torch.tensor(tokenizer(text if number % 4 else f"{context} river")["input_ids"])
            of_context = len(tokenizer(context)["input_ids"]) - (name != "clm")
            labels = torch.where(torch.arange(len(ids)) < of_context, -100, ids)
            masked = torch.where(labels == -100, ids, tokenizer.mask_token_id or 0)
            batch.append((ids if name == "clm" else masked, labels.roll(-1) if name == "shifted" else labels))
        inputs, labels = (pad_sequence(part, True, -100) for part in zip(*batch, strict=True))
        for _ in range(100):
            model(input_ids=inputs.clamp(0), attention_mask=(inputs >= 0).long(), labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.config.masked_shift = int(name == "shifted")
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in KINDS}


def log_probabilities(model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def loop_causal(model, tokenizer, text: str) -> tuple[float, bool]:
    context = " ".join(text.split(" ")[:-1]).rstrip()
    ids, begin = tokenizer(text)["input_ids"], len(tokenizer(context)["input_ids"])
    at, scored = log_probabilities(model, ids), range(begin, len(ids))
    return -sum(at[i - 1, ids[i]].item() for i in scored), all(at[i - 1].argmax() == ids[i] for i in scored)


def loop_masked(model, tokenizer, text: str, shift: int = 0) -> tuple[float, bool]:
    ids = tokenizer(text)["input_ids"][1:-1]
    begin, nll, right = len(tokenizer(text.rpartition(" ")[0])["input_ids"]) - 2, 0.0, True
    for i in range(begin, len(ids)):
        masks = [tokenizer.mask_token_id] * (len(ids) - i)
        at = log_probabilities(model, [tokenizer.cls_token_id, *ids[:i], *masks, tokenizer.sep_token_id])[i + 1 - shift]
        nll, right = nll - at[ids[i]].item(), right and bool(at.argmax() == ids[i])
    return nll, right


@pytest.mark.parametrize(
    ("objective", "loop"), [("clm", loop_causal), ("mlm", loop_masked), ("shifted", partial(loop_masked, shift=1))]
)
def test_by_a_plain_loop(objective: str, loop, passages: Path, fitted, capsys):
    model, tokenizer = (auto.from_pretrained(fitted[objective]) for auto in (KINDS[objective], AutoTokenizer))
    expected = [loop(model.double(), tokenizer, text) for text in texts_of(passages)]
    nll, right = map(np.array, zip(*expected, strict=True))
    code = cli.main(["evaluate", str(fitted[objective]), "--task", "lambada", "--data", str(passages), "--json", "-"])
    found = json.loads(capsys.readouterr().out)
    assert (code, found["passages"], found["stride"]) == (0, PASSAGES, None)
    assert found["accuracy"] == pytest.approx(right.mean()) and 0.1 < right.mean() < 0.9
    assert found["perplexity"] == pytest.approx(math.exp(nll.mean()), rel=1e-5)
    low, high = found["intervals"]["perplexity"]
    half = 2.045 * nll.std(ddof=1) / math.sqrt(PASSAGES)  # t of 29 degrees of freedom
    assert (math.log(high) - math.log(low)) / 2 == pytest.approx(half, rel=0.05)
    assert 0 <= found["intervals"]["accuracy"][0] < found["accuracy"] < found["intervals"]["accuracy"][1] <= 1


def test_its_own_code_says_the_same(passages: Path, fitted):
    harness = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    texts = texts_of(passages)
    pairs = [(" ".join(text.split(" ")[:-1]), " " + text.split(" ")[-1]) for text in texts]  # as its yaml has it
    requests = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
    model, tokenizer = (auto.from_pretrained(fitted["clm"]) for auto in (AutoModelForCausalLM, AutoTokenizer))
    theirs = harness.HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=4).loglikelihood(requests)
    likelihoods, greedy = zip(*theirs, strict=True)
    found = evaluate(fitted["clm"], str(passages), task="lambada")
    assert found.accuracy == pytest.approx(np.mean(greedy))
    assert found.perplexity == pytest.approx(math.exp(-np.mean(likelihoods)), rel=1e-5)


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_a_long_passage_is_cut_from_the_left(objective: str, fitted, tmp_path: Path):
    model, tokenizer = (auto.from_pretrained(fitted[objective]) for auto in (KINDS[objective], AutoTokenizer))
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": "the river light stone " * 30 + "king"}) + "\n")
    found = evaluate(fitted[objective], str(tmp_path / "long.jsonl"), task="lambada")
    ids = tokenizer("the river light stone " * 30 + "king")["input_ids"]
    word = tokenizer(" king", add_special_tokens=False)["input_ids"]
    if objective == "clm":  # 64 tokens as input, the last of which predicts the one behind them
        at = log_probabilities(model.double(), ids[-65:-1])
        nll = -sum(at[i, token].item() for i, token in zip(range(-len(word), 0), word, strict=True))
    else:
        at = log_probabilities(model.double(), [*ids[-64:-2], tokenizer.mask_token_id, ids[-1]])
        nll = -at[-2, word[0]].item()
        assert len(word) == 1
    assert found.block_size == 64 and found.intervals == {}, "one passage tells no interval"
    assert found.perplexity == pytest.approx(math.exp(nll), rel=1e-5)


@pytest.mark.parametrize(
    ("passage", "arguments", "told"),
    [
        ("river", [], "a passage without a last word; end each by a space and a word"),
        ("the river ", [], "a passage without a last word"),
        ("the river", ["--stride", "3"], "--stride=3: --task lambada has no use for it"),
        ("the river", ["--pairs", "3"], "--pairs=3: --task lambada has no use for it"),
        ("the gardenhouse", ["--block-size", "2"], "--block-size=2: 'gardenhouse' has more tokens"),
        ("the river", ["--text-column", "body"], "--text-column=body: "),
    ],
)
def test_what_is_refused(passage: str, arguments: list[str], told: str, tiny_bert: Path, tmp_path: Path, capsys):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": passage}) + "\n")
    code = cli.main(["evaluate", str(tiny_bert), "--task", "lambada", "--data", str(tmp_path / "a.jsonl"), *arguments])
    assert code == 2 and told in capsys.readouterr().err
