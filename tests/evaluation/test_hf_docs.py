"""Parity with the loop of transformers' page on perplexity, on a model whose logits are as large as real ones."""

import math
from pathlib import Path

import pytest
import torch
from tiny import write_text
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from lightning_lm import cli
from lightning_lm.evaluation.scoring import evaluate

LENGTH = 519


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_gpt2: Path) -> Path:
    """A model of 519 positions, and a text of some more tokens with blank lines."""
    folder = tmp_path_factory.mktemp("docs")
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config)
    model.transformer.ln_f.weight.data *= 80
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    lines = write_text(folder / "draft.txt", lines=28, seed=5).read_text().splitlines()
    rows = [row for n, line in enumerate(lines) for row in ([f" {line} ", " "] if n % 7 == 0 else [f" {line} "])]
    (folder / "text.txt").write_text("".join(f"{row}\n" for row in rows))
    return folder


def page(model, ids: torch.Tensor, length: int, stride: int) -> tuple[float, int, float, int]:
    """Its loop, with the model's own loss: perplexity and tokens as it counts; then those of each token once."""
    total, counted, exact, scored, before = 0.0, 0, 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + length, len(ids))
        inputs = ids[None, begin:end]
        targets = inputs.clone()
        targets[:, : -(end - before)] = -100
        with torch.no_grad():
            loss = model(inputs, labels=targets).loss.item()
        valid = int((targets != -100).sum())
        total += loss * (valid - 1)
        counted += valid - 1
        shifted = int((targets[:, 1:] != -100).sum())
        exact += loss * shifted
        scored += shifted
        before = end
        if end == len(ids):
            break
    return math.exp(total / counted), counted, math.exp(exact / scored), scored


@pytest.mark.parametrize(("length", "stride"), [(LENGTH, 1), (LENGTH, 64), (LENGTH, 512), (LENGTH, 519), (101, 33)])
def test_its_loop_says_the_same(folder: Path, length: int, stride: int):
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = GPT2LMHeadModel.from_pretrained(folder / "model").double().eval()
    rows = (folder / "text.txt").read_text().splitlines(keepends=True)
    ids = torch.tensor(tokenizer("\n\n".join(row if row.strip() else "" for row in rows))["input_ids"])
    assert LENGTH + 100 < len(ids) < 2 * LENGTH
    assert model(ids[None, :50]).logits.abs().max() > 30
    options = {"block_size": length, "stride": stride, "convention": "hf-docs"}
    found = evaluate(folder / "model", str(folder / "text.txt"), **options)
    expected = page(model, ids, length, stride)
    assert (found.counted, found.tokens) == (expected[1], expected[3])
    assert (found.perplexity, found.exact_perplexity) == (
        pytest.approx(expected[0], rel=1e-5),
        pytest.approx(expected[2], rel=1e-5),
    )


def test_the_command(folder: Path, capsys):
    typed = ["evaluate", str(folder / "model"), "--data", str(folder / "text.txt"), "--as", "hf-docs"]
    assert cli.main(typed) == 0
    out = capsys.readouterr().out
    assert "windows of 519 tokens that advance by 512" in out and "perplexity, exact" in out
    assert cli.main([*typed, "--stride", "520"]) == 2
    assert "--stride=520: tokens would be left out; give 1 to 519" in capsys.readouterr().err
    assert cli.main([*typed, "--separator", "eos"]) == 2
    assert "--as hf-docs has no use for it" in capsys.readouterr().err
