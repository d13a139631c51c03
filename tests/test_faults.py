"""Faults of the machine and of other libraries end in one line that names the setting, the cause and the remedy."""

import errno
import itertools
import json
import logging
import shutil
import subprocess

import pytest
import torch
from conftest import compose
from resumable import assert_same, settings

from lightning_lm.cli import main
from lightning_lm.errors import Fault, Refused
from lightning_lm.faults import innermost, problem_of, told_in_one_line
from lightning_lm.hub.push import push
from lightning_lm.launch import start
from lightning_lm.logs import logging_to
from lightning_lm.runs.folder import FIGURES, read_json_file


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "x", "{run}/a"), "run_dir={run}/a: the disk is full; without what was being written, "),
        (OSError(errno.EDQUOT, "x", "{cache}/a"), "data.cache_dir={cache}/a: your quota of this disk is used up"),
        (OSError(errno.EROFS, "x", "{run}"), "run_dir={run}: its file system is read-only; choose a folder"),
        (PermissionError(errno.EACCES, "x", "/text"), "file=/text: there is no permission for it; correct"),
        (
            NotADirectoryError(errno.ENOTDIR, "x", "{run}/export"),
            "run_dir={run}/export: a file is where a folder should",
        ),
        (IsADirectoryError(errno.EISDIR, "x", "{run}"), "run_dir={run}: a folder is where a file should be; move it"),
        (OSError(errno.EFBIG, "x"), "file={run}, {cache}: a file would be larger than the limit; raise the limit"),
        (OSError(errno.ENAMETOOLONG, "x", "/long"), "file=/long: its name is too long; choose a shorter one"),
        (FileNotFoundError(errno.ENOENT, "x", "/text"), "file=/text: it has vanished; see what removes it"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "run_dir="),
        (OSError("1024 requested and 0 written"), "run_dir="),
        (MemoryError(), "memory=short: MemoryError; choose a smaller model"),
        (RuntimeError("CUDA out of memory. Tried"), "memory=short: CUDA out of memory. Tried; choose a smaller"),
    ],
)
def test_what_is_a_fault(error, line, tmp_path):
    places = {"run_dir": tmp_path / "run", "data.cache_dir": tmp_path / "run" / "cache"}
    names = {"run": places["run_dir"], "cache": places["data.cache_dir"]}
    if error.args and isinstance(getattr(error, "filename", None), str):
        error.filename = error.filename.format(**names)
    wrapped = ValueError("what a library makes of it")
    wrapped.__cause__ = error
    assert str(problem_of(wrapped, places)).startswith(line.format(**names))


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (errno.ENOSPC, "file=what was being written: the disk is full; make room"),
        (errno.ENOENT, "file=the working folder: it has vanished"),
    ],
)
def test_a_file_that_nobody_has_named(number, line):
    assert str(problem_of(OSError(number, "x"), {})).startswith(line)


@pytest.mark.parametrize("error", [ValueError("x"), ConnectionResetError(errno.ECONNRESET, "x"), KeyError("a")])
def test_a_bug_is_none(error):
    with pytest.raises(type(error)), told_in_one_line({}):
        raise error


def test_the_innermost_cause_is_told():
    try:
        try:
            try:
                raise KeyError("bogus")
            except KeyError as error:
                raise ValueError("") from error
        except ValueError as error:
            raise RuntimeError("An error occurred") from error
    except RuntimeError as outer:
        assert innermost(outer) == "there is no 'bogus'"


@pytest.fixture
def small_disk(tmp_path):
    """A file system whose size can be changed."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def size(text: str, *options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={text}", *options]), "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount")

    size("700k")
    size.folder = folder
    yield size
    subprocess.run(["umount", "-R", "-l", str(folder)], capture_output=True)


def test_a_full_disk_costs_nothing_but_time(small_disk, dropping, text, tmp_path, reference, capsys):
    run = small_disk.folder / "run"
    job = compose(*settings(dropping, text, run, f"data.cache_dir={tmp_path / 'cache'}"))
    with pytest.raises(Fault, match=f"^run_dir={run}.*: the disk is full; .*; the same command then goes on$"):
        start(job, named=True)
    assert "Traceback" not in capsys.readouterr().err
    assert read_json_file(run / "summary.json")["status"] == "failed"
    assert not list(run.rglob(".*.tmp")), "what was being written is removed"
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk.folder)], check=True)
    start(job, named=True)
    assert_same(run, reference())


def test_a_log_that_can_not_be_written_hides_no_fault(small_disk):
    subprocess.run(["mount", "-o", "remount,size=8k", str(small_disk.folder)], check=True)
    with pytest.raises(Fault), logging_to(small_disk.folder / "train.log") as keep:
        keep()
        (small_disk.folder / "filling").write_bytes(b"0" * 4096)
        logging.getLogger("lightning_lm").warning("a line longer than what is left\n" * 1000)
        raise Fault()


def test_a_cache_that_gets_full(small_disk, dropping, text, tmp_path):
    subprocess.run(["mount", "-o", "remount,size=16k", str(small_disk.folder)], check=True)
    job = compose(*settings(dropping, text, tmp_path / "run", f"data.cache_dir={small_disk.folder / 'cache'}"))
    with pytest.raises(Refused, match="^data.cache_dir=.*the disk is full|^data.cache_dir=.*can't be written"):
        start(job, named=True)
    assert not (tmp_path / "run").exists()
    assert not [
        path for path in small_disk.folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".json")
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *itertools.product(["summary.json", "environment.json", "ledger.json"], ["", "{", "[1]"]),
        ("summary.json", '{"status": "finished"}'),
        ("summary.json", '{"status": 5}'),
        ("summary.json", json.dumps({"status": "finished", **dict.fromkeys(FIGURES, "many")})),
        ("environment.json", '{"options": 3}'),
    ],
)
def test_a_damaged_file_of_a_run_is_named(name, content, dropping, text, tmp_path, reference):
    run = tmp_path / "run"
    run.mkdir()
    for file in ("config.yaml", "environment.json", "ledger.json"):
        (run / file).write_bytes((reference() / file).read_bytes())
    (run / name).write_text(content)
    with pytest.raises(Refused) as refused:
        start(compose(*settings(dropping, text, run, f"data.cache_dir={reference().parent / 'cache'}")), named=True)
    (problem,) = refused.value.problems
    assert str(problem).startswith(f"file={run / name}: it is damaged: ")


@pytest.mark.parametrize("content", ["", "- a", "trainer: 3", "trainer:\n  max_steps: x"])
def test_a_damaged_config_is_one_line(content, dropping, text, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(content)
    with pytest.raises(Refused) as refused:
        start(compose(*settings(dropping, text, tmp_path / "run")), named=True)
    assert len(refused.value.problems) == 1 and "config.yaml" in str(refused.value)


@pytest.mark.parametrize(("name", "content"), [("config.yaml", "- a"), ("summary.json", "null"), ("ledger.json", "{")])
def test_with_a_damaged_file_nothing_is_pushed(name, content, reference, tmp_path):
    shutil.copytree(reference(), tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(Refused, match=f"{name}.*(damaged|is no run's)"):
        push(tmp_path / "run", "me/model", dry_run=True)


# ------------------------------------------------------------------------------------------------- models as they come


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
