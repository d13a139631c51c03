"""The package's ``compose`` at a sixth of its cost: ``conf/`` is merged once for each choice of options."""

import functools
import re
from copy import deepcopy
from typing import Any

from hydra import compose as hydra_compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_lm.config import overrides
from lightning_lm.config.composition import CONF, hydra_at, register, typed_job
from lightning_lm.config.schema import AXES, Config
from lightning_lm.errors import Refused

AXIS = re.compile(rf"({'|'.join(path.name for path in CONF.iterdir() if path.is_dir())})=")
PLAIN = re.compile(r"(?!sweep=|hydra)[\w.]+=")


@functools.cache
def merged(choices: tuple[str, ...], options: tuple) -> DictConfig:
    """``options`` are those of the axes, of which a test may put in others."""
    register()
    with hydra_at():
        return hydra_compose("config", list(choices), return_hydra_config=True)


def compose(*texts: str, **more: Any) -> Config:
    """Values are put in as Hydra puts them in; whatever is unusual or wrong is left to the package's own function."""
    if more or not all(map(PLAIN.match, texts)):
        return overrides.compose(*texts, **more)
    try:
        options = tuple(option for table in AXES.values() for option in table.items())
        cfg = deepcopy(merged(tuple(filter(AXIS.match, texts)), options))
        values = [text for text in texts if not AXIS.match(text)]
        for override in OverridesParser.create().parse_overrides(values):
            OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
        return typed_job(cfg)
    except (HydraException, OmegaConfBaseException, Refused):
        return overrides.compose(*texts)
