"""Every shipped option becomes objects, and every recipe takes a step, with small models of the same architectures."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
import transformers
from conftest import ROOT, compose
from hub_files import write_wikitext
from lightning.pytorch import accelerators, profilers
from lightning.pytorch.strategies import DDPStrategy
from tiny import part_of
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer

from lightning_lm.errors import Refused
from lightning_lm.hub.verify import reload
from lightning_lm.optim.schema import OptimizerConfig
from lightning_lm.run import train
from lightning_lm.runs import tracking
from lightning_lm.training import components as build
from lightning_lm.training import trainer as training
from lightning_lm.training.fsdp import ShardedStrategy

WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
FAMILIES = {  # class → its config's fields, besides the vocabulary
    "LlamaForCausalLM": {**WIDTHS, "num_key_value_heads": 1, "max_position_embeddings": 64},
    "RobertaForMaskedLM": {**WIDTHS, "max_position_embeddings": 66, "type_vocab_size": 1},
    "ModernBertForMaskedLM": {**WIDTHS, "max_position_embeddings": 64},
    "DistilBertForMaskedLM": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 64},
}
PRESETS = {
    "gpt2": "GPT2LMHeadModel",
    "distilgpt2": "GPT2LMHeadModel",
    "smollm2-135m": "LlamaForCausalLM",
    "bert-base-cased": "BertForMaskedLM",
    "distilroberta-base": "RobertaForMaskedLM",
    "modernbert-base": "ModernBertForMaskedLM",
    "gpt2-tiny": "GPT2LMHeadModel",
    "bert-tiny": "BertForMaskedLM",
}
SHRUNK = {
    "GPT2LMHeadModel": {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 64},
    "BertForMaskedLM": {**WIDTHS, "max_position_embeddings": 64},
}
ONE_STEP = ("debug=one_step", "data.block_size=32", "objective.prompts=[]", "hardware=cpu")


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def shrunk(family: str) -> list[str]:
    return [f"model.config.{name}={value}" for name, value in SHRUNK[family].items()]


def roberta_tokenizer(text: Path) -> transformers.PreTrainedTokenizerBase:
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train([str(text)], vocab_size=384, special_tokens=special, show_progress=False)
    state = json.loads(trained.to_str())["model"]
    return transformers.RobertaTokenizer(vocab=state["vocab"], merges=[tuple(pair) for pair in state["merges"]])


@pytest.fixture(scope="session")
def stand_ins(tiny_gpt2: Path, tiny_bert: Path, text: Path, tmp_path_factory) -> dict[str, Path]:
    """A folder with small random weights and a tokenizer for each class of model."""
    made = {"GPT2LMHeadModel": tiny_gpt2, "BertForMaskedLM": tiny_bert}
    for name, fields in FAMILIES.items():
        made[name] = tmp_path_factory.mktemp("stand-ins") / name
        own = {"LlamaForCausalLM": tiny_gpt2}.get(name, tiny_bert)
        tokenizer = roberta_tokenizer(text) if name.startswith("Roberta") else AutoTokenizer.from_pretrained(own)
        auto = getattr(transformers, name)
        special = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad", "cls", "sep")}
        auto(auto.config_class(**fields, **special, vocab_size=len(tokenizer))).save_pretrained(made[name])
        tokenizer.save_pretrained(made[name])
    return made


@pytest.fixture(scope="session")
def local(text: Path, tmp_path_factory) -> list[str]:
    """Settings that read the local text."""
    splits = [f"data.train={text}", f"data.validation={text}", f"data.test={part_of(text)}"]
    return ["data=text", *splits, "data.block_size=32", f"data.cache_dir={tmp_path_factory.mktemp('cache')}"]


@pytest.fixture(scope="session")
def wikitext(tmp_path_factory) -> tuple[Path, dict[str, list[str]]]:
    """A folder like the Hub's ``Salesforce/wikitext``, and its rows, the same in both configurations."""
    folder = tmp_path_factory.mktemp("wikitext")
    rows = write_wikitext(folder)
    card = (folder / "README.md").read_text()
    (folder / "wikitext-103-raw-v1").symlink_to(folder / "wikitext-2-raw-v1")
    more = card.partition("configs:\n")[2].partition("---")[0].replace("wikitext-2-", "wikitext-103-")
    (folder / "README.md").write_text(card.replace("---\n\n#", more + "---\n\n#", 1))
    return folder, rows


@pytest.fixture(scope="session")
def optimizers() -> dict[str, OptimizerConfig]:
    return {option: compose(f"optimizer={option}").optimizer for option in options("optimizer")}


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


@pytest.fixture(scope="session")
def parts_of(stand_ins, local) -> Callable[..., tuple]:
    """Job and parts of a small GPT-2 on the local text, for some overrides."""

    def build_with(*overrides: str):
        job = compose(*local, f"model.name_or_path={stand_ins['GPT2LMHeadModel']}", *overrides)
        return job, build.build(job)

    return build_with


# ------------------------------------------------------------------------------------------------------------ axes


def check_optimizer(job, parts, run: Path, optimizer: str) -> None:
    """The optimizer holds each parameter exactly once; where all have a gradient, a step changes all."""
    module = training.build_module(job, parts, training.build_callbacks(job, parts, run).budget)
    made, scheduler = module.configure(parts.model)
    held = [id(p) for group in made.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in parts.model.parameters())
    assert any("ns_steps" in group for group in made.param_groups) == (optimizer == "muon")
    before = {name: p.detach().clone() for name, p in parts.model.named_parameters()}
    for p in parts.model.parameters():
        p.grad = torch.ones_like(p)
    made.step()
    scheduler.step()
    assert [name for name, p in parts.model.named_parameters() if torch.equal(p, before[name])] == []


@pytest.mark.parametrize("preset", options("model"))
def test_every_model_preset(preset, stand_ins, local, optimizers, tmp_path):
    family = PRESETS[preset]
    model = compose(f"model={preset}").model
    assert model.config.keys() <= SHRUNK.get(family, {}).keys()
    named = model.name_or_path is not None
    where = [f"model.name_or_path={stand_ins[family]}"] if named else [*shrunk(family), "model.vocab_size=400"]
    objective = "mlm" if family.endswith("MaskedLM") else "clm"
    job = compose(f"model={preset}", f"objective={objective}", *where, *local)
    parts = build.build(job)
    check_model(parts, family)
    for optimizer, config in optimizers.items():
        check_optimizer(replace(job, optimizer=config), parts, tmp_path, optimizer)


def check_model(parts, family: str) -> None:
    assert type(parts.model).__name__ == family
    assert {p.dtype for p in parts.model.parameters()} == {torch.float32}
    ids = torch.arange(16)[None]
    assert parts.model(input_ids=ids).logits.shape == (1, 16, len(parts.tokenizer))


def test_distilbert_by_its_folder(stand_ins, local, tmp_path):
    family = "DistilBertForMaskedLM"
    job = compose("objective=mlm", "optimizer=muon", f"model.name_or_path={stand_ins[family]}", *local)
    parts = build.build(job)
    check_model(parts, family)
    check_optimizer(job, parts, tmp_path, "muon")


@pytest.mark.parametrize("option", options("data"))
def test_every_corpus(option, wikitext, local):
    folder, rows = wikitext
    if option == "text":
        corpus = compose(*local).data.build()
    elif option == "python_docs":
        corpus = compose("data=python_docs").data.build()
    else:
        name = {"hub": "wikitext-2-raw-v1"}.get(option) or compose(f"data={option}").data.name
        overrides = [f"data.path={folder}", f"data.name={name}", "data.revision=null"]
        corpus = compose(f"data={option}", *overrides).data.build()
        for split, expected in rows.items():
            assert list(chain.from_iterable(corpus.rows(split))) == expected
    assert set(corpus.keys) == {"train", "validation", "test"}
    assert all(any(row.strip() for row in next(corpus.rows(split))) for split in corpus.keys)


@pytest.mark.parametrize("option", options("scheduler"))
def test_every_scheduler(option, parts_of, tmp_path):
    job, parts = parts_of(f"scheduler={option}", "optimizer.lr=1", "trainer.max_steps=10")
    budget = training.build_callbacks(job, parts, tmp_path).budget
    optimizer, scheduler = training.build_module(job, parts, budget).configure(parts.model)
    rates = []
    for _ in range(11):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    middle = {"linear": 0.5, "cosine": 0.5, "constant": 1, "wsd": 1}[option]
    assert rates[0] == 1 and math.isclose(rates[5], middle) and math.isclose(rates[10], option == "constant")


@pytest.mark.parametrize("option", options("hardware"))
def test_every_hardware(option, parts_of, tmp_path):
    wanted, cuda = compose(f"hardware={option}").hardware, torch.cuda.is_available()
    strategies = {"multi_gpu": DDPStrategy, "multi_node": DDPStrategy, "fsdp": ShardedStrategy}
    if option in strategies:
        assert type(training.build_strategy(wanted)) is strategies[option]
    if wanted.accelerator == "gpu" and torch.cuda.device_count() < wanted.devices:
        with pytest.raises(Refused, match="torch sees (no|1) CUDA device"):
            parts_of(f"hardware={option}", "trainer.global_batch_size=16")
        return
    if wanted.nodes == 1:
        job, parts = parts_of(f"hardware={option}", "trainer.max_steps=1")
        callbacks = training.build_callbacks(job, parts, tmp_path)
        trainer = training.build_trainer(job, parts, tmp_path, callbacks, [])
        expected = accelerators.CUDAAccelerator if cuda and option != "cpu" else accelerators.CPUAccelerator
        assert isinstance(trainer.accelerator, expected)


@pytest.mark.parametrize("option", options("logger"))
def test_every_logger(option, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    loggers = training.build_loggers(compose(f"logger={option}"), tmp_path, "abcd1234")
    tracking.finish_wandb({"status": "finished"})
    more = {"wandb": ["WandbHistory"], "tensorboard": ["TensorBoardLogger"], "none": []}
    assert [type(logger).__name__ for logger in loggers] == ["RunFolderLogger", *more[option]]
    assert len(list(tmp_path.glob("wandb/offline-run-*-abcd1234"))) == (option == "wandb")


@pytest.mark.parametrize("option", options("debug"))
def test_every_debug(option, parts_of, tmp_path):
    job, parts = parts_of(f"debug={option}", "hardware=cpu")
    callbacks = training.build_callbacks(job, parts, tmp_path)
    trainer = training.build_trainer(job, parts, tmp_path, callbacks, training.build_loggers(job, tmp_path, ""))
    assert callbacks.budget.max_steps == {"one_step": 1, "overfit": 100, "profiler": 20}[option]
    assert isinstance(trainer.profiler, profilers.PyTorchProfiler) == (option == "profiler")


def test_no_axis_is_left_out():
    assert options("objective") == ["clm", "hybrid", "mlm"]  # any run has one of each
    assert options("trainer") == ["default"]
    tested = {"model", "data", "optimizer", "scheduler", "hardware", "logger", "callbacks", "debug", "experiment"}
    elsewhere = {"objective", "trainer", "sweep", "hydra"}  # the last two: test_sweeps
    assert tested | elsewhere == {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}


# --------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("recipe", sorted({*options("experiment")} - {"pair_biphasic"}))  # it is in test_two_phases.py
def test_every_recipe_takes_a_step(recipe, stand_ins, wikitext, tmp_path, tmp_path_factory):
    job = compose(f"experiment={recipe}")
    preset = next(line.split()[-1] for line in recipe_lines(recipe) if line.strip().startswith("- override /model:"))
    family, mine = PRESETS[preset], []
    if job.model.name_or_path is not None:
        mine += [f"model.name_or_path={stand_ins[family]}"]
        mine += [f"model.tokenizer={stand_ins[family]}"] if job.model.tokenizer else []
        mine += [f"data.path={wikitext[0]}", "data.revision=null"]
    else:
        mine += [*shrunk(family), "model.vocab_size=800"]
        if job.model.model_type == "modernbert":
            family, mine = "ModernBertForMaskedLM", [*mine, "~model.config.layer_types"]
    cache = tmp_path_factory.getbasetemp() / "recipes"
    job = compose(f"experiment={recipe}", *ONE_STEP, *mine, f"data.cache_dir={cache}", f"run_dir={tmp_path / 'run'}")
    loss = train(job)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 1)
    assert summary["tokens_seen"] == job.trainer.global_batch_size * 32
    assert math.isfinite(loss) and math.isfinite(summary["test/loss"])
    assert (
        type(transformers.AutoConfig.from_pretrained(tmp_path / "run" / "export"))
        is getattr(transformers, family).config_class
    )
    check = json.loads((tmp_path / "run" / "export_check.json").read_text())
    assert math.isclose(reload(tmp_path / "run")[0], check["nll"], rel_tol=1e-5)


def recipe_lines(recipe: str) -> list[str]:
    return (ROOT / "conf" / "experiment" / f"{recipe}.yaml").read_text().splitlines()
