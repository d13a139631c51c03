"""What each token cost, against transformers' own loss over single windows."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import write_text
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_lm import cli
from lightning_lm.evaluation.nll import read_token_losses
from lightning_lm.evaluation.scoring import evaluate


@pytest.fixture(scope="module")
def short_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("nll") / "short.txt", lines=120, seed=3)


@pytest.mark.parametrize("stride", [None, 10])
@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_the_tokens_add_up_to_the_reported_loss(
    objective: str, stride: int | None, tiny_gpt2: Path, tiny_bert: Path, short_text: Path, tmp_path: Path, capsys
):
    model, file = {"clm": tiny_gpt2, "mlm": tiny_bert}[objective], tmp_path / "nll.parquet"
    typed = ["evaluate", str(model), "--data", str(short_text), "--block-size", "32", "--nll", str(file)]
    assert cli.main(typed + (["--stride", str(stride)] if stride else [])) == 0
    figures = evaluate(model, str(short_text), block_size=32, stride=stride)
    table = pd.read_parquet(file)
    assert table.nll.count() == figures.tokens
    assert table.nll.sum() / table.nll.count() == pytest.approx(figures.loss, rel=1e-9)
    assert table.position.tolist() == list(range(len(table)))
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = [i for line in short_text.open() for i in tokenizer(line)["input_ids"]]
    assert table.token.tolist() == tokenizer.convert_ids_to_tokens(ids)
    losses = read_token_losses(file)
    sums, counts = losses.by_document()
    assert (sums.sum(), counts.sum()) == (pytest.approx(table.nll.sum(), rel=1e-12), figures.tokens)
    assert np.allclose(sums, table.groupby("document").nll.sum(), rtol=1e-12)
    assert sum(losses.facts["bytes"]) == short_text.stat().st_size
    assert "short.txt" in capsys.readouterr().out


def test_each_token_has_its_own_loss(tiny_gpt2: Path, short_text: Path):
    losses = evaluate(tiny_gpt2, str(short_text), block_size=32, stride=10, batch_size=3).token_losses
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_gpt2), AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    ids = torch.tensor([i for line in short_text.open() for i in tokenizer(line)["input_ids"]])
    assert np.isnan(losses.nll[0]) and not np.isnan(losses.nll[1:]).any()
    for position in (1, 31, 32, 41, 42, 57, len(ids) - 1):
        window = max(0, -(-(position + 1 - 32) // 10))  # the first that holds it
        part = ids[window * 10 : window * 10 + 32]
        labels = torch.full_like(part, -100)
        labels[position - window * 10] = ids[position]
        with torch.no_grad():
            expected = model.double()(input_ids=part[None], labels=labels[None]).loss.item()
        assert losses.nll[position] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("documents", [False, True])
def test_where_the_loss_comes_from(documents: bool, tiny_gpt2: Path, short_text: Path, tmp_path: Path):
    size, stride = 32, 10
    lines = short_text.read_text().splitlines(keepends=True)
    for number in range(12):
        (tmp_path / f"{number:02}.txt").write_text("".join(lines[9 * number : 9 * number + 9]))
    losses = evaluate(
        tiny_gpt2, str(tmp_path / "*.txt"), block_size=size, stride=stride, documents=documents, separator="none"
    ).token_losses
    table = losses.table.to_pandas()
    lengths, context = table.groupby("document").size() if documents else [len(table)], []
    for length in lengths:
        prefixed = int(documents)
        begin = 0  # of the window, in the document with its prefix
        for place in range(prefixed, length + prefixed):
            while place >= begin + size:
                begin += stride
            context.append(place - begin)
    table["context"] = context
    table["occurrences"] = table.groupby("token", observed=True).nll.transform("size")
    profile, scored = losses.facts["profile"], table[table.nll.notna()]
    for name in ("context", "occurrences"):
        assert sum(count for _, count, _ in profile[name]) == len(scored)
        for sizes, count, mean in profile[name]:
            first, _, last = sizes.partition(" to ")
            rows = scored[scored[name].between(int(first), int(last or first))]
            assert (count, mean) == (len(rows), pytest.approx(rows.nll.mean())), (name, sizes)
    places = table.groupby("document").cumcount() // 64
    means = table.groupby(["document", places]).nll.agg(["mean", "count"]).query("count >= 8")["mean"].sort_values()
    assert [mean for mean, _ in profile["easiest"]] == pytest.approx(means.head(5).tolist())
    assert [mean for mean, _ in profile["hardest"]] == pytest.approx(means.tail(5).tolist()[::-1])
    hardest = table[table.document.eq(means.index[-1][0]) & places.eq(means.index[-1][1])].token.tolist()
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    assert profile["hardest"][0][1] == tokenizer.decode(tokenizer.convert_tokens_to_ids(hardest))


def test_another_file_is_refused(tmp_path: Path, capsys):
    from lightning_lm.errors import Refused

    pd.DataFrame({"nll": [1.0]}).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("no parquet")
    for name in ("a.parquet", "b.parquet", "c.parquet"):
        with pytest.raises(Refused, match="no table of token losses"):
            read_token_losses(tmp_path / name)
