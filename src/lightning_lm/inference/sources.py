"""What RUN|MODEL and --data on the command line stand for: folders or ids of the Hub, and the settings they bring."""

import logging
from dataclasses import dataclass, replace
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from lightning_lm.allocator import keep_freed_blocks
from lightning_lm.config.composition import CONF
from lightning_lm.config.overrides import compose
from lightning_lm.config.schema import Config
from lightning_lm.constraints import REPOSITORY, looks_local
from lightning_lm.data.schema import SPLITS, DataConfig, HubDataConfig, Prefix, Separator, TextDataConfig
from lightning_lm.errors import EXPORT_AGAIN, Problem, Refused, nearest, refuse
from lightning_lm.faults import innermost
from lightning_lm.files import export_damage
from lightning_lm.hub.access import go_offline_if_unreachable, in_cache, not_at_hand
from lightning_lm.objectives.facts import MASKED_SHIFT
from lightning_lm.objectives.schema import OBJECTIVES
from lightning_lm.runs.folder import why_unfinished
from lightning_lm.runs.settings import part_of

log = logging.getLogger(__name__)


@dataclass
class OpenedModel:
    """A trained model at hand, in eval mode."""

    model: Any  # of transformers
    tokenizer: Any
    objective: Any
    place: str  # the model's folder, or its id on the Hub


def locate(name: str) -> tuple[str, Config | None]:
    """The model folder or Hub id that a name stands for; of a run also its ``data`` and ``objective`` settings.

    Raises:
        Refused: it stands for neither, or for a run that has no export; or the Hub can't be reached, and its cache
            does not have it.
    """
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        if path.resolve().name == "export" and (wrong := export_damage(path.resolve().parent)):
            raise refuse("model", name, wrong, EXPORT_AGAIN)
        return str(path), None
    if (path / "config.yaml").is_file():
        if not (path / "export" / "config.json").is_file():
            finish = "finish the run: the command that began it continues it"
            raise refuse("run", name, "it has no export", finish if why_unfinished(path) else EXPORT_AGAIN)
        if wrong := export_damage(path):
            raise refuse("run", name, f"its export: {wrong}", EXPORT_AGAIN)
        return str(path / "export"), Config(data=part_of(path, "data"), objective=part_of(path, "objective"))
    if path.exists():
        wrong = "neither a run's folder (it has no config.yaml) nor a model's (no config.json)"
        raise refuse("model", name, wrong, "name another")
    if _reads_like_a_path(name) or not REPOSITORY.fullmatch(name):
        raise refuse("model", name or repr(name), "no such folder", "check the path, or give an id of the Hub")
    if not go_offline_if_unreachable() and not in_cache(name):
        wrong = f"no such folder; as an id of the Hub {not_at_hand()}"
        raise refuse("model", name, wrong, "give a run or model folder")
    return name, None


def trained_for(place: str, run: Config | None) -> str | None:
    """The name of the objective that a model was trained for; None where it tells none. Arguments as from ``locate``.

    Raises:
        Refused: there is no such model.
    """
    if run is not None:
        return run.objective.name
    from lightning_lm.inference.loading import objective_of

    return objective_of(place)


def open_model(
    name: str,
    objective: str | None,
    *,
    strict: bool,
    dataset: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    **masking: Any,
) -> OpenedModel:
    """Load the model that a name stands for.

    Args:
        name: a run folder, a model folder, or an id of the Hub.
        objective: the one to use; None: the one that the model was trained for.
        strict: whether a model that was trained for another one is refused; a run's always is.
        dataset: a data set that may be on the Hub too.
        device: where the model goes; None: on the GPU where there is one.
        dtype: of its weights; None: float32.
        masking: settings of masked language modelling, where they shall be others than the model's own.

    Raises:
        Refused: there is no such model, or it can't do the objective.
    """
    place, run = locate(name)
    if run and (status := why_unfinished(Path(place).parent)):
        log.warning("%s: the run is %s, and its export is of an earlier end", name, status)
    if dataset and not Path(dataset).exists():
        go_offline_if_unreachable()
    strict = strict or run is not None
    trained_objective = trained_for(place, run) if strict or objective is None else None
    kinds = {name: OBJECTIVES[name].facts.kind for name in (trained_objective, objective) if name is not None}
    uses = run.objective.uses if run else {}
    if strict and len(set(kinds.values())) > 1 and objective not in uses:
        facts = OBJECTIVES[trained_objective].facts
        wrong, remedy = (
            f"it is a {facts.kind} language model",
            f"use {facts.command[0]} or evaluate, or name another model",
        )
        raise refuse("model", name, wrong, remedy)
    if (trained_objective or objective) is None:
        raise refuse("model", name, "it doesn't tell what it was trained for", "give --objective clm or mlm")

    import torch
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from lightning_lm.inference.loading import load_trained_model, load_trained_tokenizer

    set_verbosity_error()  # what matters of a load is logged by lightning_lm.models.loading
    disable_progress_bar()
    tokenizer = load_trained_tokenizer(place)
    chosen = objective or trained_objective
    settings = uses[chosen] if chosen in uses else OBJECTIVES[chosen]()
    for option in masking:
        if not hasattr(settings, option):
            wrong = f"a {settings.facts.kind} model has no masks"
            raise refuse(f"--{option.replace('_', '-')}", masking[option], wrong, "leave it out")
    built = replace(settings, **masking).build(tokenizer)
    model = load_trained_model(place, built, tokenizer)
    if built.facts.kind == "masked":
        built.shift = getattr(model.config, MASKED_SHIFT, built.shift)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model.to(device, getattr(torch, dtype or "float32"))
    except (RuntimeError, AssertionError) as error:  # no such device, as torch says it
        raise refuse("--device", device, innermost(error), "give cpu, cuda, or cuda:N") from error
    if device == "cpu":
        keep_freed_blocks()
    return OpenedModel(model, tokenizer, built, place)


def data_config(
    data: str | None,
    split: str,
    own: DataConfig | None,
    *,
    separator: str | None = None,
    documents: bool | None = None,
    prefix: str | None = None,
    cache_dir: str | None = None,
    **hub: str | None,
) -> DataConfig:
    """Settings of the text to evaluate on: ``data``, or else the run's own.

    Args:
        data: a path, a glob, an option of ``conf/data`` that is complete, such as ``wikitext2``, or an id of the Hub.
        split: which split of it.
        own: the run's; it lends how its text is prepared, and the cache.
        separator: between rows; None: the run's, or the default, as of those that follow.
        documents: whether windows stay inside documents.
        prefix: what is put before each document then.
        cache_dir: where its tokens are kept.
        hub: ``text_column``, ``name`` and ``revision``, None where not given.

    Raises:
        Refused: no data is named, or an argument doesn't go with it.
    """
    given = {name: value for name, value in hub.items() if value is not None}
    lent = ("separator", "documents", "prefix", "cache_dir", "block_size")
    common: dict[str, Any] = {name: getattr(own, name) for name in lent} if own else {}
    for name, value, choices in (("separator", separator, Separator), ("prefix", prefix, Prefix)):
        if value is not None:
            if value not in list(choices):
                raise refuse(f"--{name}", value, "no such choice", nearest(value, list(choices)))
            common[name] = choices(value)
    if documents is not None:
        common["documents"] = documents
    if cache_dir is not None:
        common["cache_dir"] = cache_dir
    if prefix is not None and not common.get("documents"):
        raise refuse("--prefix", prefix, "nothing stands before a stream", "give --documents, too")
    if data is None and own is None:
        raise refuse("--data", "", "nothing says which text to evaluate on", "give a path, a name, or a Hub id")
    if data is None:
        _no_others(given, "the run's own data", ())
        return replace(own, **common)
    if data in {path.stem for path in (CONF / "data").glob("*.yaml")}:
        option = replace(compose(f"data={data}").data, **common)
        if not list(option.problems()):  # others, such as text and hub, need more settings
            _no_others(given, data, ())
            return replace(option, splits={split: split}) if isinstance(option, HubDataConfig) else option
    local = _reads_like_a_path(data) or has_magic(data) or bool(Path(data).suffix and not REPOSITORY.fullmatch(data))
    if Path(data).expanduser().is_file() or glob(data, recursive=True) and not Path(data).is_dir() or local:
        _no_others(given, "local files", ("text_column",))
        if split not in SPLITS:
            raise refuse("--split", split, "no name for a split of local files", nearest(split, list(SPLITS)))
        return TextDataConfig(train=data, **given, **common)  # the one split that a corpus must have
    return HubDataConfig(path=data, splits={split: split}, **given, **common)


def as_typed(error: Refused, split: str) -> Refused:
    """The same problems, told to someone who typed arguments and not the settings of a training run."""
    names = {f"data.{split}": "--data", "data.path": "--data", "data.text_column": "--text-column"}
    names |= {"data.splits": "--split", f"data.splits.{split}": "--split"}
    names |= {"data.prefix": "--prefix", "data.name": "--name", "data.revision": "--revision"}
    return Refused(*(replace(p, setting=names.get(p.setting, p.setting)) for p in error.problems))


def _reads_like_a_path(name: str) -> bool:
    parent = Path(name).parent
    return looks_local(name) or (parent != Path() and parent.is_dir())


def _no_others(given: dict[str, str], text: str, fitting: tuple[str, ...]) -> None:
    others = [name for name in given if name not in fitting]
    if others:
        wrong = f"says nothing about {text}"
        raise Refused(*(Problem(f"--{n.replace('_', '-')}", given[n], wrong, "leave it out") for n in others))
