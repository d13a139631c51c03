"""The Hub's real clients against the stand-in on loopback; verification and the model card of what is pushed."""

import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hub_files import wikitext_rows, write_small_gpt2, write_wikitext
from hub_server import TOKEN, HubServer, Refusal, read_folder

from lightning_lm.hub.model_card import render_model_card
from lightning_lm.hub.verify import reload
from lightning_lm.runs.export import write_check

REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"


def make_run(folder: Path, model_folder: Path) -> Path:
    """What a finished run leaves, as far as a push needs it."""
    from transformers import AutoTokenizer, GPT2LMHeadModel

    shutil.copytree(model_folder, folder / "export")
    model = GPT2LMHeadModel.from_pretrained(model_folder)
    ids = AutoTokenizer.from_pretrained(model_folder)("".join(wikitext_rows(30)))["input_ids"]
    rows = [ids[i : i + 33] for i in range(0, 132, 33)]
    model.train()  # the check must switch dropout off by itself, and on again
    write_check(folder, model, "clm", [row[:-1] for row in rows], [row[1:] for row in rows])
    assert model.training
    return describe(folder)


def describe(folder: Path, objective: str = "clm", **model: object) -> Path:
    files = {
        "summary.json": {"val/loss": 3.5, "val/perplexity": 33.115, "test/perplexity": 30.25, "tokens_seen": 12345},
        "ledger.json": {"train": {"rows": 120, "tokens": 4567, "tail": 89}, "test": {"rows": 40}},
        "environment.json": {"commit": "abc123", "uncommitted": "diff", "versions": {"torch": "2.13.0"}},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    config = {
        "name": "my-run",
        "model": {"name_or_path": "gpt2", "pretrained": True, "config": {}} | model,
        "data": {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1", "revision": REVISION, "block_size": 32},
        "objective": {"name": objective},
        "optimizer": {"name": "adamw", "lr": 2e-5},
        "seed": 0,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    write_small_gpt2(folder / "gpt2")
    rows = write_wikitext(folder / "wikitext")
    return folder, rows, make_run(folder / "run", folder / "gpt2")


def client(hub_server: HubServer, home: Path, code: str, token: str | None = None, **environment: str) -> dict:
    """Run code in a fresh process that knows the stand-in only; returns what it prints last, as JSON."""
    prelude = "import json, os\nfrom pathlib import Path\n"
    variables = hub_server.environment(home, token=token) | environment
    done = subprocess.run([sys.executable, "-c", prelude + code], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


LOAD = """
from lightning_lm.hub.access import go_offline_if_unreachable
usable = go_offline_if_unreachable()
import datasets, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained("gpt2"), AutoModelForCausalLM.from_pretrained("gpt2")
text = datasets.load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", revision="REVISION")
try:
    AutoTokenizer.from_pretrained("nobody/nothing")
except OSError as error:
    missing = str(error)
answers = {
    "usable": usable, "missing": missing, "rows": {split: rows["text"][:] for split, rows in text.items()},
    "ids": tokenizer("the old town")["input_ids"], "sum": sum(p.double().sum().item() for p in model.parameters()),
}
""".replace("REVISION", REVISION)


REFUSALS = """
from lightning_lm.hub import push as hub
from lightning_lm.errors import Refused

def attempt(*arguments, **options):
    try:
        return hub.push(*arguments, **options)
    except Refused as refused:
        return f"refused {refused}"

run = Path(os.environ["RUN"])
"""

PUSH = """
answers["no token"] = attempt(run, "small")
answers["no export, bad name"] = attempt(run / "export", "a/b/c", dry_run=True)
os.environ["HF_TOKEN"] = os.environ["VALID"]
answers["push"] = attempt(run, "small")
hub.verify = lambda run: 0.0
answers["again"] = attempt(run, "tester/small")
answers["private"] = attempt(run, "tester/small", private=True)
answers["other's"] = attempt(run, "somebody/small")
os.environ["HF_TOKEN"] = "hf_wrong"
answers["bad token"] = attempt(run, "small")
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
answers["unreachable"] = attempt(run, "small")
from transformers import AutoModelForCausalLM, AutoTokenizer
del os.environ["HF_TOKEN"]
tokenizer = AutoTokenizer.from_pretrained("tester/small")
model = AutoModelForCausalLM.from_pretrained("tester/small")
answers["pushed sum"] = sum(p.double().sum().item() for p in model.parameters())
from lightning_lm.evaluation.scoring import evaluate
text = Path(os.environ["HF_HOME"]) / "text.txt"
text.write_text("the old town " * 50)
for name in (str(run / "export"), "tester/small"):
    scored = evaluate(name, str(text), block_size=32)
    answers[f"scored {name}"] = scored.figures, scored.protocol, scored.made_with["model"]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answered(sources, tmp_path_factory):
    """A Hub, and what one process has told that loaded from there, pushed to it, and was refused."""
    folder, _, run = sources
    datasets = {"Salesforce/wikitext": (folder / "wikitext", REVISION)}
    with HubServer({"gpt2": folder / "gpt2"}, datasets, lfs=True) as server:
        home = tmp_path_factory.mktemp("home")
        return server, client(server, home, LOAD + REFUSALS + PUSH, RUN=str(run), VALID=TOKEN)


def test_a_model_and_wikitext_load_by_id(sources, answered):
    from transformers import AutoTokenizer, GPT2LMHeadModel

    folder, rows, _ = sources
    server, got = answered
    assert got["usable"]
    assert got["rows"] == rows
    assert rows["train"][:3:2] == ["", ""] and rows["train"][1].startswith(" = ")
    assert got["ids"] == AutoTokenizer.from_pretrained(folder / "gpt2")("the old town")["input_ids"]
    model = GPT2LMHeadModel.from_pretrained(folder / "gpt2")
    assert got["sum"] == sum(p.double().sum().item() for p in model.parameters())
    assert "nobody/nothing" in got["missing"]
    parquet = f"/datasets/Salesforce/wikitext/resolve/{REVISION}/wikitext-2-raw-v1/train-00000-of-00001.parquet"
    assert ("GET", parquet) in server.requests


def test_push_then_load_back(sources, answered):
    folder, _, run = sources
    server, got = answered
    address = f"{server.url}/tester/small"
    pushed = server.repos["models", "tester/small"]
    files = dict(pushed.files)
    files.pop(".gitattributes")  # the Hub's own
    assert got["push"] == got["again"] == address
    assert files.pop("README.md").decode() == render_model_card(run, "tester/small")  # later attempts wrote other cards
    assert files == {name: data for name, data in read_folder(run / "export").items() if name != "README.md"}
    assert list(server.objects.values()) == [files["model.safetensors"]]  # went as an LFS object

    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder / "gpt2")
    assert got["pushed sum"] == sum(p.double().sum().item() for p in model.parameters())

    *ours, weights = got[f"scored {run / 'export'}"]
    *pulled, revision = got["scored tester/small"]
    assert pulled == ours and len(weights) == 12 and revision == pushed.head

    assert got["no token"] == (
        "refused repo=small: nobody is logged in to the Hub; log in with `hf auth login` or set HF_TOKEN"
    )
    assert len(got["no export, bad name"].splitlines()) == 2
    assert "is public" in got["private"]
    assert "403" in got["other's"] and "somebody" in got["other's"]
    assert "401" in got["bad token"] and "HF_TOKEN" in got["bad token"]
    assert "can't be reached" in got["unreachable"]
    for name in ("private", "other's", "bad token", "unreachable"):
        assert got[name].startswith("refused ") and len(got[name].splitlines()) == 1


PRIVATE = """
from huggingface_hub import constants  # which keeps the Hub that is named now
first, os.environ["HF_ENDPOINT"] = os.environ["HF_ENDPOINT"], os.environ["IDLE"]
answers = {"tampered": attempt(Path(os.environ["TAMPERED"]), "small")}
hub.verify = lambda run: 0.0
answers["dry run"] = attempt(run, "s", dry_run=True)
os.environ["HF_ENDPOINT"] = first
answers["private"] = attempt(run, "tester/s", private=True)
print(json.dumps(answers))
"""


def test_dry_run_and_refusals_send_nothing_and_one_commit_is_made(sources, tmp_path):
    """One process and two Hubs: while it names the idle one, nothing may be sent; the other gets one commit."""
    from safetensors.torch import load_file, save_file

    *_, run = sources
    tampered = shutil.copytree(run, tmp_path / "tampered")
    weights = load_file(tampered / "export" / "model.safetensors")
    weights["transformer.h.0.mlp.c_fc.weight"][0] += 0.5
    save_file(weights, tampered / "export" / "model.safetensors", metadata={"format": "pt"})
    check = json.loads((tampered / "export_check.json").read_text())
    del check["crc32"]  # as in an older run: the loss must tell
    (tampered / "export_check.json").write_text(json.dumps(check))
    with HubServer() as idle, HubServer() as server:
        # The client with Xet switched on, as most users have it.
        variables = {"RUN": str(run), "TAMPERED": str(tampered), "IDLE": idle.url, "HF_HUB_DISABLE_XET": "0"}
        got = client(server, tmp_path / "home", REFUSALS + PRIVATE, TOKEN, **variables)
        assert idle.requests == []
    assert got["tampered"].startswith(f"refused run={tampered}: its export has a loss of ")
    assert "model.safetensors" in got["dry run"] and "README.md" in got["dry run"]
    assert f"{idle.url}/s (public if new)" in got["dry run"]
    assert got["private"] == f"{server.url}/tester/s"
    assert set(server.repos) == {("models", "tester/s")}
    repo = server.repos["models", "tester/s"]
    assert len(repo.messages) == 1 and repo.private


class KillingHub(HubServer):
    """Kills the client that sends a first commit, when the weights are there already."""

    client: subprocess.Popen | None = None

    def commit(self, kind: str, name: str, lines: bytes) -> dict:
        if self.client:
            self.client.kill()
            raise Refusal(503, "")
        return super().commit(kind, name, lines)


def test_a_push_that_was_killed_leaves_nothing_half_visible_and_goes_on(sources, tmp_path):
    *_, run = sources
    code = (
        "import os\nfrom pathlib import Path\n"
        + REFUSALS
        + 'hub.verify = lambda run: 0.0\nprint(attempt(run, "small"))'
    )
    with KillingHub(lfs=True) as server:
        environment = server.environment(tmp_path / "home", token=TOKEN) | {"RUN": str(run)}
        with subprocess.Popen([sys.executable, "-c", code], env=environment) as server.client:
            assert server.client.wait(120) == -signal.SIGKILL
        repo = server.repos["models", "tester/small"]
        assert set(repo.files) == {".gitattributes"} and not repo.messages, "the Hub's own file alone"
        server.client = None
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.DEVNULL)
    assert set(repo.files) == {".gitattributes", *read_folder(run / "export")} and len(repo.messages) == 1
    assert [method for method, path in server.requests if path.startswith("/objects/")] == ["PUT"], "sent once"


def test_the_check_of_a_masked_model_is_the_float64_mean_over_its_labels(tmp_path):
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"])}
    BertTokenizer(vocab=words).save_pretrained(tmp_path / "export")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForMaskedLM(BertConfig(vocab_size=len(words), **sizes))
    model.save_pretrained(tmp_path / "export")
    tokens = torch.randint(5, 13, (2, 12))
    labels = torch.where(torch.rand(tokens.shape) < 0.4, tokens, -100)
    labels[0, 0] = 5
    nll = write_check(tmp_path, model, "mlm", tokens.tolist(), labels.tolist())
    scores = model.eval()(input_ids=tokens).logits.detach().double().log_softmax(-1)
    scored = [-scores[b, t, labels[b, t]].item() for b, t in (labels != -100).nonzero().tolist()]
    assert math.isclose(nll, sum(scored) / len(scored), rel_tol=1e-9)
    assert math.isclose(reload(tmp_path)[0], nll, rel_tol=1e-5)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "export" / name).unlink()
    with pytest.raises(ValueError, match="tokenizer"):
        reload(tmp_path)
