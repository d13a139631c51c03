"""The hybrid objective in training: its loss against a plain one, its two ends, and a run that was cut off."""

import json

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from conftest import compose
from resumable import assert_same
from resumable import settings as resumable
from test_resume import BATCH_END, cut_off
from tiny import write_bert
from torch.optim.lr_scheduler import ConstantLR
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

import lightning_lm as lm
from lightning_lm.errors import Refused
from lightning_lm.inference.sources import open_model
from lightning_lm.objectives.clm import sees_the_future
from lightning_lm.objectives.schema import HybridConfig
from lightning_lm.run import train
from lightning_lm.training.components import build

HYBRID = ("objective=hybrid", "model.config.is_decoder=true")


@pytest.fixture(scope="module")
def bert(text, tmp_path_factory):
    """With dropout, so that a lost random state would show."""
    return write_bert(tmp_path_factory.mktemp("dropping") / "bert", text, dropout=0.1)


def settings(model, text, run, *more):
    """All of the test text is scored, so that the figures can be found again."""
    quick = ("trainer.max_steps=8", "trainer.limit_train_batches=5", "trainer.limit_test_batches=null")
    return [*resumable(model, text, run), *quick, *more]


def trained(model, text, run, *more):
    quick = ("trainer.max_steps=3", "trainer.limit_val_batches=1", "data.block_size=32", "objective.prompts=[]")
    given = [one for one in resumable(model, text, run) if not one.startswith("objective.")]
    train(compose(*given, *quick, *more))
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    ("ratio", "other"),
    [(0, ("objective=clm", "model.config.is_decoder=true")), (1, ("objective=mlm", "objective.shift=true"))],
)
def test_the_ends_of_the_ratio_are_the_other_objectives_to_the_bit(ratio, other, bert, text, tmp_path):
    ours = trained(bert, text, tmp_path / "hybrid", *HYBRID, f"objective.ratio={ratio}")
    theirs = trained(bert, text, tmp_path / "other", *other)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    figures = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("hybrid", "other")]
    assert figures[0]["val/masked_loss" if ratio else "val/loss"] == figures[1]["val/loss"]
    assert figures[0]["labels_seen"] == figures[1]["labels_seen"]


@pytest.mark.parametrize("weigh", ["blocks", "labels"])
def test_a_step_against_two_models_with_a_plain_loss(weigh, tiny_bert, text, tmp_path):
    """SGD with a rate of 1 moves the weights by the gradient."""
    corpus = lm.text_corpus({"train": [str(text)], "validation": [str(text)]})
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    objective = HybridConfig(mlm_probability=0.3, weigh=weigh).build(tokenizer)
    data = lm.TextDataModule(corpus, tokenizer, objective, block_size=32, accumulate=2, cache_dir=tmp_path / "cache")
    model = AutoModelForCausalLM.from_pretrained(tiny_bert, is_decoder=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def configure(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        return optimizer, ConstantLR(optimizer, factor=1.0)

    trainer = L.Trainer(
        accelerator="cpu", max_steps=1, accumulate_grad_batches=2, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(lm.LanguageModel(model, objective, configure), data)
    moved = {name: before[name] - p for name, p in model.named_parameters()}

    plain = {0: AutoModelForCausalLM.from_pretrained(tiny_bert, is_decoder=True)}
    plain[1] = AutoModelForMaskedLM.from_pretrained(tiny_bert, is_decoder=False)
    items = [data._batches("train", data.plan("train"), rank=0)[0, micro] for micro in range(2)]
    parts = [part for item in items for part in (item, *item["others"])]
    losses = {0: [], 1: []}
    for part in parts:
        logits = plain[part["kind"]].train()(input_ids=part["input_ids"]).logits
        losses[part["kind"]].append(F.cross_entropy(logits.flatten(0, 1), part["labels"].flatten(), reduction="none"))
    count = {kind: sum(len(part["labels"]) for part in parts if part["kind"] == kind) for kind in losses}
    labels = {k: sum(int((part["labels"] != -100).sum()) for part in parts if part["kind"] == k) for k in losses}
    share = count if weigh == "blocks" else labels
    assert min(count.values()) > 0 and sum(count.values()) == 8
    sum(torch.cat(losses[k]).sum() / labels[k] * share[k] / sum(share.values()) for k in losses).backward()
    others = dict(plain[1].named_parameters())
    for name, parameter in plain[0].named_parameters():
        torch.testing.assert_close(moved[name], parameter.grad + others[name].grad, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def finished(bert, text, tmp_path_factory):
    run = tmp_path_factory.mktemp("hybrid") / "run"
    train(compose(*settings(bert, text, run, *HYBRID)))
    return run


@pytest.mark.parametrize("steps", [[7], pytest.param([2, 5, 6], marks=pytest.mark.slow)])
def test_a_run_that_was_cut_off_ends_as_if_it_had_not(steps, bert, text, finished, tmp_path, monkeypatch):
    job = compose(*settings(bert, text, tmp_path / "run", *HYBRID))
    for step in steps:
        cut_off(monkeypatch, BATCH_END, step, job)
    train(job)
    assert_same(tmp_path / "run", finished)


def test_the_export_serves_as_either_class(finished):
    run, export = str(finished), finished / "export"
    causal, masked = (open_model(run, name, strict=True) for name in ("clm", "mlm"))
    assert (masked.objective.shift, masked.objective.masking.probability) == (1, 0.15)
    alone = open_model(str(export), "mlm", strict=False)
    assert alone.objective.shift == 1, "config.json tells"
    ids = torch.arange(5, 25)[None]
    for opened, auto, decoder in ((causal, AutoModelForCausalLM, True), (masked, AutoModelForMaskedLM, False)):
        model = auto.from_pretrained(export, is_decoder=decoder).eval()
        assert torch.equal(opened.model(input_ids=ids).logits, model(input_ids=ids).logits)
        assert sees_the_future(model) != decoder
    figures = json.loads((finished / "summary.json").read_text())
    for objective, name in ((None, "loss"), ("mlm", "masked_loss")):
        mine = lm.evaluate(finished, split="test", objective=objective)
        assert mine.figures["loss"] == pytest.approx(figures[f"test/{name}"], rel=1e-6)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([*HYBRID, "hardware.gradient_checkpointing=true"], "hardware.gradient_checkpointing=True: layers would be"),
        ([*HYBRID, "hardware.compile=step"], "hardware.compile=step: each step of objective=hybrid has other shapes"),
        ([*HYBRID, "hardware.strategy=fsdp"], "hardware.strategy=fsdp: all devices must do the same passes"),
        ([*HYBRID, "objective.ratio=1.5"], "objective.ratio=1.5: out of range; give a number from 0 to 1"),
        (["objective=mlm", "model.config.is_decoder=true"], "model.config.is_decoder=True: a masked model looks"),
    ],
)
def test_what_is_refused(more, told, bert, text, tmp_path):
    given = [one for one in resumable(bert, text, tmp_path / "run") if not one.startswith("objective.")]
    with pytest.raises(Refused, match=told):
        train(compose(*given, *more))


def test_a_tokenizer_without_a_mask_is_refused(tiny_gpt2, text, tmp_path):
    with pytest.raises(Refused, match="objective=hybrid: the tokenizer has no mask token"):
        build(compose(*resumable(tiny_gpt2, text, tmp_path / "run", "objective=hybrid")))
