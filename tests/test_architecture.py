"""No import runs sideways or upwards: the table of levels in docs/architecture.md, against every import in ``src/``."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

from conftest import ROOT

PACKAGE = ROOT / "src" / "lightning_lm"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LEVELS = {
    name: level
    for level, names in enumerate(re.findall(r"^\| [\w ]+ \| ((?:`\w+` ?)+)\|", PAGE, re.MULTILINE))
    for name in re.findall(r"`(\w+)`", names)
}


def modules(path: Path) -> set[str]:
    """All that a file imports, lazily, by a string, or not: modules, and names in modules."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
            assert "lightning_lm" not in names, f"{path} opens every room at once"
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and re.fullmatch(r"lightning_lm(\.[a-z_]+)+", str(node.value)):
            names.add(node.value)
    return names


def imports(path: Path) -> set[str]:
    """The rooms of ours that a file imports."""
    doors = {name.split(".")[0] for name in modules(path)} & {"hydra_plugins", "train"}
    return doors | {name.split(".")[1] for name in modules(path) if name.startswith("lightning_lm.")}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_every_import_goes_down():
    files = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    assert {room(path) for path in files} == LEVELS.keys(), "the table has every room, and no other"
    for path in files:
        for target in imports(path) - {room(path)}:
            assert LEVELS.get(target, len(LEVELS)) < LEVELS[room(path)], (
                f"{path.relative_to(ROOT)} imports {target}, which isn't above it"
            )


def test_no_circle_within_a_room():
    files = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    graph = {name: modules(path) & files.keys() - {name} for name, path in files.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_core_knows_no_tool():
    tools = {"hydra_plugins", "hub", "report", "evaluation", "inference", "sweeps", "launch", "cli", "api"}
    for name in ("data", "models", "optim", "callbacks", "objectives", "config", "runs", "training"):
        for path in (PACKAGE / name).rglob("*.py"):
            assert not imports(path) & tools, path


def test_a_broken_wall_is_seen(tmp_path):
    (tmp_path / "module.py").write_text(
        "def f():\n    from lightning_lm.hub import push\n    import lightning_lm.cli\n"
        "    importlib.import_module('lightning_lm.sweeps.jobs')\n    import hydra_plugins.lightning_lm_sweeper\n"
    )
    assert imports(tmp_path / "module.py") == {"hub", "cli", "sweeps", "hydra_plugins"}
