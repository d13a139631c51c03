"""The model card: what a run's own files say about the model that came out of it."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lightning_lm import figures
from lightning_lm.constraints import is_hub_id
from lightning_lm.figures import SPLITS
from lightning_lm.objectives.facts import MASKED_SHIFT, ObjectiveFacts
from lightning_lm.objectives.schema import OBJECTIVES
from lightning_lm.runs.folder import read_json_file
from lightning_lm.runs.protocol import as_line
from lightning_lm.runs.settings import read_settings
from lightning_lm.runs.summary import notes

SECTIONS = ("model", "data", "objective", "optimizer", "scheduler", "trainer", "hardware", "seed")
FACTS = ("parameters", "tokens_seen", "tokens_per_second", "seconds", "world_size", "status")
COUNTS = ("rows", "words", "line_ends", "bytes", "tokens", "blocks", "tail")
UNUSED = ("cache_dir", "prompts", "preview_tokens", "push_to_hub")  # of no consequence for the weights


def metric_names(facts: ObjectiveFacts) -> dict[str, str]:
    """How the figures of ``summary.json`` are called in text; the perplexity of MLM is that of masked tokens."""
    return {name: facts.card_labels.get(name, label) for name, label in figures.labels(facts.perplexity_label).items()}


def render_model_card(run: Path, repo: str | None = None, dataset_card: Mapping[str, Any] | None = None) -> str:
    """The README of a model, with the metadata that the Hub reads, from the files of its run folder.

    Args:
        run: a run folder; of its files only ``config.yaml`` must exist.
        repo: name on the Hub, for the example of use.
        dataset_card: the metadata of the data set's own card, where the Hub has told them.
    """
    from huggingface_hub import ModelCard, ModelCardData
    from jinja2 import Environment, PackageLoader

    config = read_settings(run)
    summary, ledger, environment, export = (
        read_json_file(run / file) or {}
        for file in ("summary.json", "ledger.json", "environment.json", "export/config.json")
    )
    objective, dataset = config["objective"]["name"], _hub_id(config["data"].get("path"))
    facts, shifted = OBJECTIVES[objective].facts, bool(export.get(MASKED_SHIFT))
    base, of_dataset = base_model(config), dict(dataset_card or {})
    name = (repo or config.get("name") or run.name).split("/")[-1]
    data = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag=None if shifted and facts.kind == "masked" else facts.task,  # the pipeline knows no shift
        language=of_dataset.get("language"),
        tags=["lightning-lm", f"{facts.kind}-lm"],
        base_model=base,
        datasets=[dataset] if dataset else None,
        eval_results=_eval_results(config, summary, facts) or None,
    )
    prefixes = [prefix for prefix in SPLITS if any(key.startswith(f"{prefix}/") for key in summary)]
    templates = Environment(loader=PackageLoader("lightning_lm.hub", "."), trim_blocks=True, lstrip_blocks=True)
    text = templates.get_template("model_card.md").render(
        name=name,
        repo=repo,
        place=repo or "PATH/TO/export",
        config=config,
        kind=facts.kind,
        task=facts.task,
        shifted=shifted,
        export=export,
        architectures=export.get("architectures") or [],
        base=base,
        dataset=dataset,
        dataset_license=of_dataset.get("license"),
        summary=summary,
        command=shlex.join(map(_without_path, environment.get("command") or [])),
        commit=environment.get("commit"),
        notes=notes(summary),
        protocols=[
            f"{SPLITS[prefix]}: {as_line(summary[f'{prefix}/protocol'])}"
            for prefix in prefixes
            if f"{prefix}/protocol" in summary
        ],
        scored=[SPLITS[prefix] for prefix in prefixes],
        results=[
            [label, *(_number(summary.get(f"{prefix}/{key}")) for prefix in prefixes)]
            for key, label in metric_names(facts).items()
            if any(f"{prefix}/{key}" in summary for prefix in prefixes)
        ],
        facts=[[key.replace("_", " "), _number(summary[key])] for key in FACTS if key in summary],
        settings=yaml.safe_dump(
            {name: _public(config[name]) for name in SECTIONS if name in config}, sort_keys=False, allow_unicode=True
        ),
        counts=_counts(ledger),
        versions=_versions(environment),
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text.strip()}\n"))


def base_model(config: dict[str, Any]) -> str | None:
    """The model on the Hub that training began with; where it was another run's export, the one that run began with."""
    name = config["model"].get("name_or_path") if config["model"].get("pretrained") else None
    if name is None or is_hub_id(name):
        return name
    path = Path(name).expanduser()
    run = next((place for place in (path, path.parent) if (place / "config.yaml").exists()), None)
    return base_model(read_settings(run)) if run else None


def _hub_id(name: Any) -> str | None:
    """The name if it can be an id on the Hub, None for a folder or nothing."""
    return name if is_hub_id(name) else None


def _eval_results(config: dict[str, Any], summary: dict[str, Any], facts: ObjectiveFacts) -> list[Any]:
    from huggingface_hub import EvalResult

    data = config["data"]
    dataset = _hub_id(data.get("path"))
    return [
        EvalResult(
            task_type=facts.task,
            dataset_type=dataset or "text",
            dataset_name=dataset or "text",
            dataset_config=data.get("name"),
            dataset_split=(data.get("splits") or {}).get(split, split),
            dataset_revision=data.get("revision"),
            metric_type="masked-token-perplexity" if label == "masked-token perplexity" else key,
            metric_name=label + _limit(summary.get(f"{prefix}/protocol")),
            metric_value=summary[f"{prefix}/{key}"],
        )
        for prefix, split in SPLITS.items()
        for key, label in metric_names(facts).items()
        if _finite(summary.get(f"{prefix}/{key}"))
    ]


def _limit(measured: dict[str, Any] | None) -> str:
    windows = (measured or {}).get("limit")
    return f", first {windows:,} windows" if windows else ""


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _public(value: Any) -> Any:
    """Settings without what tells about the author's machine: of an absolute path, only the last part."""
    if isinstance(value, dict):
        return {key: _public(item) for key, item in value.items() if key not in UNUSED}
    if isinstance(value, list):
        return [_public(item) for item in value]
    return _without_path(value) if isinstance(value, str) else value


def _without_path(text: str) -> str:
    """A text, or a setting and its value, without the folders above what an absolute path names."""
    setting, equals, value = text.rpartition("=")
    return setting + equals + (Path(value).name if value.startswith(("/", "~")) else value)


def _counts(ledger: dict[str, Any]) -> list[list[str]]:
    """A header and a row for each split."""
    splits = {name: counts for name, counts in ledger.items() if isinstance(counts, dict)}
    columns = [key for key in COUNTS if any(key in counts for counts in splits.values())]
    rows = [[name, *(_number(counts.get(key)) for key in columns)] for name, counts in splits.items()]
    return [["split", *(key.replace("_", " ") for key in columns)], *rows] if columns else []


def _versions(environment: dict[str, Any]) -> list[list[str]]:
    rows = [["python", environment.get("python")], *map(list, (environment.get("versions") or {}).items())]
    if commit := environment.get("commit"):
        changed = ", with uncommitted changes" if environment.get("uncommitted") else ""
        rows.append(["lightning-lm", f"commit `{commit}`{changed}"])
    rows.append(["GPUs", ", ".join(environment.get("gpus") or [])])
    return [row for row in rows if row[1]]


def _number(value: Any) -> str:
    if isinstance(value, float) and math.isinf(value):
        return "∞"
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)
