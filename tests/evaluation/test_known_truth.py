"""A text of a small grammar, of which one model saw a part less: the comparison says which model, and at what."""

import json
import random
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from run_folders import write_exported_run
from tokenizers import BertWordPieceTokenizer
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, BertTokenizer

from lightning_lm.evaluation.pair import Benchmarks, compare_pair

BEINGS = ("dog", "king", "child", "friend", "horse", "sailor", "farmer", "girl")
VERBS = {"agreement": ("see", "hear", "find", "follow"), "reflexive": ("wash", "hide", "praise", "blame")}
KINDS = {"clm": AutoModelForCausalLM, "mlm": AutoModelForMaskedLM}
STEPS = {"clm": 150, "mlm": 500}  # a masked model learns from one token of a sentence at a time


def sentence(draw: random.Random, part: str) -> tuple[str, str]:
    """A right sentence and a wrong one, which differ in one word: the verb, or the pronoun."""
    plural, being, verb = draw.random() < 0.5, draw.choice(BEINGS), draw.choice(VERBS[part])
    subject = f"the {being}s" if plural else f"the {being}"
    if part == "agreement":
        verbs = (verb, f"{verb}s") if plural else (f"{verb}s", verb)
        right, wrong = (f"{subject} {one} it ." for one in verbs)
    else:
        pronouns = ("themselves", "itself") if plural else ("itself", "themselves")
        right, wrong = (f"{subject} can {verb} {one} ." for one in pronouns)
    return right, wrong


def text(draw: random.Random, less: bool) -> list[str]:
    """With ``less``, the pronouns tell nothing: half of them are wrong."""
    sentences = []
    for _ in range(800):
        pair = sentence(draw, part := draw.choice(list(VERBS)))
        sentences.append(draw.choice(pair) if less and part == "reflexive" else pair[0])
    return sentences


@pytest.fixture(scope="module")
def grammar(tmp_path_factory) -> Path:
    """Minimal pairs of both parts, a text, and the tokenizer."""
    folder, draw = tmp_path_factory.mktemp("grammar"), random.Random(0)
    (folder / "pairs").mkdir()
    (folder / "text.txt").write_text("\n".join(text(draw, less=False)))
    trained = BertWordPieceTokenizer()
    trained.train([str(folder / "text.txt")], vocab_size=200, min_frequency=1, show_progress=False)
    BertTokenizer(vocab=trained.get_vocab()).save_pretrained(folder / "tokenizer")
    for part in VERBS:
        pairs = [dict(zip(("sentence_good", "sentence_bad"), sentence(draw, part), strict=True)) for _ in range(60)]
        lines = [json.dumps(pair | {"field": part, "UID": part}) for pair in pairs]
        (folder / "pairs" / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def trained(grammar: Path, objective: str, less: bool) -> str:
    """The folder of a run whose model has learnt from such a text, by a plain loop."""
    tokenizer = BertTokenizer.from_pretrained(grammar / "tokenizer")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    others = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0) | {"initializer_range": 0.1}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), is_decoder=objective == "clm", **sizes, **others)
    model = KINDS[objective].from_config(config)
    rows = tokenizer(text(random.Random(1), less), padding=True, return_tensors="pt")
    ids, valid = rows["input_ids"], rows["attention_mask"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(STEPS[objective]):
        of = torch.randint(len(ids), (64,))
        inputs, labels = ids[of].clone(), torch.where(valid[of] == 1, ids[of], -100)
        if objective == "mlm":
            at = 1 + (torch.rand(64) * (valid[of].sum(1) - 2)).long()  # without [CLS] and [SEP]
            hidden = torch.arange(ids.shape[1]) == at[:, None]
            inputs[hidden], labels = tokenizer.mask_token_id, torch.where(hidden, labels, -100)
        model(input_ids=inputs, attention_mask=valid[of], labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    run = Path(mkdtemp(dir=grammar)) / "run"
    write_exported_run(run, grammar / "tokenizer", objective, grammar / "text.txt")
    model.save_pretrained(run / "export")
    return str(run)


@pytest.mark.parametrize(
    ("whole", "less"),
    [("clm", "clm"), *(pytest.param(*both, marks=pytest.mark.slow) for both in (("clm", "mlm"), ("mlm", "clm")))],
)
def test_the_model_that_saw_more_is_the_better_one_there_and_only_there(whole: str, less: str, grammar: Path):
    sides = trained(grammar, whole, less=False), trained(grammar, less, less=True)
    found = compare_pair(*sides, Benchmarks(blimp=str(grammar / "pairs"))).findings
    of = {one.part: one for one in found if one.difference and "within words" not in one.test}
    for part, (value, other) in {part: (one.values[0][0], one.values[1][0]) for part, one in of.items()}.items():
        assert value > 95 and other < 90 if part != "agreement" else min(value, other) > 90, (part, value, other)
    assert {part: one.better for part, one in of.items()} == {
        "mean over paradigms": "A",
        "reflexive": "A",
        "agreement": None,  # both have seen it
    }
