"""A run's settings as a recipe: ``conf/experiment/NAME.yaml``, a small diff over the defaults."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from omegaconf import OmegaConf

from lightning_lm.config.composition import CONF, as_settings, hydra_at, options, register
from lightning_lm.config.overrides import compose
from lightning_lm.config.schema import Config
from lightning_lm.errors import refuse
from lightning_lm.runs.folder import write_text
from lightning_lm.runs.settings import config_of

NAMED = ("model", "data", "objective")  # always, as in the recipes that are shipped
NEW = {"name", "run_dir"}  # a recipe's runs have their own
AXES = [row.name for row in fields(Config) if row.name not in NEW | {"seed"}]
SEVERAL = "several"
Values = dict[str, Any]


def write_recipe(run: Path, name: str, about: str, conf: Path = CONF) -> Path:
    """Write the recipe from which ``config.yaml`` of the run comes out again, but for its name, folder and W&B group.

    Raises:
        Refused: there is another recipe of this name, or no recipe over ``conf`` gives these settings.
    """
    path = conf / "experiment" / f"{name}.yaml"
    config = config_of(run)
    config.logger.group = None  # the sweep's
    settings = as_settings(config)
    if not path.parent.is_dir() or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise refuse("--recipe", name, f"no name of a file in {path.parent}", "use letters, digits, - and _")
    exists = path.exists()
    if not exists:
        write_text(path, f"# @package _global_\n# {about}\n{as_yaml(settings, name, conf)}")
    composed = as_settings(compose(f"experiment={name}", conf=conf))
    if without(NEW, composed) == without(NEW, settings):
        return path
    if exists:
        raise refuse("--recipe", name, f"{path} holds another recipe", "give another name")
    path.unlink()
    raise refuse("--recipe", name, f"conf/ has changed since {run} was made", "check out the run's commit")


def as_yaml(settings: Values, name: str, conf: Path) -> str:
    """For each axis the option that is nearest to the settings, and the values that still differ."""
    defaults, by_option = settings_by_option(conf)
    chosen: dict[str, str] = {}
    values: Values = {"name": name} | ({"seed": settings["seed"]} if settings["seed"] else {})
    if len(settings["callbacks"]) > 1:  # a run may have several options of this axis
        several = {name: part for of_option in by_option["callbacks"].values() for name, part in of_option.items()}
        by_option["callbacks"] = {SEVERAL: {name: several[name] for name in settings["callbacks"] if name in several}}
    for axis in AXES:
        differences = {
            option: changes
            for option, of_option in by_option[axis].items()
            if settings[axis].keys() == of_option.keys()  # the same class
            and (changes := difference(settings[axis], of_option)) is not None
        }
        if not differences:
            raise refuse("--recipe", name, f"no option of {axis} can have the run's settings", "check out its commit")
        option = min(differences, key=lambda option: count(differences[option]))  # the default where there are several
        if axis in NAMED or option != defaults[axis]:
            chosen[axis] = option
        if differences[option]:
            values[axis] = differences[option]
    options_of = {axis: list(settings[axis]) if option == SEVERAL else option for axis, option in chosen.items()}
    listed = [{f"override /{axis}": option} for axis, option in options_of.items()]
    return OmegaConf.to_yaml({"defaults": listed}) + "\n" + OmegaConf.to_yaml(values)


def settings_by_option(conf: Path) -> tuple[dict[str, str], dict[str, dict[str, Values]]]:
    """Each axis's default option; and of each axis, option → its settings, the default first.

    An axis knows nothing of the others, so an option of each is composed at a time.
    """
    register()
    with hydra_at(conf) as loader:
        defaults = OmegaConf.to_container(hydra_compose("config", return_hydra_config=True).hydra.runtime.choices)
        names = {axis: sorted(options(loader, axis), key=lambda option: option != defaults[axis]) for axis in AXES}
    by_option: dict[str, dict[str, Values]] = {axis: {} for axis in AXES}
    for number in range(max(map(len, names.values()))):
        choice = {axis: of_axis[number] for axis, of_axis in names.items() if number < len(of_axis)}
        composed = as_settings(compose(*(f"{axis}={option}" for axis, option in choice.items()), conf=conf))
        for axis, option in choice.items():
            by_option[axis][option] = composed[axis]
    return defaults, by_option


def difference(settings: Values, base: Values) -> Values | None:
    """The values that turn ``base`` into the settings; None where something would have to be taken away."""
    if base.keys() - settings.keys():
        return None
    changes: Values = {}
    for key, value in settings.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            inner = difference(value, base[key])
            if inner is None:
                return None
            changes |= {key: inner} if inner else {}
        elif key not in base or value != base[key]:
            changes[key] = value
    return changes


def count(settings: Values) -> int:
    """The number of values."""
    return sum(count(value) if isinstance(value, dict) else 1 for value in settings.values())


def without(names: set[str], settings: Values) -> Values:
    return {name: value for name, value in settings.items() if name not in names}
