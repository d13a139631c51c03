"""The model card: what a run's own files say about the model that came out of it."""

import json
import math
from pathlib import Path
from typing import Any

import yaml

TASKS = {"clm": "text-generation", "mlm": "fill-mask"}
KINDS = {"clm": "causal", "mlm": "masked"}
SPLITS = {"val": "validation", "test": "test"}
SECTIONS = ("model", "data", "objective", "optimizer", "scheduler", "trainer", "hardware", "seed")
UNUSED = ("cache_dir", "prompts", "preview_tokens", "push_to_hub")  # of no consequence for the weights


def metric_names(objective: str) -> dict[str, str]:
    """How the figures of ``summary.json`` are called in text; the perplexity of MLM is that of masked tokens."""
    if objective == "mlm":
        return {
            "loss": "loss (nats per masked token)",
            "perplexity": "masked-token perplexity",
            "accuracy": "masked-token accuracy",
        }
    return {
        "loss": "loss (nats per token)",
        "perplexity": "perplexity (per token)",
        "bits_per_byte": "bits per byte",
        "word_perplexity": "word perplexity",
        "accuracy": "next-token accuracy",
    }


def model_card(run: Path, repo: str | None = None) -> str:
    """The README of a model, with the metadata that the Hub reads, from the files of its run folder.

    Args:
        run: a run folder; of its files only ``config.yaml`` must exist.
        repo: name on the Hub, for the example of use.
    """
    from huggingface_hub import ModelCard, ModelCardData

    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    summary, ledger, environment, export = (
        _json(run / name) for name in ("summary.json", "ledger.json", "environment.json", "export/config.json")
    )
    objective, base, dataset = config["objective"]["name"], _base_model(config), _hub_id(config["data"].get("path"))
    name = (repo or config.get("name") or run.name).split("/")[-1]
    data = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag=TASKS[objective],
        tags=["lightning-lm", f"{KINDS[objective]}-lm"],
        base_model=base,
        datasets=[dataset] if dataset else None,
        eval_results=_eval_results(config, summary, objective) or None,
    )
    sections = [
        _heading(name, config, export, base, dataset),
        _usage(objective, repo or "PATH/TO/export"),
        _results(summary, objective),
        _training(config, summary),
        _corpus(ledger),
        _environment(environment),
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"))


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _hub_id(name: Any) -> str | None:
    """The name if it can be an id on the Hub, None for a folder or nothing."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if name is None or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _base_model(config: dict[str, Any]) -> str | None:
    model = config["model"]
    return _hub_id(model.get("name_or_path")) if model.get("pretrained") else None


def _eval_results(config: dict[str, Any], summary: dict[str, Any], objective: str) -> list[Any]:
    from huggingface_hub import EvalResult

    data = config["data"]
    dataset = _hub_id(data.get("path"))
    return [
        EvalResult(
            task_type=TASKS[objective],
            dataset_type=dataset or "text",
            dataset_name=dataset or "text",
            dataset_config=data.get("name"),
            dataset_split=(data.get("splits") or {}).get(split, split),
            dataset_revision=data.get("revision"),
            metric_type="masked-token-perplexity" if label == "masked-token perplexity" else key,
            metric_name=label,
            metric_value=summary[f"{prefix}/{key}"],
        )
        for prefix, split in SPLITS.items()
        for key, label in metric_names(objective).items()
        if _finite(summary.get(f"{prefix}/{key}"))
    ]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _heading(name: str, config: dict[str, Any], export: dict[str, Any], base: str | None, dataset: str | None) -> str:
    kind = KINDS[config["objective"]["name"]]
    architecture = "".join(f" (`{name}`)" for name in export.get("architectures") or [])
    origin = "fine-tuned" if config["model"].get("pretrained") else "trained from scratch"
    source = f" from [`{base}`](https://huggingface.co/{base})" if base else ""
    corpus = f" on [`{dataset}`](https://huggingface.co/datasets/{dataset})" if dataset else ""
    corpus += f" (`{config['data']['name']}`)" if dataset and config["data"].get("name") else ""
    return f"# {name}\n\nA {kind} language model{architecture}, {origin}{source}{corpus} with lightning-lm."


def _usage(objective: str, model: str) -> str:
    lines = ["from transformers import pipeline", "", f'pipe = pipeline("{TASKS[objective]}", model="{model}")']
    if objective == "clm":
        lines.append('print(pipe("Once upon a time", max_new_tokens=40)[0]["generated_text"])')
    else:
        lines.append('print(pipe(f"The capital of France is {pipe.tokenizer.mask_token}."))')
    return "## Use\n\n```python\n" + "\n".join(lines) + "\n```"


def _results(summary: dict[str, Any], objective: str) -> str:
    prefixes = [prefix for prefix in SPLITS if any(key.startswith(f"{prefix}/") for key in summary)]
    rows = [
        [label, *(_number(summary.get(f"{prefix}/{key}")) for prefix in prefixes)]
        for key, label in metric_names(objective).items()
        if any(f"{prefix}/{key}" in summary for prefix in prefixes)
    ]
    return f"## Results\n\n{_table(['', *(SPLITS[p] for p in prefixes)], rows)}" if rows else ""


def _training(config: dict[str, Any], summary: dict[str, Any]) -> str:
    names = {
        "tokens_seen": "tokens seen",
        "tokens_per_second": "tokens per second",
        "seconds": "seconds",
        "world_size": "devices",
        "status": "status",
    }
    rows = [[label, _number(summary[key])] for key, label in names.items() if key in summary]
    facts = f"{_table(['', ''], rows)}\n\n" if rows else ""
    settings = yaml.safe_dump(
        {name: _public(config[name]) for name in SECTIONS if name in config}, sort_keys=False, allow_unicode=True
    )
    return f"## Training\n\n{facts}The settings, from the run's `config.yaml`:\n\n```yaml\n{settings}```"


def _public(value: Any) -> Any:
    """Settings without what tells about the author's machine: of an absolute path, only the last part."""
    if isinstance(value, dict):
        return {key: _public(item) for key, item in value.items() if key not in UNUSED}
    if isinstance(value, list):
        return [_public(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def _corpus(ledger: dict[str, Any]) -> str:
    splits = {name: counts for name, counts in ledger.items() if isinstance(counts, dict)}
    keys = ("rows", "words", "line_ends", "bytes", "tokens", "blocks", "tail")
    columns = [key for key in keys if any(key in counts for counts in splits.values())]
    rows = [[name, *(_number(counts.get(key)) for key in columns)] for name, counts in splits.items()]
    header = ["split", *(key.replace("_", " ") for key in columns)]
    return f"## Data\n\n{_table(header, rows)}" if columns else ""


def _environment(environment: dict[str, Any]) -> str:
    versions = {"python": environment.get("python"), **(environment.get("versions") or {})}
    rows = [[name, str(version)] for name, version in versions.items() if version]
    commit = environment.get("commit")
    dirty = environment.get("dirty") or environment.get("uncommitted")
    rows += [["lightning-lm", f"commit `{commit}`{', with uncommitted changes' if dirty else ''}"]] if commit else []
    hardware = environment.get("hardware") or ", ".join(environment.get("gpus") or [])
    rows += [["hardware", str(hardware)]] if hardware else []
    return f"## To reproduce\n\nThe settings above, with\n\n{_table(['', ''], rows)}" if rows else ""


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
