"""Numbers as people read them."""

import json
import math
from statistics import fmean, stdev
from typing import Any


def short(value: str) -> str:
    """A drawn number with four digits; what was typed as it is."""
    try:
        return f"{float(value):.4g}" if len(value) > 8 else value
    except ValueError:
        return value


def brief_name(setting: str) -> str:
    """A setting's name where there is little room."""
    return {"optimizer.weight_decay": "wd", "objective.name": "objective"}.get(setting, setting.rpartition(".")[2])


def brief_settings(settings: dict[str, str]) -> str:
    """What a job has to itself, such as ``lr=0.02 wd=0``."""
    return " ".join(f"{brief_name(name)}={short(value)}" for name, value in settings.items())


def format_value(value: Any, digits: str = "") -> str:
    """A value as people read it; a missing one is a dash."""
    match value:
        case None:
            return "–"
        case bool():
            return str(value).lower()
        case float() if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        case float() | int() if digits:
            return format(value, digits if abs(value) < 1e6 else ".3g")
        case float():
            return f"{value:.6g}"
        case list() | dict():
            return json.dumps(value, ensure_ascii=False)
    return str(value)


def brief(value: Any) -> str:
    """A value in a legend."""
    return f"{value:.3g}" if is_number(value) else format_value(value)


def mean_and_spread(values: list[float]) -> str:
    """Mean ± standard deviation (n − 1)."""
    if not values:
        return "–"
    return format_value(fmean(values), ".4f") + (f" ± {format_value(stdev(values), '.4f')}" if len(values) > 1 else "")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
