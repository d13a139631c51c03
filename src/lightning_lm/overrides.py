"""What is wrong with each override of a command line, and what was perhaps meant."""

import re
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from omegaconf.nodes import BooleanNode, EnumNode, FloatNode, IntegerNode, StringNode

from lightning_lm.checks import problems
from lightning_lm.config import typed
from lightning_lm.errors import Problem, Refused, nearest

CONF = Path(__file__).parents[2] / "conf"
KINDS = {IntegerNode: "a whole number", FloatNode: "a number", BooleanNode: "true or false", StringNode: "text"}
KINDS |= {ListConfig: "a list such as [a, b]", DictConfig: "a table such as {key: value}"}
ITEMS = {float: "numbers", str: "texts"}


def diagnose(texts: list[str], multirun: bool = False, folder: Path | None = None) -> list[Problem]:
    """What is wrong with each override by itself, then with the values of those that are right.

    ``folder`` is the user's own, besides ``conf/`` (Hydra's --config-dir).
    """
    found: list[Problem] = []
    choices: list[str] = [f"hydra.searchpath=[file://{folder.absolute()}]"] if folder else []
    values: list[tuple[Override, object]] = []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        for text in texts:
            try:
                override = OverridesParser.create(loader).parse_overrides([text])[0]
                given = list(override.sweep_iterator()) if override.is_discrete_sweep() else [override.value()]
            except HydraException:
                found.append(unreadable(text))
                continue
            key = override.key_or_group
            known = options(loader, key)
            if folder:
                known += [path.stem for path in folder.glob(f"{key}/*.yaml")]
            if override.is_sweep_override() and not multirun:
                found.append(Problem(key, text.partition("=")[2], "several values", "add -m to run one job for each"))
            elif known and override.is_delete():
                choices.append(text)
            elif known:
                wrong = [problem for value in given for problem in choice(override, value, known)]
                found += wrong
                choices += [] if wrong else [f"{key}={given[0]}" if override.is_sweep_override() else text]
            elif override.is_delete() and not known:
                found.append(Problem(text, "", "a setting can't be deleted", f"give it a value: {key}=VALUE"))
            elif not override.is_interval_sweep():
                values += [(override, value) for value in given]
        try:
            cfg = compose("config", choices, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException):
            return found
        for override, value in values:
            found += setting(cfg, override, value, loader)
        told = " ".join(map(str, found))  # a misspelt setting must not be missed under its right name, too
        return found + [p for p in of_values(cfg) if not re.search(rf"(?<![\w.]){re.escape(p.setting)}(?![\w.])", told)]


def unreadable(text: str) -> Problem:
    name, equals, value = text.partition("=")
    if not equals:
        return Problem(text, "", "no value", f"write {text}=VALUE")
    return Problem(name, value, "can't be read", f"""quote it twice, such as '{name}="{value.strip("'")}"'""")


def options(loader: ConfigLoader, group: str) -> list[str]:
    return [name for name in loader.get_group_options(group) if not name.startswith("schema_")]


def choice(override: Override, value: object, known: list[str]) -> list[Problem]:
    """What is wrong with the option that is chosen for a group, or with the options."""
    group, names = override.key_or_group, value if isinstance(value, list) else [value]
    if override.is_add() and "/" not in group:
        return [Problem(f"+{group}", value, "this axis exists already", f"leave out the +: {group}={value}")]
    found = []
    for name in names:
        if name not in known:
            close = get_close_matches(str(name), known, n=1)
            guess = f"did you mean {group}={close[0]}? " if close else ""
            name = "null" if name is None else name
            found.append(Problem(group, name, "no such option", f"{guess}there are {', '.join(known)}"))
    return found


def setting(cfg: DictConfig, override: Override, value: object, loader: ConfigLoader) -> list[Problem]:
    """Put the value into ``cfg``, or say why it doesn't fit."""
    key = override.key_or_group
    if not has(cfg, key, override.is_add() or override.is_force_add()):
        return [Problem(key, value, "no such setting", instead(cfg, key, value, loader))]
    if override.is_add() and key in keys(cfg):
        return [Problem(f"+{key}", value, "this setting exists already", f"leave out the +: {key}={value}")]
    try:
        OmegaConf.update(cfg, key, value, force_add=override.is_add() or override.is_force_add())
    except OmegaConfBaseException as error:
        return [mistyped(cfg, key, value, error)]
    return []


def has(cfg: DictConfig, key: str, adding: bool = False) -> bool:
    """Whether there is this setting, or a table that takes it (model.config takes any name without a plus)."""
    known = keys(cfg)
    if key in known or any(name.startswith(key + ".") for name in known):
        return True
    parent = OmegaConf.select(cfg, key.rpartition(".")[0], throw_on_missing=False) if "." in key else cfg
    table = isinstance(parent, DictConfig) and OmegaConf.get_type(parent) is dict
    return table and (adding or not OmegaConf.is_struct(parent))


def keys(cfg: DictConfig, above: str = "") -> list[str]:
    """Every setting by its full name."""
    found = []
    for name in cfg:
        node = cfg._get_node(name)
        inner = isinstance(node, DictConfig) and not node._is_none() and not node._is_missing() and len(node)
        found += keys(node, f"{above}{name}.") if inner else [f"{above}{name}"]
    return found


def instead(cfg: DictConfig, key: str, value: object, loader: ConfigLoader) -> str:
    """The setting that was perhaps meant."""
    axis, _, rest = key.partition(".")
    store = ConfigStore.instance()
    for schema in loader.get_group_options(axis) if rest else []:
        if not schema.startswith("schema_"):
            continue
        node = store.load(f"{axis}/{schema}.yaml").node
        if has(OmegaConf.create({axis: node}, flags={"struct": True}), key):
            return f"it belongs to {axis}={schema.removeprefix('schema_')}"
    known = [name for name in keys(cfg) if not name.startswith("hydra.")]
    parent, _, leaf = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}
    everywhere = {name.rpartition(".")[2]: name for name in known}
    if parent and (close := get_close_matches(leaf, siblings, n=1)):
        return f"did you mean {siblings[close[0]]}?"
    if (close := get_close_matches(key, known, n=1, cutoff=0.8)) and not siblings:
        return f"did you mean {close[0]}?"
    if not rest and (close := get_close_matches(key, set(cfg) - {"hydra"}, n=1)):
        return f"did you mean {close[0]}={value}?"
    if close := get_close_matches(leaf, everywhere, n=1, cutoff=0.75):
        return f"did you mean {everywhere[close[0]]}?"
    return f"{parent} has {', '.join(siblings)}" if parent and siblings else "--cfg job shows all settings"


def mistyped(cfg: DictConfig, key: str, value: object, error: Exception) -> Problem:
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(cfg, parent)._get_node(leaf) if parent else cfg._get_node(leaf)
    if value is None:
        return Problem(key, "null", "must have a value", f"leave it out for the default, {node}")
    if isinstance(node, EnumNode):
        return Problem(key, value, "no such choice", nearest(str(value), [kind.name for kind in node.enum_type]))
    if isinstance(node, ListConfig) and isinstance(value, list):
        items = ITEMS.get(node._metadata.element_type, "rows such as {ndim: 2, decay: false}")
        return Problem(key, value, f"not a list of {items}", "correct the items")
    if isinstance(node, DictConfig) and isinstance(value, dict):
        return Problem(key, value, "a wrong key or item", f"its keys are {', '.join(node)}")
    if kind := KINDS.get(type(node)):
        return Problem(key, value, f"not {kind}", f"give {kind}")
    return Problem(key, value, str(error).splitlines()[0], "correct it")


def of_values(cfg: DictConfig) -> list[Problem]:
    HydraConfig.instance().set_config(cfg)
    try:
        return problems(typed(job(cfg)))
    except Refused as refused:
        return list(refused.problems)


def job(cfg: DictConfig) -> DictConfig:
    """The composed configuration without Hydra's own part."""
    cfg = deepcopy(cfg)
    with read_write(cfg), open_dict(cfg):
        del cfg["hydra"]
    return cfg
