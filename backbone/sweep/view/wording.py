"""Numbers and values of a sweep in words, the same in all views."""

import json
import math
from typing import Any

NONE = "–"

STATES = {
    "finished": "finished",
    "stopped": "stopped early",
    "failed": "failed",
    "running": "running",
    "waiting": "waiting",
}


def amount(name: str, value: float | None) -> str:
    """The value of an objective or cost with its unit; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return NONE
    if name == "val_error":
        return f"{value:.2f}\u00a0%"
    if name in ("AP", "AP_masks"):
        return f"{value:.3f}"
    if name == "device_hours":
        return duration(3600 * value)
    if name == "latency_ms":
        return f"{value:.3g}\u00a0ms"
    return quantity(value)


def span(name: str, ends: tuple[float, float] | None) -> str:
    """An interval, `[8.21–9.35]`, in the objective's unit; empty where there is none, or no width."""
    if ends is None or ends[0] == ends[1]:
        return ""
    low, high = (f"{end:.3f}" if name.startswith("AP") else f"{end:.2f}" for end in ends)
    return f"[{low}–{high}]"


def quantity(value: float) -> str:
    """1234567 -> 1.23 M."""
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}\u00a0{letter}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """45 s, 12 min, 3.4 h, 2.1 d."""
    if seconds < 99.5:
        return f"{seconds:.0f}\u00a0s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f}\u00a0min"
    if seconds < 72 * 3600:
        return f"{seconds / 3600:.1f}\u00a0h"
    return f"{seconds / 86400:.1f}\u00a0d"


def value(given: Any) -> str:
    """A value of a point. A section is its fields, `kind steps, milestones [4, 6]`."""
    if isinstance(given, dict):
        return ", ".join(f"{key} {value(inner)}" for key, inner in given.items())
    if isinstance(given, float):
        return f"{given:.4g}"
    return given if isinstance(given, str) else json.dumps(given)


def point(given: dict[str, Any]) -> str:
    """A point in one line, by the last words of its fields."""
    names = short_names(list(given))
    return " · ".join(f"{names[field]} {value(inner)}" for field, inner in given.items())


def short_names(fields: list[str]) -> dict[str, str]:
    """Fields -> their last word, or the whole name where two share one."""
    last = [field.rpartition(".")[2] for field in fields]
    return {field: word if last.count(word) == 1 else field for field, word in zip(fields, last, strict=True)}


def spelled_out(values: list[Any]) -> list[str]:
    """Values of a field in words; of sections, the fields in which they differ."""
    if len(values) < 2 or not all(isinstance(v, dict) for v in values):
        return [value(v) for v in values]
    keys = list(dict.fromkeys(key for v in values for key in v))
    differ = [key for key in keys if len({json.dumps(v.get(key)) for v in values}) > 1]
    for key in differ:  # one word, where one tells them apart
        words = [value(v.get(key)) for v in values]
        if len(set(words)) == len(values):
            return words
    return [value({key: v[key] for key in differ if key in v}) for v in values]


def short(text: str, most: int) -> str:
    """At most so many letters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
