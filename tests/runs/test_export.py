"""The exported model, as a user of transformers gets it."""

import shutil

import torch
from conftest import compose
from resumable import settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_lm.run import train
from lightning_lm.runs.export import export


def test_a_user_gets_the_models_length_and_what_pads_its_text(tiny_gpt2, tmp_path):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_gpt2), AutoTokenizer.from_pretrained(tiny_gpt2)
    before = tokenizer.model_max_length
    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[2, 3, -100]])}
    export(tmp_path, model, tokenizer, "clm", batch)
    assert tokenizer.model_max_length == before > 10**20, "the run's own goes on without a warning for long rows"
    exported = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert exported.model_max_length == model.config.n_positions
    generating = AutoModelForCausalLM.from_pretrained(tmp_path / "export").generation_config
    assert generating.pad_token_id == generating.eos_token_id == tokenizer.eos_token_id


def test_a_finished_run_without_its_export_says_how_to_get_it(dropping, text, reference, tmp_path, capsys):
    run = shutil.copytree(reference(), tmp_path / "run")
    exported = (run / "export" / "model.safetensors").read_bytes()
    shutil.rmtree(run / "export")
    job = compose(*settings(dropping, text, run, f"data.cache_dir={reference().parent / 'cache'}"))
    train(job)
    assert f"{run}: its export/ is gone; delete the run's summary.json" in capsys.readouterr().err
    (run / "summary.json").unlink()
    train(job)
    assert (run / "export" / "model.safetensors").read_bytes() == exported
