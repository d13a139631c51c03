"""The settings of a run, as its folder keeps them, and whether a command may go on in the folder."""

import logging
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from lightning_lm.config.composition import as_settings, flat
from lightning_lm.config.schema import AXES, Config, chosen
from lightning_lm.constraints import default_of, walk
from lightning_lm.errors import Problem, Refused, refuse
from lightning_lm.faults import first_line
from lightning_lm.runs.folder import LOCK, is_finished, read_json_file

log = logging.getLogger(__name__)
UNREADABLE = (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError, KeyError, TypeError, AttributeError)
ANOTHER = "choose another run_dir"
# OmegaConf's rules, by which 1e-5 is a number, too; by libyaml, where it is there, which is many times as fast
LOADER = type(
    "Loader",
    (getattr(yaml, "CSafeLoader", yaml.SafeLoader),),
    {"yaml_implicit_resolvers": get_yaml_loader().yaml_implicit_resolvers},
)


def read_settings(run: Path) -> dict[str, Any]:
    """``config.yaml`` as nested plain values; raises one of ``UNREADABLE`` where it isn't what it should be."""
    settings = yaml.load((run / "config.yaml").read_text(encoding="utf-8"), LOADER)
    if not isinstance(settings, dict) or not settings:
        raise ValueError("it holds no settings")
    for name, part in settings.items():
        if is_dataclass(getattr(Config(), name, None)) and not isinstance(part, dict):
            raise ValueError(f"{name} holds no settings")
    return settings


def _no_run(run: Path, error: Exception) -> Refused:
    if isinstance(error, FileNotFoundError):
        return refuse("run", run, "it has no config.yaml", "name the folder of a run")
    # What YAML tells first is the place
    reason = getattr(error, "problem", None) or first_line(error) or type(error).__name__
    return refuse("run", run, f"its config.yaml is no run's ({reason})", "name the folder of a run, or of a model")


# ------------------------------------------------------------------------------------------------- typed settings


def part_of(run: Path, axis: str) -> Any:
    """An axis's settings of a run, as an object of its option's class.

    Raises:
        Refused: its folder doesn't hold them, or the option is none of those that there are.
    """
    try:
        saved = read_settings(run)[axis]
        option = ((read_json_file(run / "environment.json") or {}).get("options") or {}).get(axis)
        if option is not None and option not in AXES[axis]:
            raise refuse("run", run, f"it used {axis}={option}, which isn't there now", "check out the run's commit")
        kind = AXES[axis][option] if option else _fitting_class(axis, saved)
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), _before(kind), saved))
    except UNREADABLE as error:
        raise _no_run(run, error) from error


def _before(kind: Any) -> dict[str, Any]:
    """Setting → the value that stands for it in a folder from before it existed."""
    return {row.name: row.metadata["before"] for row in fields(kind) if "before" in row.metadata}


def _fitting_class(axis: str, saved: dict[str, Any]) -> type:
    """For a folder from before options were noted: the one class that has the saved keys, and the fewest others."""
    others = {
        kind: {row.name for row in fields(kind)} - saved.keys()
        for kind in AXES[axis].values()
        if saved.keys() <= {row.name for row in fields(kind)}
    }
    fewest = [kind for kind, names in others.items() if len(names) == min(map(len, others.values()))]
    if len(fewest) != 1:
        raise ValueError(f"{len(fewest)} options of {axis} have the settings {', '.join(saved)}")
    return fewest[0]


def config_of(run: Path) -> Config:
    """All settings of a run.

    Raises:
        Refused: its folder doesn't hold them.
    """
    try:
        saved = read_settings(run)
        axes = {axis: part_of(run, axis) for axis in AXES if axis in saved and axis != "callbacks"}
        callbacks = {
            name: OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(AXES["callbacks"][name]), part))
            for name, part in (saved.get("callbacks") or {}).items()
        }
        common = OmegaConf.structured(Config())
        for name in saved.keys() - AXES.keys():
            part = getattr(Config(), name, None)
            OmegaConf.update(common, name, _before(part) | saved[name] if is_dataclass(part) else saved[name])
        config: Config = OmegaConf.to_object(common)
    except UNREADABLE as error:
        raise _no_run(run, error) from error
    for name, part in {**axes, "callbacks": callbacks}.items():
        setattr(config, name, part)
    return config


# ------------------------------------------------------------------------------------------ going on in a folder


def same_settings(run: Path, config: Config) -> None:
    """Check that a folder's ``config.yaml``, if it has one, asks for the same outcome.

    A setting that has come since the run began, and is left at its default, takes in ``config`` the value that does
    what the code did then.

    Raises:
        Refused: for each setting that differs, unless it only lets the run end later; or the path isn't a folder for
            runs.
    """
    if not (run / "config.yaml").exists():
        if run.exists() and any(child.name not in ("train.log", "trial.json", LOCK) for child in run.iterdir()):
            raise refuse("run_dir", run, "the folder isn't empty and holds no run", "choose a new one")
        return
    there, marked = flat(_completed(_saved(run), config)), [row for row in walk(config) if "before" in row[1].metadata]
    so_begun = {name for name, row, _ in marked if there.get(name) == row.metadata["before"]}
    for name, value in take_before(config, so_begun).items():
        log.info("%s=%s: the run began so, and goes on so", name, value)
    changes = _changes(run, config)
    free = (*later_ends(run, config), *(name for name, row, _ in walk(config) if row.metadata.get("may_change")))
    differing = [name for name in changes if name not in free and not name.startswith(tuple(f"{f}." for f in free))]
    differing = [name for name in differing if not any(other.startswith(f"{name}.") for other in differing)]
    pairs = {name: changes[name] for name in differing} | (options := _other_options(run, config))
    pairs = {name: pair for name, pair in pairs.items() if name in options or name.partition(".")[0] not in options}
    if pairs:
        raise Refused(
            *(
                Problem(n, now, f"{run} holds a run with {'null' if then is None else then}", ANOTHER)
                for n, (then, now) in pairs.items()
            )
        )


def later_ends(run: Path, config: Config) -> list[str]:
    """The settings that let a folder's run end later than its ``config.yaml`` says."""
    if not (run / "config.yaml").exists():
        return []
    ends = [name for name, row, _ in walk(config) if row.metadata.get("may_grow")]
    changes = {name: pair for name, pair in _changes(run, config).items() if name in ends}
    changes = {name: pair for name, pair in changes.items() if all(isinstance(end, int | float) for end in pair)}
    return [name for name, (before, now) in changes.items() if now > before]


def is_done(run: Path, config: Config) -> bool:
    """Whether a run is finished, and is to end no later."""
    return is_finished(run) and not later_ends(run, config)


def _changes(run: Path, config: Config) -> dict[str, tuple[Any, Any]]:
    """Setting → its value in a folder's ``config.yaml`` and its value now, where they differ."""
    there, now = flat(_completed(_saved(run), config)), flat(as_settings(config))
    pairs = {name: (there.get(name), now.get(name)) for name in sorted({*there, *now})}
    return {name: (before, after) for name, (before, after) in pairs.items() if before != after}


def _saved(run: Path) -> dict[str, Any]:
    try:
        settings = read_settings(run)
    except UNREADABLE as error:
        raise refuse("run_dir", run, "its config.yaml can't be read", ANOTHER) from error
    if missing := {"model", "data", "objective", "optimizer", "trainer"} - settings.keys():
        raise refuse("run_dir", run, f"its config.yaml has no {', '.join(sorted(missing))}", ANOTHER)
    return settings


def take_before(config: Config, names: set[str]) -> dict[str, Any]:
    """Give these settings, where they have the default of today, the value that does what the code did before them.

    Returns those that were changed, and their new values.
    """
    changed = {}
    for name, row, value in list(walk(config)):
        if name in names and value == row.default:
            *path, last = name.split(".")
            owner: Any = config
            for key in path:
                owner = owner[key] if isinstance(owner, dict) else getattr(owner, key)
            changed[name] = row.metadata["before"]
            setattr(owner, last, changed[name])
    return changed


def _completed(saved: dict[str, Any], config: Any) -> dict[str, Any]:
    """The saved settings, and of those that have come since, the values that do what the code did before them."""
    complete = dict(saved)
    for row in fields(config):
        part = getattr(config, row.name)
        if row.name not in saved:
            complete[row.name] = OmegaConf.to_container(OmegaConf.create({"": default_of(row)}), enum_to_str=True)[""]
        else:
            complete[row.name] = _completed_part(saved[row.name], part)
    return complete


def _completed_part(saved: Any, part: Any) -> Any:
    """The same for a value: settings, or a list or dictionary of them."""
    if is_dataclass(part) and isinstance(saved, dict):
        return _completed(saved, part)
    if isinstance(part, dict) and isinstance(saved, dict):
        return {key: _completed_part(value, part.get(key)) for key, value in saved.items()}
    if isinstance(part, list) and isinstance(saved, list) and len(part) == len(saved):
        return [_completed_part(*pair) for pair in zip(saved, part, strict=True)]
    return saved


def _other_options(run: Path, config: Config) -> dict[str, tuple[str, str]]:
    """Axis → the option that the folder's run has and the one that is asked for, where they differ."""
    of_folder = {"callbacks": list(_saved(run).get("callbacks") or {})}
    of_folder |= (read_json_file(run / "environment.json") or {}).get("options") or {}
    pairs = {axis: (of_folder.get(axis, option), option) for axis, option in chosen(config).items()}
    return {axis: (_typed(then), _typed(now)) for axis, (then, now) in pairs.items() if then != now}


def _typed(option: Any) -> str:
    """An axis's option, or several, as they are typed."""
    return f"[{','.join(option)}]" if isinstance(option, list) and len(option) > 1 else "".join(option or ["none"])


def same_text(run: Path, ledger: dict[str, dict[str, Any]]) -> None:
    """Check that a folder's ledger, if it has one, is about the same tokens.

    Raises:
        Refused: for each split whose text or tokenizer is another.
    """
    there = read_json_file(run / "ledger.json") or ledger
    differing = [split for split in sorted({*there, *ledger}) if there.get(split) != ledger.get(split)]
    if differing:
        wrong = f"{run} holds a run on other text, or with another tokenizer"
        keys = {split: ledger.get(split, {}).get("key") for split in differing}
        raise Refused(*(Problem(f"data.{split}", keys[split], wrong, ANOTHER) for split in differing))
