"""What RUN|MODEL and --data on the command line stand for: folders or ids of the Hub, and the settings they bring."""

from dataclasses import replace
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lightning_lm import config as schema
from lightning_lm.checks import REPOSITORY
from lightning_lm.errors import Problem, Refused, nearest, refuse
from lightning_lm.hub import go_offline_if_unreachable
from lightning_lm.memory import keep_freed_blocks

OBJECTIVES = {"clm": schema.ClmConfig, "mlm": schema.MlmConfig}
COMMANDS = {"clm": "generate or evaluate", "mlm": "fill-mask or evaluate"}
WIKITEXT = {"wikitext2": "wikitext-2-raw-v1", "wikitext103": "wikitext-103-raw-v1"}
WIKITEXT_REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
SPLITS = ["train", "validation", "test"]


def locate(name: str) -> tuple[str, schema.Config | None]:
    """The model folder or Hub id that a name stands for; of a run also its ``data`` and ``objective`` settings.

    Raises:
        Refused: it stands for neither, or for a run that has no export.
    """
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return str(path), None
    if (path / "config.yaml").is_file():
        if not (path / "export" / "config.json").is_file():
            raise refuse("run", name, "it has no export", "finish the run: the command that began it continues it")
        return str(path / "export"), settings(path)
    if path.exists():
        wrong = "neither a run's folder (it has no config.yaml) nor a model's (no config.json)"
        raise refuse("model", name, wrong, "name another")
    if looks_local(name) or not REPOSITORY.fullmatch(name):
        raise refuse("model", name or repr(name), "no such folder", "check the path, or give an id of the Hub")
    return name, None


def looks_local(name: str) -> bool:
    """Whether a name that isn't there reads like a path rather than like an id of the Hub."""
    path = Path(name)
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or (path.parent != Path() and path.parent.is_dir())


def settings(run: Path) -> schema.Config:
    """``data`` and ``objective`` of a run's ``config.yaml``, typed; nothing else is filled in."""
    try:
        saved = OmegaConf.load(run / "config.yaml")
        if "path" in saved.data:
            data = schema.HubDataConfig
        else:
            data = schema.TextDataConfig if "train" in saved.data else schema.PythonDocsDataConfig
        pairs = ((data, saved.data), (OBJECTIVES[saved.objective.name], saved.objective))
        data, objective = (OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(s), part)) for s, part in pairs)
    except (OmegaConfBaseException, YAMLError, KeyError, TypeError, AttributeError) as error:
        remedy = "name the folder of a run, or of a model"
        raise refuse("run", run, f"its config.yaml is no run's ({str(error).splitlines()[0]})", remedy) from error
    return schema.Config(data=data, objective=objective)


def open_model(name: str, objective: str | None, strict: bool, dataset: str | None = None) -> tuple[Any, ...]:
    """Model (float32, eval mode, on the GPU where there is one), tokenizer, objective, and a run's settings or None.

    Args:
        name: a run folder, a model folder, or an id of the Hub.
        objective: the one to use; None: the one that the model was trained for.
        strict: whether a model that was trained for another one is refused; a run's always is.
        dataset: a data set that may be on the Hub too.

    Raises:
        Refused: there is no such model, or it can't do the objective.
    """
    place, own = locate(name)
    if any(thing and not Path(thing).exists() for thing in (place, dataset)):
        go_offline_if_unreachable()
    if own is not None:
        told, strict = own.objective.name, True
    elif strict or objective is None:
        from lightning_lm.inference import objective_of

        told = objective_of(place)
    else:
        told = None
    if strict and None not in (told, objective) and told != objective:
        kind = {"clm": "causal", "mlm": "masked"}[told]
        raise refuse("model", name, f"it is a {kind} language model", f"use {COMMANDS[told]}, or name another model")
    if (told or objective) is None:
        raise refuse("model", name, "it doesn't tell what it was trained for", "give --objective clm or mlm")

    import torch
    from transformers.utils import logging

    from lightning_lm import build, inference

    logging.set_verbosity_error()  # what matters of a load is logged by lightning_lm.model
    logging.disable_progress_bar()
    tokenizer = inference.load_tokenizer(place)
    wanted = build.build_objective(own.objective if own else OBJECTIVES[objective or told](), tokenizer)
    model = inference.load(place, wanted, tokenizer)
    if torch.cuda.is_available():
        model.cuda()
    else:
        keep_freed_blocks()
    return model, tokenizer, wanted, own


def data_config(
    data: str | None,
    split: str,
    own: schema.DataConfig | None,
    *,
    separator: str | None = None,
    **hub: str | None,
) -> schema.DataConfig:
    """Settings of the text to evaluate on: ``data``, or else the run's own.

    Args:
        data: a path, a glob, ``python_docs``, ``wikitext2``, ``wikitext103``, or an id of the Hub.
        split: which split of it.
        own: the run's; it lends the separator and the cache.
        hub: ``text_column``, ``name`` and ``revision``, None where not given.

    Raises:
        Refused: no data is named, or an argument doesn't go with it.
    """
    given = {name: value for name, value in hub.items() if value is not None}
    common: dict[str, Any] = {n: getattr(own, n) for n in ("separator", "cache_dir", "block_size")} if own else {}
    if separator is not None:
        common["separator"] = schema.Separator(separator)
    if data is None and own is None:
        raise refuse("--data", "null", "nothing says which text to evaluate on", "give a path, a name, or a Hub id")
    if data is None or data in ("python_docs", *WIKITEXT):
        fixed = data or "the run's own data"
        _no_others(given, fixed, ())
        if data is None:
            return replace(own, **common)
        if data == "python_docs":
            return schema.PythonDocsDataConfig(**common)
        given = {"name": WIKITEXT[data], "revision": WIKITEXT_REVISION}
        return schema.HubDataConfig(path="Salesforce/wikitext", splits={split: split}, **given, **common)
    local = looks_local(data) or has_magic(data) or bool(Path(data).suffix and not REPOSITORY.fullmatch(data))
    if Path(data).expanduser().is_file() or glob(data, recursive=True) and not Path(data).is_dir() or local:
        _no_others(given, "local files", ("text_column",))
        if split not in SPLITS:
            raise refuse("--split", split, "no name for a split of local files", nearest(split, SPLITS))
        return schema.TextDataConfig(train=data, **given, **common)  # the one split that a corpus must have
    return schema.HubDataConfig(path=data, splits={split: split}, **given, **common)


def as_typed(error: Refused, split: str) -> Refused:
    """The same problems, told to someone who typed arguments and not the settings of a training run."""
    names = {f"data.{split}": "--data", "data.path": "--data", "data.text_column": "--text-column"}
    names |= {"data.splits": "--split", f"data.splits.{split}": "--split"}
    names |= {"data.name": "--name", "data.revision": "--revision"}
    return Refused(*(replace(p, setting=names.get(p.setting, p.setting)) for p in error.problems))


def _no_others(given: dict[str, str], what: str, fitting: tuple[str, ...]) -> None:
    others = [name for name in given if name not in fitting]
    if others:
        wrong = f"says nothing about {what}"
        raise Refused(*(Problem(f"--{n.replace('_', '-')}", given[n], wrong, "leave it out") for n in others))
