"""Keys, tokens and passwords of the environment reach no file of a run, no card, no record of W&B."""

import logging
import os
import subprocess
import sys

from conftest import compose
from wandb_offline import fresh_wandb, no_account, parts, settings  # noqa: F401

from lightning_lm import cli
from lightning_lm.launch import start
from lightning_lm.logs import logging_to

NAMES = """
HF_TOKEN HUGGING_FACE_HUB_TOKEN WANDB_API_KEY OPENAI_API_KEY ANTHROPIC_API_KEY AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN
GITHUB_TOKEN COMET_API_KEY KAGGLE_KEY PASSWORD
"""
SECRETS = {name: f"{number:02}{'5ec2e7' * 7}"[:40] for number, name in enumerate(NAMES.split())}
URLS = {
    "HTTPS_PROXY": "http://me:5ec2e7word@proxy.invalid:3128",
    "DATABASE_URL": "postgres://me:5ec2e7word@db.invalid/runs",
    "MIRROR_URL": "https://me:5ec2e7word@mirror.invalid/packages",
}


def test_planted_secrets_are_nowhere(tiny_gpt2, text, tmp_path, monkeypatch, no_account, fresh_wandb, capfd):  # noqa: F811
    for name, value in {**SECRETS, **URLS, "WANDB_MODE": "offline", "XDG_CACHE_HOME": str(tmp_path / "xdg")}.items():
        monkeypatch.setenv(name, value)
    run, mask = tmp_path / "run", os.umask(0)
    os.umask(mask)
    start(compose(*settings(tiny_gpt2, text, run, f"data.cache_dir={tmp_path / 'cache'}")), named=True)
    assert cli.main(["evaluate", str(run), "--json", str(tmp_path / "figures.json")]) == 0
    assert cli.main(["push", str(run), "--repo", "me/model", "--dry-run"]) == 0
    (part,) = parts(run)
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(part)]
    (tmp_path / "records").write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    files = [path for folder in (tmp_path, no_account) for path in folder.rglob("*") if path.is_file()]
    assert {"README.md", "config.yaml", "environment.json", "last.ckpt", "records"} <= {path.name for path in files}
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if b"5ec2e7" in path.read_bytes()] == []
    assert "5ec2e7" not in "".join(capfd.readouterr())
    ours = [path for path in run.rglob("*") if "wandb" not in path.parts]
    assert {path: oct(path.stat().st_mode & 0o777) for path in ours if path.name != ".lock"} == {
        path: oct((0o777 if path.is_dir() else 0o666) & ~mask) for path in ours if path.name != ".lock"
    }


def test_what_a_terminal_would_obey_is_shown(tmp_path, capsys, monkeypatch):
    """By the control functions of ECMA-48, as a model writes them that was trained on bytes."""
    text, shown = "a\x1b[2J\x07\x7f\x9bb\x00\rc\u200b\n\té", "a\\x1b[2J\\x07\\x7f\\x9bb\\x00\\x0dc\u200b\n\té"
    with logging_to(tmp_path / "train.log") as keep:
        keep()
        logging.getLogger("lightning_lm").info("%s", text)
    assert capsys.readouterr().err == f"{shown}\n" and shown in (tmp_path / "train.log").read_text()
    with cli.log_to_stderr():
        logging.getLogger("lightning_lm").info("%s", text)
    assert shown in capsys.readouterr().err
    assert cli.main(["report", "a\x1b[2J"]) == 2 and "a\\x1b[2J" in capsys.readouterr().err
    for terminal in (True, False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        cli.print_text(text)
        assert capsys.readouterr().out == (shown if terminal else text)


def test_a_password_in_a_url_is_not_logged(tmp_path, capsys):
    """Such as the one in a mirror's address, which messages and other libraries' errors hold."""
    with logging_to(tmp_path / "train.log") as keep:
        keep()
        try:
            raise OSError("https://me:5ec2e7@mirror.invalid/a can't be reached, nor http://5ec2e7@b")
        except OSError as error:
            logging.getLogger("lightning_lm").warning("%s", error, exc_info=error)
    for told in ((tmp_path / "train.log").read_text(), capsys.readouterr().err):
        assert "5ec2e7" not in told and "https://…@mirror.invalid/a can't be reached, nor http://…@b" in told
