"""From overrides to a configuration, or to what is wrong with each of them, and what was perhaps meant."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.nodes import BooleanNode, EnumNode, FloatNode, IntegerNode, StringNode

from lightning_lm.config.composition import CONF, flat, hydra_at, options, register, schema_of, typed_job
from lightning_lm.config.schema import AXES, Config
from lightning_lm.config.validation import problems
from lightning_lm.errors import Problem, Refused, nearest

KINDS: dict[type, str] = {
    IntegerNode: "a whole number",
    FloatNode: "a number",
    BooleanNode: "true or false",
    StringNode: "text",
    ListConfig: "a list such as [a, b]",
    DictConfig: "a table such as {key: value}",
}
SEARCH = ("sweep=", "hydra.sweeper.")
ITEMS = {float: "numbers", str: "texts"}


def compose(*overrides: str, conf: Path = CONF) -> Config:
    """The configuration that ``train.py`` makes of these overrides.

    Raises:
        Refused: with all that is wrong with the overrides.
        HydraException, OmegaConfBaseException: a file in ``conf`` is wrong.
    """
    register()
    if searching := [text.partition("=") for text in overrides if text.lstrip("+").startswith(SEARCH)]:
        reason = "it is of a search, and this is a single run", "leave it out, or use python train.py"
        raise Refused(*(Problem(name, value, *reason) for name, _, value in searching))
    try:
        with hydra_at(conf):
            return typed_job(hydra_compose("config", list(overrides), return_hydra_config=True))
    except (HydraException, OmegaConfBaseException) as error:
        if wrong := diagnose(list(overrides), conf=conf):
            raise Refused(*wrong) from error
        raise


def diagnose(texts: list[str], multirun: bool = False, folder: Path | None = None, conf: Path = CONF) -> list[Problem]:
    """What is wrong with each override by itself, then with the values of those that are right.

    ``folder`` is the user's own, besides ``conf`` (Hydra's --config-dir).
    """
    wrong: list[Problem] = []
    choices: list[str] = [f"hydra.searchpath=[file://{folder.absolute()}]"] if folder else []
    settings: list[tuple[Override, Any]] = []
    with hydra_at(conf) as loader:
        for text in texts:
            try:
                override = OverridesParser.create(loader).parse_overrides([text])[0]
                values = values_of(override)
            except HydraException:
                wrong.append(unreadable(text))
                continue
            known = options(loader, override.key_or_group)
            if folder:
                known += [path.stem for path in folder.glob(f"{override.key_or_group}/*.yaml")]
            of_override = list(wrong_form(override, multirun, known) or wrong_options(override, values, known))
            wrong += of_override
            if known and not of_override:
                choices.append(f"{override.key_or_group}={values[0]}" if override.is_sweep_override() else text)
            elif not of_override:
                settings += [(override, value) for value in values]
        try:
            cfg = hydra_compose("config", choices, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException):
            return wrong
        for override, value in settings:
            wrong += setting_problems(cfg, override, value)
        # a misspelt setting must not be missed under its right name, too
        settled = {problem.setting for problem in wrong} | {problem.meant for problem in wrong}
        return wrong + [problem for problem in problems_of(cfg) if problem.setting not in settled]


def problems_of(cfg: DictConfig) -> list[Problem]:
    """What is wrong with a composed configuration that still has Hydra's own part."""
    try:
        return problems(typed_job(cfg))
    except Refused as refused:
        return list(refused.problems)


def values_of(override: Override) -> list[Any]:
    """The values that an override gives; none where it is an interval."""
    if override.is_interval_sweep():
        return []
    return list(override.sweep_iterator()) if override.is_discrete_sweep() else [override.value()]


def unreadable(text: str) -> Problem:
    name, equals, value = text.partition("=")
    if not equals:
        return Problem(text, "", "no value", f"write {text}=VALUE")
    return Problem(name, value, "can't be read", f"""quote it twice, such as '{name}="{value.strip("'")}"'""")


def wrong_form(override: Override, multirun: bool, known: list[str]) -> list[Problem]:
    """What is wrong with an override whatever its value is; ``known`` has the options where it is of a group."""
    key, text = override.key_or_group, override.input_line or ""
    if override.is_sweep_override() and not multirun:
        return [Problem(key, text.partition("=")[2], "several values", "add -m to run one job for each")]
    if override.is_delete() and not known:
        return [Problem(text, "", "a setting can't be deleted", f"give it a value: {key}=VALUE")]
    return []


def wrong_options(override: Override, values: list[Any], known: list[str]) -> Iterator[Problem]:
    """What is wrong with the options that are chosen for a group."""
    group = override.key_or_group
    where = f"; docs/extending.md shows how to add one: a class, a row, conf/{group}/NAME.yaml" if group in AXES else ""
    for value in values if known and not override.is_delete() else ():
        if override.is_add() and "/" not in group:
            yield Problem(f"+{group}", value, "this axis exists already", f"leave out the +: {group}={value}")
            continue
        for name in value if isinstance(value, list) else [value]:
            if name not in known:
                close = get_close_matches(str(name), known, n=1)
                guess = f"did you mean {group}={close[0]}? " if close else ""
                shown = "null" if name is None else name
                yield Problem(group, shown, "no such option", f"{guess}there are {', '.join(known)}{where}")


def setting_problems(cfg: DictConfig, override: Override, value: object) -> list[Problem]:
    """Put the value into ``cfg``, or say why it doesn't fit."""
    key = override.key_or_group
    adding = override.is_add() or override.is_force_add()
    if not has(cfg, key, adding):
        remedy, meant = instead(cfg, key, value)
        return [Problem(key, value, "no such setting", remedy, meant)]
    if override.is_add() and key in keys(cfg):
        return [Problem(f"+{key}", value, "this setting exists already", f"leave out the +: {key}={value}", key)]
    try:
        OmegaConf.update(cfg, key, value, force_add=adding)
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


def keys(cfg: DictConfig) -> list[str]:
    """Every setting by its full name."""
    return list(flat(OmegaConf.to_container(cfg, throw_on_missing=False)))


def instead(cfg: DictConfig, key: str, value: object) -> tuple[str, str | None]:
    """The remedy for a setting that there isn't, and the setting that was perhaps meant."""
    axis, _, rest = key.partition(".")
    for option in AXES.get(axis, ()) if rest else ():
        if has(OmegaConf.create({axis: schema_of(axis, option)}, flags={"struct": True}), key):
            return f"it belongs to {axis}={option}", key
    known = [name for name in keys(cfg) if not name.startswith("hydra.")]
    parent, _, leaf = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}
    everywhere = {name.rpartition(".")[2]: name for name in known}
    if parent and (close := get_close_matches(leaf, siblings, n=1)):
        meant = siblings[close[0]]
    elif (close := get_close_matches(key, known, n=1, cutoff=0.8)) and not siblings:
        meant = close[0]
    elif not rest and (close := get_close_matches(key, set(cfg) - {"hydra"}, n=1)):
        return f"did you mean {close[0]}={value}?", close[0]
    elif close := get_close_matches(leaf, everywhere, n=1, cutoff=0.75):
        meant = everywhere[close[0]]
    else:
        return f"{parent} has {', '.join(siblings)}" if parent and siblings else "--cfg job shows all settings", None
    return f"did you mean {meant}?", meant


def mistyped(cfg: DictConfig, key: str, value: object, error: Exception) -> Problem:
    parent, _, leaf = key.rpartition(".")
    table = OmegaConf.select(cfg, parent) if parent else cfg
    node = table._get_node(leaf) if leaf in table else None
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
