"""What ``generate`` and ``fill-mask`` print, against transformers' own."""

from pathlib import Path

import torch
from commands import call
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer


def test_greedy_generation_is_transformers_own(capsys, tiny_gpt2: Path, exported_runs: dict[str, Path]):
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_gpt2), AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    ids = tokenizer("the river", return_tensors="pt")["input_ids"]
    out = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    expected = tokenizer.decode(out[0], skip_special_tokens=True) + "\n"
    for place in (tiny_gpt2, exported_runs["clm"]):
        code, stdout, _ = call(capsys, "generate", place, "--prompt", "the river", "--greedy", "--max-new-tokens", 12)
        assert (code, stdout) == (0, expected)


def test_samples_depend_on_the_seed_alone(capsys, tiny_gpt2: Path):
    sampling = ("--max-new-tokens", 15, "--temperature", 1.5, "--top-k", 0, "--top-p", 0.95)
    both = call(capsys, "generate", tiny_gpt2, "--prompt", "old", "--prompt", "new", "--num-samples", 2, *sampling)[1]
    heads = ["=== prompt 1, sample 1 ===\nold", "=== prompt 1, sample 2 ===\nold"]
    heads += ["=== prompt 2, sample 1 ===\nnew", "=== prompt 2, sample 2 ===\nnew"]
    places = [both.index(head) for head in heads]
    assert places == sorted(places) and places[0] == 0
    alone = call(capsys, "generate", tiny_gpt2, "--prompt", "new", "--seed", 1, *sampling)[1]
    assert both.endswith(heads[3][:-3] + alone)  # the second sample is that of the next seed
    assert alone != call(capsys, "generate", tiny_gpt2, "--prompt", "new", "--seed", 2, *sampling)[1]


def test_an_empty_prompt_begins_with_the_end_token(capsys, tiny_gpt2: Path):
    code, stdout, _ = call(capsys, "generate", tiny_gpt2, "--prompt", "", "--max-new-tokens", 5)
    assert code == 0 and stdout.endswith("\n")


# ---------------------------------------------------------------------------------------------------------- fill-mask


def test_fill_mask_gives_the_likeliest_tokens(capsys, tiny_bert: Path, exported_runs: dict[str, Path]):
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_bert), AutoModelForMaskedLM.from_pretrained(tiny_bert)
    texts = ["the <mask> is old", f"a {tokenizer.mask_token} and <mask> ."]
    expected = []
    for text in texts:
        inputs = tokenizer(text.replace("<mask>", "[MASK]"), return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id]
        expected.append(text)
        for row in logits.softmax(-1):
            top = row.topk(2)
            expected += [
                f"{p:.2%} {tokenizer.decode([i])}" for p, i in zip(*map(torch.Tensor.tolist, top), strict=True)
            ]
    for place in (tiny_bert, exported_runs["mlm"]):
        code, stdout, _ = call(capsys, "fill-mask", place, "--text", texts[0], "--text", texts[1], "--top-k", 2)
        lines = [" ".join(x.split()[-2:]) if "%" in x else x for x in stdout.splitlines()]
        assert (code, lines) == (0, expected)
    assert [x.split("  ")[0] for x in stdout.splitlines() if x.startswith("mask")] == ["mask 1", "mask 1", "mask 2"]
