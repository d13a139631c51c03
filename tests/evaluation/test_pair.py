"""A causal and a masked model side by side: the difference is paired by sentence, and losses are left alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_minimal_pairs import pairs  # noqa: F401 (a fixture)
from tiny import write_text

from lightning_lm import cli
from lightning_lm.evaluation.minimal_pairs import score_pairs
from lightning_lm.evaluation.pair import compare_pair


@pytest.fixture(scope="module")
def scored_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("pair") / "text.txt", lines=30)


def test_both_sides_on_what_both_can_do(pairs, scored_text, tiny_gpt2, tiny_bert):  # noqa: F811
    found = compare_pair(str(tiny_gpt2), str(tiny_bert), str(pairs), None, str(scored_text), "test")
    a, b = (score_pairs(str(place), str(pairs)) for place in (tiny_gpt2, tiny_bert))
    assert list(found.differences) == [("log-likelihood", form) for form in b.right]
    for forms, by_field in found.differences.items():
        gain = 100 * (b.right[forms[1]] - a.right[forms[0]])
        parts = [gain[a.paradigms == name] for name in ("one", "two", "three")]
        assert by_field["all"].value == pytest.approx(np.mean([part.mean() for part in parts]))
        draw = np.random.default_rng(1)  # a plain bootstrap within paradigms, both models on the same pairs
        again = [np.mean([draw.choice(part, len(part)).mean() for part in parts]) for _ in range(3000)]
        width = by_field["all"].high - by_field["all"].low
        assert width == pytest.approx(2 * 2.09 * np.std(again), rel=0.15), "of a few pairs, the correction shows"
        assert by_field["semantics"].value == pytest.approx(parts[2].mean())
    told = str(found)
    assert "bits per byte: " in told and "pseudo bits per byte: " in told and "nats per token" not in told


def test_a_model_is_no_better_than_itself(pairs, scored_text, tiny_gpt2, capsys):  # noqa: F811
    arguments = [
        "compare",
        str(tiny_gpt2),
        str(tiny_gpt2),
        "--blimp",
        str(pairs),
        "--pairs",
        "4",
        "--data",
        str(scored_text),
    ]
    assert cli.main(arguments) == 0
    told = capsys.readouterr().out
    assert "B − A = +0.0000" in told and "No difference between the models can be told from chance." in told
    assert cli.main([*arguments, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["differences"][0]["all"]["p_value"] == 1.0 and found["question"] == "pair"


def test_losses_of_both_kinds_lead_to_minimal_pairs(scored_text, tiny_gpt2, tiny_bert, capsys):
    assert cli.main(["compare", str(tiny_gpt2), str(tiny_bert), "--data", str(scored_text)]) == 2
    assert "give --blimp, which compares what both can do" in capsys.readouterr().err
    assert cli.main(["compare", "a.parquet", str(tiny_bert), "--blimp", "somewhere"]) == 2
    assert "losses tell nothing about minimal pairs; name a run or a model" in capsys.readouterr().err


def test_the_better_model_is_right_more_often():
    from lightning_lm.certainty.pairs import Estimate
    from lightning_lm.evaluation.comparison import verdict

    assert verdict(Estimate(2.0, 1.0, 3.0, 0.01), "model", higher_is_better=True) == ["The better model is B."]
    assert verdict(Estimate(2.0, 1.0, 3.0, 0.01), "model") == ["The better model is A."]
