"""From ``conf/`` and overrides to a typed configuration."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from lightning_lm.config.schema import AXES, Config
from lightning_lm.errors import Problem, Refused, nearest, refuse
from lightning_lm.models.schema import ModelConfig

CONF = Path(__file__).parents[3] / "conf"
_registered: list[tuple[str, str, type]] = []
SCHEMA = "schema_"  # what the names of the axes' schemas begin with, in the ``defaults`` lists of ``conf/``


def register() -> None:
    """Put the schemas where the ``defaults`` lists of ``conf/`` find them; once, unless a table has changed."""
    rows = [(axis, option, kind) for axis, table in AXES.items() for option, kind in table.items()]
    if rows == _registered:
        return
    _registered[:] = rows
    # Hydra copies the store for each group that --help lists; it copies what it takes from the store anyway
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]
    store = ConfigStore.instance()
    # What has several classes is left to its options; of model and scheduler, one class serves nearly all
    open_axes = dict.fromkeys(("data", "objective", "optimizer"), MISSING)
    root = OmegaConf.structured(Config(MISSING, MISSING, model=ModelConfig(), **open_axes))
    OmegaConf.set_struct(root.model.config, False)  # any field of the model's config class, without Hydra's `+`
    store.store(name="schema", node=root)
    for axis, option, _ in rows:
        store.store(group=axis, name=SCHEMA + option, node=schema_of(axis, option))
    OmegaConf.register_new_resolver("axes", list_axes, replace=True)


def schema_of(axis: str, option: str) -> DictConfig:
    """The settings that an option has, with their defaults, as they stand below the axis's name."""
    node = OmegaConf.structured(AXES[axis][option])
    if axis == "model":
        OmegaConf.set_struct(node.config, False)
    return OmegaConf.create({option: node}) if axis == "callbacks" else node


def list_axes(indent: int) -> str:
    """The axes and their options, as files in ``conf/``, for ``--help``; each axis's default is the first."""
    listed = OmegaConf.load(CONF / "config.yaml").defaults
    defaults = {str(axis): option for row in listed if isinstance(row, DictConfig) for axis, option in row.items()}
    rows = []
    for axis, default in defaults.items():
        names = sorted(path.stem for path in (CONF / axis).glob("*.yaml"))
        if names and not axis.startswith("override"):
            text = ", ".join(sorted(names, key=lambda name: name != default))
            gap = " " * 12
            rows += textwrap.wrap(
                text, 108, initial_indent=f"{axis:<12}", subsequent_indent=gap, break_on_hyphens=False
            )
    return f"\n{' ' * indent}".join(rows)


@contextmanager
def hydra_at(conf: Path = CONF) -> Iterator[ConfigLoader]:
    """Within, Hydra composes from this folder; afterwards its state is what it was before, as within a job."""
    singleton = GlobalHydra.instance()
    before, singleton.hydra = singleton.hydra, None
    try:
        with initialize_config_dir(str(conf.absolute()), version_base="1.3"):
            yield singleton.config_loader()
    finally:
        singleton.hydra = before


def typed_job(cfg: DictConfig) -> Config:
    """A job's typed configuration, of one that has Hydra's own part, too."""
    singleton = HydraConfig.instance()  # interpolations such as ${hydra:runtime.choices.model} look there
    before, singleton.cfg = singleton.cfg, None
    try:
        singleton.set_config(cfg)
        return typed(job_settings(cfg))
    finally:
        singleton.cfg = before


def options(loader: ConfigLoader, group: str) -> list[str]:
    return [name for name in loader.get_group_options(group) if not name.startswith(SCHEMA)]


def job_settings(cfg: DictConfig) -> DictConfig:
    """The composed configuration without Hydra's own part."""
    cfg = deepcopy(cfg)
    with read_write(cfg), open_dict(cfg):
        del cfg["hydra"]
    return cfg


def as_settings(config: Config) -> dict[str, Any]:
    """What stands in a run's ``config.yaml``: nested plain values."""
    settings = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    return cast(dict[str, Any], settings)


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    if not isinstance(settings, dict) or not settings:
        return {prefix: settings}
    return {k: v for name, value in settings.items() for k, v in flat(value, f"{prefix}.{name}".lstrip(".")).items()}


def typed(cfg: DictConfig) -> Config:
    """The composed configuration as nested dataclass instances, all interpolations resolved.

    Raises:
        Refused: an unknown key, a value without a default that is not given, or an interpolation that leads nowhere.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        without_default = [Problem(key, "???", "has no default", remedy_for_missing(key)) for key in missing]
        if problems := [*unknown(cfg), *without_default]:
            raise Refused(*problems)
        return cast(Config, OmegaConf.to_object(cfg))
    except OmegaConfBaseException as error:
        node = OmegaConf.to_container(cfg, resolve=False)
        for part in (error.full_key or "").split("."):
            node = node.get(part) if isinstance(node, dict) else node
        name, wrong = error.full_key or "?", str(error).splitlines()[0]
        raise refuse(name, node, wrong, "correct it or what it refers to") from None


def remedy_for_missing(key: str) -> str:
    axis, _, rest = key.partition(".")
    if axis in AXES and rest == "name":
        return f"the file in conf/{axis} must name a schema_… among its defaults, and its class must have a name"
    return f"give it: {key}=VALUE"


def unknown(cfg: DictConfig, above: str = "") -> Iterator[Problem]:
    """The keys that no schema knows: Hydra's ``+`` puts them in."""
    kind = OmegaConf.get_type(cfg)
    known = [row.name for row in fields(kind)] if is_dataclass(kind) else list(map(str, cfg))
    for key in map(str, cfg):
        if key not in known:
            yield Problem(above + key, cfg[key], "no such setting", nearest(key, known))
        elif not OmegaConf.is_missing(cfg, key) and (is_dataclass(OmegaConf.get_type(cfg, key)) or key == "callbacks"):
            yield from unknown(cfg[key], f"{above}{key}.")
