"""The model card: what it says of a run, its figures, its model and the sweep that it was chosen from."""

import json
import math
import re
import shutil

import pytest
from run_folders import write_grid
from test_hub import REVISION, describe, sources  # noqa: F401 (a fixture)

from lightning_lm.cli import main
from lightning_lm.hub.model_card import render_model_card

MEASURED = {"text": "ab" * 16, "tokenizer": "cd" * 16, "separator": "auto", "documents": "one stream", "masking": None}
MEASURED |= {"block_size": 128, "stride": 128, "limit": 40, "first_token": None, "dtype": "float32"}


def test_the_card_says_what_the_run_says(sources):  # noqa: F811
    from huggingface_hub import ModelCard

    card = ModelCard(render_model_card(sources[2], "me/small"))
    assert card.data.pipeline_tag == "text-generation" and card.data.library_name == "transformers"
    assert card.data.base_model == "gpt2" and card.data.datasets == ["Salesforce/wikitext"]
    found = {(r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found[("test", "perplexity")] == 30.25 and found[("validation", "loss")] == 3.5
    assert '"me/small"' in card.text and "GPT2LMHeadModel" in card.text and "uncommitted changes" in card.text
    assert "| train | 120 | 4,567 | 89 |" in card.text and "| test | 40 |  |  |" in card.text


def test_the_card_tells_where_the_model_comes_from_and_how_it_was_chosen(tmp_path):
    from huggingface_hub import ModelCard

    (tmp_path / "base").mkdir()
    describe(tmp_path / "base")
    (tmp_path / "run").mkdir()
    run = describe(tmp_path / "run", name_or_path=str(tmp_path / "base" / "export"))
    chosen = {"best_step": 1200, "steps": 3000, "parameters": 124439808, "val/loss": math.inf}
    chosen |= {"test/loss": 3.25, "test/protocol": MEASURED}
    (run / "summary.json").write_text(json.dumps(chosen))
    command = ["train.py", "data=text", f"data.train={tmp_path}/a text.txt"]
    (run / "environment.json").write_text(json.dumps({"commit": "0123456789abcdef", "command": command}))
    card = ModelCard(render_model_card(run, "me/small", {"language": ["en"], "license": ["cc-by-sa-3.0", "gfdl"]}))
    assert card.data.base_model == "gpt2" and card.data.language == ["en"]
    (result,) = card.data.eval_results
    assert (result.metric_name, result.metric_value) == ("loss (nats per token), first 40 windows", 3.25)
    for sentence in (
        "step 1,200 of 3,000: of all validations",
        "| parameters | 124,439,808 |",
        "| ∞ | 3.2500 |",
        "windows of 32 tokens",
        "names the licence cc-by-sa-3.0, gfdl.",
        "python train.py data=text 'data.train=a text.txt'",
        "note = {Trained with lightning-lm, commit 0123456789},",
    ):
        assert sentence in card.text, sentence


def test_a_sweep_is_pushed_by_its_best_run(tmp_path, capsys):
    sweep = write_grid(tmp_path / "grid")
    assert main(["push", str(sweep), "--repo", "me/best", "--dry-run"]) == 2
    shown = capsys.readouterr()
    assert f"the best of the sweep is {sweep / '2'}" in shown.out and "there is no export/ in it" in shown.err
    shutil.rmtree(sweep / "0")
    for job in sweep.glob("[0-9]"):
        (job / "summary.json").unlink(missing_ok=True)
    assert main(["push", str(sweep), "--repo", "me/best", "--dry-run"]) == 2
    assert "none of its runs is the best" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("objective", "export", "task", "told", "untold"),
    [
        ("hybrid", {"masked_shift": 1, "is_decoder": True}, "text-generation", "is_decoder=False)`", "masks - 1"),
        ("mlm", {"masked_shift": 1}, None, "logits[0, masks - 1]", "import pipeline"),
        ("mlm", {}, "fill-mask", 'pipeline("fill-mask"', "masks - 1"),
    ],
)
def test_the_card_knows_which_output_is_for_a_mask(objective, export, task, told, untold, tmp_path):
    from huggingface_hub import ModelCard

    run = describe(tmp_path, objective)
    (run / "export").mkdir()
    (run / "export" / "config.json").write_text(json.dumps(export))
    card = ModelCard(render_model_card(run, "me/model"))
    assert card.data.pipeline_tag == task
    assert told in card.text and untold not in card.text
    assert ("Once upon a time" in card.text) == (objective == "hybrid")
    for block in re.findall(r"```python\n(.*?)```", card.text, re.DOTALL):
        compile(block, "card", "exec")


def test_the_card_of_a_masked_model_from_scratch(tmp_path):
    from huggingface_hub import ModelCard

    run = describe(tmp_path, "mlm", name_or_path="/home/me/bert", pretrained=False)
    measured = MEASURED | {"masking": {"probability": 0.15, "whole_word": True, "draws": 1}}
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"test/protocol": measured, "test/separators": 7}))
    card = ModelCard(render_model_card(run))
    assert card.data.pipeline_tag == "fill-mask" and card.data.base_model is None
    named = [line for line in card.content.splitlines() if "perplexity" in line]
    assert named and all("masked-token" in line for line in named)
    assert "trained from scratch" in card.text and "/home/me" not in card.text
    assert "Test: only the first 40 windows were scored, not the whole text." in card.text
    assert "Test: of the tokens scored, 7 are separators." in card.text
    assert "Test: protocol " in card.text and "15% of the words masked" in card.text
