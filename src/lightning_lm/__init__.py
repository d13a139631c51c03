"""Train, evaluate and publish causal and masked language models. ``import lightning_lm as lm``; see docs/python.md.

Names are imported when they are first used (PEP 562), so that the command line's ``--help`` waits for nothing heavy.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "compose": "config.overrides",
    "Config": "config.schema",
    "Refused": "errors",
    "train": "api",
    "load_run": "api",
    "Run": "api",
    "evaluate": "evaluation.scoring",
    "text_corpus": "data.corpora.text_files",
    "TextDataModule": "data.datamodule",
    "Clm": "objectives.clm",
    "Mlm": "objectives.mlm",
    "LanguageModel": "training.module",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
