"""How the report says its numbers: the same in Markdown, HTML and charts."""

from collections.abc import Callable
from typing import Any

NONE = "–"


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as percent without the sign: 0.312 -> 31.2."""
    return NONE if value is None else f"{100 * value:.{digits}f}"


def signed(value: float | None, digits: int = 1) -> str:
    """As `percent`, with + or −; what rounds to nothing has no sign of its own."""
    if value is None:
        return NONE
    text = f"{100 * value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else f"±{abs(float(text)):.{digits}f}"


def interval(told: dict[str, Any], say: Callable[[float | None], str] = percent) -> str:
    """A value with its interval: `31.2 (28.9–33.4)`, signed `+4.1 (+2.0 to +6.3)`."""
    if told["value"] is None or told["low"] is None:
        return say(told["value"])
    between = "–" if say is percent else " to "
    return f"{say(told['value'])} ({say(told['low'])}{between}{say(told['high'])})"


def quantity(value: float) -> str:
    """A count in three digits: 11.7 M, 1.81 G."""
    for size, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size * 0.9995:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def minutes(seconds: float) -> str:
    """A duration for people: 42 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def headlines(summary: dict[str, Any]) -> list[str]:
    """A sentence a row, the best first and the baseline last, each made of numbers."""
    base = summary["baseline"]
    rows = sorted(summary["rows"], key=lambda row: (row["label"] == base, -(row["AP"]["value"] or 0)))
    lines = []
    for row in rows:
        line = f"{row['label']}: AP {interval(row['AP'])}"
        gain = row["gain"].get("AP")
        if not gain:
            lines.append(f"{line}, the baseline.")
            continue
        line += f", {interval(gain['absolute'], signed)} over {base}"
        if gain["relative"]:
            line += f", relative {signed(gain['relative']['value'], 0)}\u00a0%"
        zero = gain["absolute"]["includes_zero"]
        lines.append(line + ("; no difference shown, the interval includes zero." if zero else "."))
    return lines
