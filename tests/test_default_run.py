"""``python train.py`` as it is first typed: GPT-2 and WikiText-2 by id, from a Hub that may or may not be there."""

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, compose
from hub_files import write_small_gpt2, write_wikitext
from hub_server import TOKEN, HubServer, read_folder

from lightning_lm import run as runs
from lightning_lm.errors import Refused, refuse
from lightning_lm.hub.access import check_before_training

REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
SMALL = ["trainer.max_steps=2", "trainer.limit_val_batches=2", "trainer.limit_test_batches=2"]
RETRIES = re.compile(r"retr(y|ie)", re.IGNORECASE)


def start(folder: Path, run: str, environment: dict[str, str], *more: str) -> subprocess.CompletedProcess[str]:
    environment = environment | {"WANDB_MODE": "offline"}  # whatever keys are on this machine
    command = [sys.executable, ROOT / "train.py", *SMALL, f"run_dir={run}", "data.cache_dir=cache", *more]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def summary(run: Path) -> dict[str, object]:
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def began(tmp_path_factory):
    """Two starts: the first with the Hub and empty caches, which also pushes, and one when the Hub is gone."""
    folder = tmp_path_factory.mktemp("default")
    rows = write_wikitext(folder / "wikitext")
    write_small_gpt2(folder / "gpt2-source")
    datasets = {"Salesforce/wikitext": (folder / "wikitext", REVISION)}
    with HubServer({"gpt2": folder / "gpt2-source"}, datasets) as server:
        home = folder / "home"
        first = start(folder, "first", server.environment(home, token=TOKEN), "trainer.push_to_hub=tester/model")
    offline = start(folder, "offline", server.environment(home), "logger=none", "data.cache_dir=empty")
    return folder, rows, server, {"first": first, "offline": offline}


def test_the_default_trains_and_counts_what_was_served(began):
    from transformers import AutoTokenizer

    folder, rows, server, done = began
    assert done["first"].returncode == 0, done["first"].stderr
    figures = summary(folder / "first")
    assert (figures["status"], figures["steps"], figures["tokens_seen"]) == ("finished", 2, 2 * 8 * 128)
    assert math.isclose(figures["test/perplexity"], math.exp(figures["test/loss"]), rel_tol=1e-9)
    assert len(list((folder / "first" / "wandb").glob("offline-run-*"))) == 1
    asked = f"/datasets/Salesforce/wikitext/resolve/{REVISION}/wikitext-2-raw-v1/train-00000-of-00001.parquet"
    assert ("GET", asked) in server.requests

    ledger = json.loads((folder / "first" / "ledger.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder / "gpt2-source")
    assert set(ledger) == set(rows)
    for split, texts in rows.items():
        tokens = sum(len(tokenizer(text)["input_ids"]) for text in texts)
        counted = {
            "rows": len(texts),
            "empty_rows": texts.count(""),
            "words": sum(len(text.split()) for text in texts),
            "line_ends": sum(text.endswith("\n") for text in texts),
            "bytes": len("".join(texts).encode()),
            "tokens": tokens,
        }
        assert {name: ledger[split][name] for name in counted} == counted
        if split == "train":
            assert (ledger[split]["blocks"], ledger[split]["tail"]) == divmod(tokens, 128)


def test_the_caches_are_enough_when_the_hub_is_gone(began):
    folder, _, _, done = began
    assert done["offline"].returncode == 0, done["offline"].stderr
    assert not RETRIES.search(done["offline"].stdout + done["offline"].stderr)
    first, offline = summary(folder / "first"), summary(folder / "offline")
    assert first["test/loss"] == offline["test/loss"]


def test_a_finished_model_is_pushed(began):
    """That what was pushed loads by its id in another process: test_hub."""
    folder, _, server, done = began
    assert f"{server.url}/tester/model" in done["first"].stderr
    export = folder / "first" / "export"
    pushed = dict(server.repos["models", "tester/model"].files)
    pushed.pop(".gitattributes")  # the Hub's own
    assert pushed == read_folder(export)


def test_without_a_hub_and_caches_one_line_names_the_ways_on(tmp_path):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    kept |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    began = time.monotonic()
    done = start(tmp_path, "run", kept)
    assert time.monotonic() - began < 20  # promised are 10 on a machine that does nothing else
    assert done.returncode == 2
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "local files" in error and "experiment=quickstart" in error
    assert not RETRIES.search(done.stdout + done.stderr) and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------------------------- before and after


def refused(models: dict[str, str], repo: str | None, online: bool) -> list[str]:
    with pytest.raises(Refused) as error:
        check_before_training(models, repo, online=online)
    return str(error.value).splitlines()


def test_what_the_hub_can_not_do_is_refused_before_training(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    models = {"model.name_or_path": "org/model", "model.tokenizer": "org/tokenizer"}
    told = refused(models, "me/model", online=False)
    assert [line.partition(":")[0] for line in told] == [
        "model.name_or_path=org/model",
        "model.tokenizer=org/tokenizer",
        "trainer.push_to_hub=me/model",
        "trainer.push_to_hub=me/model",
    ]
    assert "nobody is logged in" in told[-1]
    (tmp_path / "models--org--model" / "snapshots").mkdir(parents=True)
    assert "org/tokenizer" in "".join(refused(models, None, online=False))
    check_before_training({"model.name_or_path": "org/model"}, None, online=False)
    check_before_training(models, None, online=True)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        for token in ("hf_wrong", TOKEN):
            monkeypatch.setattr("huggingface_hub.get_token", lambda token=token: token)
            monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda token=token: token)
            if token == TOKEN:
                check_before_training({}, "tester/model", online=True)
            else:
                assert "the token isn't valid" in refused({}, "tester/model", online=True)[0]


def test_a_push_that_fails_leaves_a_finished_run(tiny_gpt2, text, tmp_path, monkeypatch):
    def failing(run: Path, repo: str) -> str:
        assert summary(run)["status"] == "finished" and list((run / "plots").iterdir())
        raise refuse("repo", repo, "the Hub said 503", "try again later")

    checked = []
    monkeypatch.setattr(runs, "go_offline_if_unreachable", lambda: True)
    monkeypatch.setattr(runs, "check_before_training", lambda models, repo, online: checked.append((models, repo)))
    monkeypatch.setattr(runs, "push", failing)
    run = tmp_path / "run"
    job = compose(
        *(f"data.{split}={text}" for split in ("train", "validation")),
        *(
            *SMALL,
            "logger=none",
            "data=text",
            "data.block_size=32",
            f"data.cache_dir={tmp_path / 'cache'}",
            "hardware=cpu",
        ),
        *(f"model.name_or_path={tiny_gpt2}", "trainer.push_to_hub=me/model", f"run_dir={run}"),
    )
    with pytest.raises(Refused, match=f"503; try again later; .*`lightning-lm push {run} --repo me/model`") as error:
        runs.train(job)
    assert len(error.value.problems) == 1 and checked == [({}, "me/model")]
    assert summary(run)["status"] == "finished"
    assert runs.train(job) == summary(run)["val/loss"]  # a finished run only tells its figures
