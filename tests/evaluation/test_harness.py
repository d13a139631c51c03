"""Tasks by lm-evaluation-harness's own code: a local task, whose answers are known, and what is refused."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_lm import cli
from lightning_lm.report.page import report

TASK = """
task: two_words
dataset_path: json
dataset_kwargs:
  data_files: {test: FILE}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
CHOICES = [" old", " garden"]


def likelier(model: Path, question: str) -> int:
    """Which of the choices a plain loop finds likelier after the question."""
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model).eval()
    sums = []
    for choice in CHOICES:
        ids, before = tokenizer(question + choice)["input_ids"], len(tokenizer(question)["input_ids"])
        with torch.no_grad():
            log_probs = network(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        sums.append(sum(log_probs[i - 1, ids[i]].item() for i in range(before, len(ids))))
    return sums.index(max(sums))


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval isn't installed")
def test_a_local_task(exported_runs, tiny_gpt2, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    questions = [f"the {word} is" for word in ("river", "house", "king", "garden", "letter", "winter", "stone")]
    right = [likelier(tiny_gpt2, question) for question in questions]
    answers = [*right[:5], *(1 - best for best in right[5:])]  # of seven, five as the model has it
    rows = [{"question": q, "choices": CHOICES, "answer": a} for q, a in zip(questions, answers, strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(TASK.replace("FILE", str(tmp_path / "rows.jsonl")))
    run = exported_runs["clm"]
    assert cli.main(["evaluate", str(run), "--lm-eval", str(tmp_path / "task.yaml"), "--json", "-"]) == 0
    kept = json.loads((run / "lm_eval.json").read_text())["two_words"]
    assert kept["examples"] == 7 and kept["figures"]["acc"][0] == pytest.approx(5 / 7)
    report([run], tmp_path / "report.html")
    assert "two_words acc" in (tmp_path / "report.html").read_text()
    assert cli.main(["evaluate", str(run), "--lm-eval", "no_such_task"]) == 2
    assert "the harness has no such task" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("objective", "typed", "says"),
    [
        ("mlm", ["--lm-eval", "arc_easy"], "masked language model" if find_spec("lm_eval") else "isn't installed"),
        ("clm", ["--lm-eval", "arc_easy", "--stride", "3"], "--lm-eval has no use for it"),
    ],
)
def test_refused(objective, typed, says, exported_runs, capsys):
    assert cli.main(["evaluate", str(exported_runs[objective]), *typed]) == 2
    assert says in capsys.readouterr().err
