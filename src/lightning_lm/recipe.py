"""A run's settings as a recipe: ``conf/experiment/NAME.yaml``, a small diff over the defaults."""

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lightning_lm.config import register, typed
from lightning_lm.errors import refuse
from lightning_lm.folder import write_text
from lightning_lm.overrides import CONF, job, options

AXES = ("model", "data", "objective", "optimizer", "scheduler", "trainer", "hardware", "logger")
NAMED = ("model", "data", "objective")  # always, as in the recipes that are shipped
NEW = {"name", "run_dir"}  # a recipe's runs have their own

Settings = dict[str, Any]


def write(run: Path, name: str, about: str, conf: Path = CONF) -> Path:
    """Write the recipe from which ``config.yaml`` of the run comes out again, but for its name, folder and W&B group.

    Raises:
        Refused: there is another recipe of this name, or no recipe over ``conf`` gives these settings.
    """
    path = conf / "experiment" / f"{name}.yaml"
    wanted = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    wanted["logger"]["group"] = None  # the sweep's
    if not path.parent.is_dir() or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise refuse("--recipe", name, f"no name of a file in {path.parent}", "use letters, digits, - and _")
    register()
    text = f"# @package _global_\n# {about}\n{as_yaml(wanted, name, conf)}"
    there = path.exists()
    if not there:
        write_text(path, text)
    given = composed(conf, f"experiment={name}")
    if {k: v for k, v in given.items() if k not in NEW} == {k: v for k, v in wanted.items() if k not in NEW}:
        return path
    if there:
        raise refuse("--recipe", name, f"{path} holds another recipe", "give another name")
    path.unlink()
    raise refuse("--recipe", name, f"conf/ has changed since {run} was made", "check out the run's commit")


def composed(conf: Path, *overrides: str) -> Settings:
    """What ``train.py`` would write to ``config.yaml``."""
    with initialize_config_dir(str(conf.absolute()), version_base="1.3"):
        cfg = compose("config", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return OmegaConf.to_container(OmegaConf.structured(typed(job(cfg))), enum_to_str=True)


def as_yaml(wanted: Settings, name: str, conf: Path) -> str:
    with initialize_config_dir(str(conf.absolute()), version_base="1.3"):
        known = {axis: options(GlobalHydra.instance().config_loader(), axis) for axis in AXES}
        standard = OmegaConf.to_container(compose("config", return_hydra_config=True).hydra.runtime.choices)
    tried = {axis: [standard[axis], *(option for option in known[axis] if option != standard[axis])] for axis in AXES}
    given = [  # an axis knows nothing of the others: an option of each at a time
        composed(conf, *(f"{axis}={names[number]}" for axis, names in tried.items() if number < len(names)))
        for number in range(max(map(len, tried.values())))
    ]
    chosen: dict[str, str] = {}
    values: Settings = {"name": name} | ({"seed": wanted["seed"]} if wanted["seed"] != given[0]["seed"] else {})
    for axis in AXES:
        rows = []
        for option, settings in zip(tried[axis], given, strict=False):
            left = diff(wanted[axis], settings[axis])
            if left is not None and wanted[axis].keys() == settings[axis].keys():  # the same schema
                rows.append((size(left), option, left))
        if not rows:
            raise refuse("--recipe", name, f"no option of {axis} can have the run's settings", "check out its commit")
        _, option, left = min(rows, key=lambda row: row[0])  # the default where there are several
        if axis in NAMED or option != standard[axis]:
            chosen[axis] = option
        if left:
            values[axis] = left
    listed = [{f"override /{axis}": option} for axis, option in chosen.items()]
    return OmegaConf.to_yaml({"defaults": listed}) + "\n" + OmegaConf.to_yaml(values)


def diff(wanted: Settings, given: Settings) -> Settings | None:
    """What turns the given settings into the wanted ones; None where something would have to be taken away."""
    if given.keys() - wanted.keys():
        return None
    left: Settings = {}
    for key, value in wanted.items():
        if isinstance(value, dict) and isinstance(given.get(key), dict):
            inner = diff(value, given[key])
            if inner is None:
                return None
            left |= {key: inner} if inner else {}
        elif key not in given or value != given[key]:
            left[key] = value
    return left


def size(settings: Settings) -> int:
    """The number of values."""
    return sum(size(value) if isinstance(value, dict) else 1 for value in settings.values())
