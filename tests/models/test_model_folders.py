"""A model folder, a model's config or a vocabulary with something wrong ends in one line before there is a run."""

import json
import shutil
import subprocess

import pytest
import torch
from conftest import compose
from resumable import settings

from lightning_lm.cli import main
from lightning_lm.errors import Refused
from lightning_lm.launch import start
from lightning_lm.runs.folder import read_json_file


def broken(folder, name):
    """A model folder with one thing wrong."""
    match name:
        case "weights cut off":
            path = folder / "model.safetensors"
            path.write_bytes(path.read_bytes()[:3000])
        case "weights not finite":
            from safetensors.torch import load_file, save_file

            weights = load_file(folder / "model.safetensors")
            weights["transformer.wte.weight"][3] = float("nan")
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        case "weights of another model":
            from safetensors.torch import load_file, save_file

            weights = load_file(folder / "model.safetensors")
            save_file({f"other.{name}": value for name, value in weights.items()}, folder / "model.safetensors")
        case "too large":
            from safetensors.torch import load_file, save_file

            weights = load_file(folder / "model.safetensors")
            weights["transformer.h.0.mlp.c_fc.weight"] *= 1e30
            weights["transformer.h.0.mlp.c_proj.weight"] *= 1e30
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        case "pointer":
            (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        case "pickle":
            (folder / "model.safetensors").unlink()
            torch.save({"transformer.wte.weight": subprocess.Popen}, folder / "pytorch_model.bin")
        case "config broken":
            (folder / "config.json").write_text("{")
        case "code of its own":
            config = json.loads((folder / "config.json").read_text())
            config |= {"auto_map": {"AutoConfig": "mine.Mine"}, "model_type": "mine"}
            (folder / "config.json").write_text(json.dumps(config))
            (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
        case "adapter":
            (folder / "config.json").rename(folder / "adapter_config.json")
        case "no tokenizer":
            for path in folder.glob("tokenizer*"):
                path.unlink()
        case "empty":
            for path in folder.iterdir():
                path.unlink()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("weights cut off", "model.name_or_path={}: its weights can't be loaded: "),
        ("weights not finite", "model.name_or_path={}: its weights are not finite: transformer.wte.weight; "),
        ("weights of another model", "model.name_or_path={}: its checkpoint has none of the model's weights; choose "),
        ("too large", "model=gpt2: its logits are no finite numbers, though its weights are; choose another check"),
        ("pointer", "model.name_or_path={}: its weights can't be loaded: model.safetensors is a pointer of Git LFS; "),
        (
            "pickle",
            "model.name_or_path={}: its weights can't be loaded: its pickle holds more than weights, and is not",
        ),
        ("config broken", "model.name_or_path={}: no model can be loaded: Expecting property name"),
        ("code of its own", "model.name_or_path={}: no model can be loaded: it comes with code of its own, which is "),
        ("adapter", "model.name_or_path={}: no model can be loaded: it is an adapter without its model; merge it"),
        ("no tokenizer", "model.tokenizer={}: "),
        (
            "empty",
            "model.tokenizer={}: no tokenizer can be loaded: Couldn't instantiate the backend tokenizer from one of: (",
        ),
    ],
)
def test_a_model_folder_with_one_thing_wrong(name, line, dropping, text, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(dropping, folder)
    broken(folder, name)
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # to any question
    tokenizer = "null" if name in ("no tokenizer", "empty") else dropping
    job = compose(*settings(folder, text, tmp_path / "run", f"model.tokenizer={tokenizer}"))
    with pytest.raises(Refused) as refused:
        start(job, named=True)
    (problem,) = refused.value.problems
    assert str(problem).startswith(line.format(folder)) and len(str(problem).splitlines()) == 1
    assert not (tmp_path / "run").exists() and not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("pointer", "; fetch the files themselves with git lfs pull\n"),
        ("config broken", "; check the folder's files, or name one that save_pretrained has written\n"),
        (
            "code of its own",
            "it comes with code of its own, which is never run here; choose a model of transformers' own\n",
        ),
    ],
)
def test_a_command_gets_the_remedy_that_fits_as_well(name, line, dropping, text, tmp_path, capsys):
    shutil.copytree(dropping, tmp_path / "model")
    broken(tmp_path / "model", name)
    assert main(["evaluate", str(tmp_path / "model"), "--data", str(text)]) == 2
    assert capsys.readouterr().err.endswith(line)


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("n_head=5", "must be divisible by num_heads"),
        ("n_layer=-1", "the model has no layers"),
        ("activation_function=bogus", "bogus"),
        ("resid_pdrop=1.5", "between 0 and 1"),
        ("n_embd=0", ""),
    ],
)
def test_slips_in_a_models_config(field, reason, text, tmp_path):
    more = ["model=gpt2-tiny", "model.vocab_size=300", "model.name_or_path=null", f"model.config.{field}"]
    with pytest.raises(Refused, match=f"^model.config=.*{reason}"):
        start(compose(*settings("x", text, tmp_path / "run"), *more), named=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "config", "line"),
    [
        ("qwen2", {"num_key_value_heads": 3}, "model=qwen2: its own code fails (The size of tensor a"),
        ("mpt", {"max_seq_len": 8}, "model=mpt: its own code fails (The size of tensor a (16) must match"),
        ("xglm", {"max_position_embeddings": 8}, "data.block_size=16: the model has only 8 positions"),
    ],
)
def test_what_only_a_models_own_code_tells(kind, config, line, text, tmp_path):
    """Before there is a folder, whichever of the passes before training it is that fails."""
    small = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    more = [f"model.model_type={kind}", "model.vocab_size=300", "model.name_or_path=null", "data.block_size=16"]
    job = compose("model=gpt2-tiny", *settings("x", text, tmp_path / "run"), *more, "objective.prompts=[]")
    known = {"mpt": {"n_layers": 1, "d_model": 32, "n_heads": 2}, "xglm": {"num_layers": 1, "d_model": 32}}
    job.model.config = known.get(kind, small) | config
    with pytest.raises(Refused) as refused:
        start(job, named=True)
    (problem,) = refused.value.problems
    assert str(problem).startswith(line), problem
    assert not (tmp_path / "run").exists()


def test_a_runs_folder_stands_for_its_model(reference, text, tmp_path):
    short = ["trainer.max_steps=1", "scheduler.warmup=0", "optimizer.lr=1e-9"]
    start(compose(*settings(reference(), text, tmp_path / "run", *short)), named=True)
    ours, theirs = (read_json_file(run / "summary.json")["val/loss"] for run in (tmp_path / "run", reference()))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_vocabulary_with_gaps(text, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    (tmp_path / "letters.txt").write_text("a b c d e\n" * 200)
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "c": 3, "d": 4, "e": 50}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tmp_path / "holes")
    more = ["model=gpt2-tiny", "model.name_or_path=null", f"model.tokenizer={tmp_path / 'holes'}"]
    more += ["trainer.max_steps=2", "objective.prompts=[]", "model.config.n_layer=1"]
    start(compose(*settings("x", tmp_path / "letters.txt", tmp_path / "run"), *more), named=True)
    weights = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert len(weights["model.transformer.wte.weight"]) == 51
