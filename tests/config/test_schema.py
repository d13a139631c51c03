"""Every shipped configuration composes; what a user types wins; the defaults are what is promised."""

import itertools
import re
import subprocess
import sys

import pytest
from conftest import ROOT, compose

from lightning_lm.config.composition import list_axes
from lightning_lm.config.overrides import diagnose
from lightning_lm.config.schema import Accelerator, Config
from lightning_lm.config.validation import problems
from lightning_lm.data.schema import HubDataConfig, PythonDocsDataConfig, TextDataConfig
from lightning_lm.objectives.schema import ClmConfig, MlmConfig
from lightning_lm.optim.schema import MuonConfig

OPTIONS = sorted((path.parent.name, path.stem) for path in (ROOT / "conf").glob("*/*.yaml"))
NEEDS = {
    "data=hub": ["data.path=some/dataset"],
    "data=text": ["data.train=a.txt", "data.validation=b.txt"],
    "experiment=pair_biphasic": ["model.name_or_path=some/model"],
}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_passes_the_checks(group, option):
    choice = f"{group}={option}"
    if group == "sweep":  # which is no single run
        assert diagnose([choice], multirun=True) == []
        return
    cfg = compose(choice, *NEEDS.get(choice, []))
    assert isinstance(cfg, Config)
    assert problems(cfg) == []


RECIPES, DEBUGS = ([option for group, option in OPTIONS if group == kind] for kind in ("experiment", "debug"))


@pytest.mark.parametrize(("recipe", "debug"), zip(RECIPES, itertools.cycle(DEBUGS)))  # neither knows the other
def test_every_recipe_composes_with_a_debug(recipe, debug):
    choice = f"experiment={recipe}"
    cfg = compose(choice, f"debug={debug}", *NEEDS.get(choice, []))
    assert problems(cfg) == []
    assert cfg.name == recipe
    assert cfg.run_dir.startswith(f"outputs/{recipe}/")
    assert cfg.logger.name == "none"


def test_defaults():
    cfg = compose()
    assert cfg.model.name_or_path == "gpt2" and cfg.model.pretrained and cfg.model.tokenizer is None
    assert (cfg.data.path, cfg.data.name) == ("Salesforce/wikitext", "wikitext-2-raw-v1")
    assert re.fullmatch("[0-9a-f]{40}", cfg.data.revision)
    assert cfg.data.block_size == 128
    assert isinstance(cfg.objective, ClmConfig)
    assert (cfg.optimizer.name, cfg.optimizer.lr, cfg.optimizer.weight_decay) == ("adamw", 2e-5, 0.01)
    assert (cfg.scheduler.name, cfg.scheduler.warmup) == ("linear", 0)
    t = cfg.trainer
    assert (t.max_epochs, t.max_steps, t.max_tokens, t.max_minutes) == (None, None, None, None)  # so: 3 epochs
    assert t.global_batch_size == 8
    assert t.val_every_n_steps is None  # so: once an epoch
    assert cfg.seed == 0
    assert cfg.logger.name == "wandb"
    assert cfg.run_dir.startswith("outputs/gpt2-wikitext2-clm/")


@pytest.mark.parametrize(
    "recipe", ["distilgpt2_wikitext2", "distilroberta_wikitext2", "gpt2_wikitext2", "bert_wikitext2"]
)
def test_fine_tuning_recipes_keep_the_published_protocol(recipe):
    cfg = compose(f"experiment={recipe}")
    assert (cfg.optimizer.lr, cfg.trainer.global_batch_size, cfg.data.block_size) == (2e-5, 8, 128)
    assert cfg.trainer.max_epochs is None  # so: 3
    if isinstance(cfg.objective, MlmConfig):
        assert cfg.objective.mlm_probability == 0.15


@pytest.mark.parametrize(
    ("recipe", "model_type", "objective"), [("quickstart", "gpt2", "clm"), ("quickstart_mlm", "bert", "mlm")]
)
def test_quickstart_needs_nothing_from_the_hub(recipe, model_type, objective):
    cfg = compose(f"experiment={recipe}")
    assert isinstance(cfg.data, PythonDocsDataConfig)
    assert cfg.model.name_or_path is None and not cfg.model.pretrained
    assert (cfg.model.tokenizer, cfg.model.model_type, cfg.objective.name) == ("train", model_type, objective)


@pytest.mark.parametrize("recipe", ["gpt2_scratch_wikitext2", "bert_scratch_wikitext2"])
def test_scratch_recipes_start_from_random_weights(recipe):
    model = compose(f"experiment={recipe}").model
    assert not model.pretrained and model.tokenizer.startswith("sgugger/")


def test_what_is_typed_wins_over_recipe_and_debug():
    cfg = compose(
        "experiment=quickstart",
        "debug=overfit",
        "model=bert-tiny",
        "data=text",
        "data.train=a.txt",
        "objective=mlm",
        "optimizer=muon",
        "optimizer.lr=0.5",
        "scheduler=wsd",
        "logger=wandb",
        "trainer.max_epochs=7",
        "trainer.limit_train_batches=9",
        "name=mine",
        "run_dir=outputs/here",
        "seed=3",
    )
    assert cfg.model.model_type == "bert" and isinstance(cfg.data, TextDataConfig)
    assert isinstance(cfg.objective, MlmConfig) and isinstance(cfg.optimizer, MuonConfig)
    assert (cfg.optimizer.lr, cfg.scheduler.name, cfg.logger.name) == (0.5, "wsd", "wandb")
    assert (cfg.trainer.max_epochs, cfg.trainer.limit_train_batches) == (7, 9)
    assert (cfg.name, cfg.run_dir, cfg.seed) == ("mine", "outputs/here", 3)


def test_debug_wins_over_the_recipe():
    cfg = compose("experiment=quickstart", "debug=overfit")
    assert cfg.scheduler.name == "constant"
    assert (cfg.trainer.max_epochs, cfg.trainer.limit_train_batches) == (100, 1)
    assert cfg.trainer.global_batch_size == 16  # which only the recipe sets


def test_any_field_of_the_model_is_taken_without_a_plus():
    assert compose("model=gpt2-tiny", "model.config.n_layer=2", "model.config.new=x").model.config["new"] == "x"


def test_choices_become_their_types():
    cfg = compose("data=hub", "data.path=x/y", "hardware=cpu", "data.splits.validation=test")
    assert isinstance(cfg.data, HubDataConfig) and cfg.data.splits["validation"] == "test"
    assert cfg.hardware.accelerator is Accelerator.cpu


def cases(table, names):
    """The index of the table's row that takes each name."""
    return [
        next(i for i, row in enumerate(table) if re.search(row.pattern, name) and row.ndim is None) for name in names
    ]


def test_muon_leaves_embeddings_and_heads_to_adamw():
    rows = compose("optimizer=muon").optimizer.groups
    assert [(row.ndim, row.optimizer, row.decay) for row in rows] == [
        (1, "adamw", False),
        (None, "adamw", True),
        (2, "muon", True),
        (None, "adamw", True),
    ]
    outer = """transformer.wte.weight transformer.wpe.weight lm_head.weight bert.embeddings.word_embeddings.weight
        bert.embeddings.position_embeddings.weight bert.embeddings.token_type_embeddings.weight
        cls.predictions.decoder.weight lm_head.decoder.weight model.embed_tokens.weight
        model.embeddings.tok_embeddings.weight decoder.weight gpt_neox.embed_in.weight embed_out.weight"""
    inner = """transformer.h.0.attn.c_attn.weight transformer.h.0.mlp.c_proj.weight
        bert.encoder.layer.0.attention.self.query.weight cls.predictions.transform.dense.weight lm_head.dense.weight
        model.layers.0.mlp.gate_proj.weight model.layers.0.attn.Wqkv.weight head.dense.weight
        model.decoder.layers.0.fc1.weight"""
    assert set(cases(rows, outer.split())) == {1}
    assert set(cases(rows, inner.split())) == {3}


def test_help_names_every_option():
    text = list_axes(0)
    for group, option in OPTIONS:
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text), f"{group}={option}"


def test_entry_is_short():
    assert len((ROOT / "train.py").read_text().splitlines()) <= 40


def test_refusing_imports_nothing_heavy():
    heavy = "{'torch', 'transformers', 'lightning', 'datasets', 'numpy', 'wandb', 'matplotlib'}"
    code = f"""import runpy, sys
sys.argv = ["train.py", "optimizer.lr=-1"]
try:
    runpy.run_path("train.py", run_name="__main__")
except SystemExit as end:
    assert end.code == 2
print({heavy} & set(sys.modules))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
