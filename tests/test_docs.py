"""README and docs: their commands run, or say why they can't; their settings and links are right."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from lightning_lm.arguments import parser
from lightning_lm.config.overrides import diagnose

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```", re.M | re.S)
BLOCKS = [(page, match) for page in PAGES for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]
COMMANDS = [(page, match) for page, match in BLOCKS if match["language"] == "bash"]
REASONS = ("needs ", "takes ", "sets up ")
RECIPES = {name for page in PAGES for name in re.findall(r"--recipe (\S+)", page.read_text(encoding="utf-8"))}


def commands(text: str) -> list[list[str]]:
    """The commands of a block as lists of words, without comments."""
    joined = text.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def label(block) -> str:
    page, match = block
    return f"{page.name}: {match['text'].splitlines()[0][:60]}"


def test_every_block_says_what_it_is():
    for page, match in BLOCKS:
        assert match["language"] in ("bash", "python", "yaml"), f"{page.name}: {match['text'][:80]}"
        assert match["reason"] is None or match["reason"].startswith(REASONS), match["reason"]
        if match["language"] == "python" and page.name not in ("python.md", "extending.md"):  # whose blocks are run
            assert match["reason"], f"{page.name}: {match['text'][:80]}"


def test_every_install_takes_the_versions_that_were_tested():
    installs = [
        line for page in PAGES for line in page.read_text(encoding="utf-8").splitlines() if "pip install" in line
    ]
    assert installs and all("-c constraints.txt" in line for line in installs)


def test_no_command_hides_outside_the_blocks():
    for page in PAGES:
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        hidden = re.findall(r"^ {4,}(?:python train\.py|lightning-lm|make|pip|torchrun|srun|wandb) .*", text, re.M)
        assert hidden == [], page.name


@pytest.mark.parametrize("block", COMMANDS, ids=label)
def test_settings_and_arguments_are_right(block):
    for words in commands(block[1]["text"]):
        if "train.py" in words:
            typed = words[words.index("train.py") + 1 :]
            written = {f"experiment={name}" for name in RECIPES}  # by a report
            overrides = [word for word in typed if not word.startswith("-") and word not in {"job", *written}]
            multirun = "-m" in typed or any(word.startswith(("sweep=", "hydra.sweep")) for word in typed)
            missing = [p for p in diagnose(overrides, multirun) if "no such folder" not in str(p)]
            assert missing == [], words
        elif words[0] == "lightning-lm":
            parser().parse_args(words[1:])


def test_what_stands_in_a_sentence_is_there():
    """Settings, options, commands with their flags, and targets of make, in the text around the blocks."""
    pages = [page for page in PAGES if page.name != "extending.md"]  # whose options are examples
    texts = [BLOCK.sub("", page.read_text(encoding="utf-8")) for page in pages]
    spans = {span for text in texts for span in re.findall(r"`([^`\n]+)`", text)}
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    settings = {tuple(span.split("=", 1)) for span in spans if re.fullmatch(r"[a-z_]+(\.\w+)*=.+", span)}
    options = {(name, value) for name, value in settings if name in groups and not value.isupper()}
    assert all((ROOT / "conf" / name / f"{value}.yaml").exists() for name, value in options if value != "…"), options
    unknown = [p for p in diagnose([f"{n}={v}" for n, v in settings if "." in n]) if p.wrong == "no such setting"]
    assert [problem for problem in unknown if not problem.remedy.startswith("it belongs to")] == []
    (choices,) = (action.choices for action in parser()._actions if isinstance(action.choices, dict))
    for command in (span.split()[1:] for span in spans if span.startswith("lightning-lm ")):
        flags = {word for word in command if word.startswith("--")}
        assert command[0] in choices and flags <= choices[command[0]]._option_string_actions.keys(), command
    targets = {span.split()[1] for span in spans if span.startswith("make ")}
    assert targets <= {*re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)}
    assert settings and options and targets


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_is_short():
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    assert len(text.split()) <= 1500


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project in which the quickstart has been trained, though for one step only."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("src", "conf", "train.py", "docs", "benchmarks", "pyproject.toml", "Makefile", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "conf").unlink()
    subprocess.run(["cp", "-r", str(ROOT / "conf"), str(folder)], check=True)  # a report writes a recipe there
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    done = run(folder, "python train.py experiment=quickstart debug=one_step")
    assert done.returncode == 0, done.stderr
    return folder


def run(folder: Path, text: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "WANDB_MODE": "offline", "PYTHONPATH": str(folder / "src")}
    return subprocess.run(["bash", "-e", "-c", text], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in COMMANDS if not block[1]["reason"]], ids=label)
def test_commands_run(block, project):
    done = run(project, block[1]["text"])
    assert done.returncode == 0, done.stderr[-3000:]
