"""The page's charts as inline SVG. Colours are CSS classes (`s0`, `s1`, ...), so that they follow light and dark."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from detection.report.wording import interval, percent, quantity, signed, title

SERIES = 8  # colours in the style sheet
WIDTH, HALF = 640, 470
ROW = 34
LETTER = 7.4  # mean width of a letter at 13 px, to keep labels inside
WHISKERS = (
    "A whisker holds other images and other trainings, its thick part other trainings alone; where it crosses zero, no "
    "difference is shown. A grey one holds other images alone: what another training would change is unknown."
)


def gains(summary: dict[str, Any], part: dict[str, Any]) -> str:
    """Gain in a part's main number over the baseline with its interval, a dot and whisker a row."""
    rows = [row for row in summary["rows"] if row["gain"]]
    main, said = part["main"], title(part["main"])
    spans = [row["gain"][main]["absolute"] for row in rows]
    values = [0.0, *(100 * s["value"] for s in spans if s["value"] is not None)]
    values += [100 * end for s in spans for of in ("joint", "images", "trainings") for end in (s[of] or {}).values()]
    left, right, top = _margin(rows), WIDTH - 190, 14
    bottom = top + ROW * len(rows)
    ticks = _ticks(min(values), max(values))
    x = _scale(ticks, left, right)
    parts = [_grid_x(ticks, x, top, bottom, f"points of {said} over the baseline", sign=True)]
    parts.append(_line(x(0), top, x(0), bottom, "zero"))
    for i, (row, span) in enumerate(zip(rows, spans, strict=True)):
        y = top + ROW * (i + 0.5)
        name = _series(summary, row["label"])
        parts.append(_text(left - 12, y, _short(row["label"], left), "end"))
        if span["joint"] and span["trainings"]:
            inner = span["trainings"]
            parts.append(_line(x(100 * inner["low"]), y, x(100 * inner["high"]), y, f"whisker inner {name}"))
        if span["joint"] or span["images"]:
            ends, kind = _shown(span, name)
            parts.append(_line(x(100 * ends["low"]), y, x(100 * ends["high"]), y, kind))
        if span["value"] is not None:
            parts.append(f'<circle class="dot {name}" cx="{x(100 * span["value"]):.1f}" cy="{y:.1f}" r="5.5"/>')
        parts.append(_text(right + 14, y, interval(span, signed), "start", "value"))
    told = "; ".join(f"{r['label']} {interval(s, signed)}" for r, s in zip(rows, spans, strict=True))
    return _svg(bottom + 42, f"Gain in {said} over {summary['baseline']}", told, parts)


def classes(summary: dict[str, Any], part: dict[str, Any]) -> str:
    """AP or IoU of each class, classes the baseline does best on top."""
    by_row = {row["label"]: row[part["name"]]["per_class"] for row in summary["rows"]}
    said = part["of_class"]
    own = {label: {name: one[said] for name, one in classes.items()} for label, classes in by_row.items()}
    base = own[summary["baseline"]]
    names = [n for n in summary["classes"] if base[n] is not None]
    return _dots(summary, own, sorted(names, key=lambda n: -(base[n] or 0)), said, f"{said} by class")


def errors(summary: dict[str, Any], part: dict[str, Any]) -> str:
    """What each kind of error costs."""
    by_row = {row["label"]: row[part["name"]]["errors"] for row in summary["rows"]}
    own = {label: {kind: one["cost"]["value"] for kind, one in errors.items()} for label, errors in by_row.items()}
    return _dots(summary, own, list(own[summary["baseline"]]), "points of AP50 lost", "AP50 lost to each kind of error")


def _dots(
    summary: dict[str, Any], own: dict[str, dict[str, float | None]], names: Sequence[str], axis: str, title: str
) -> str:
    """A line a name, with a dot for each row of the report."""
    left, right, top = _margin([{"label": n} for n in names]), WIDTH - 24, 8
    bottom = top + 26 * len(names)
    got = {n: [values[n] for values in own.values()] for n in names}
    ticks = _ticks(0, 100 * max((v for vs in got.values() for v in vs if v is not None), default=1))
    x = _scale(ticks, left, right)
    parts = [_grid_x(ticks, x, top, bottom, axis)]
    for i, name in enumerate(names):
        y = top + 26 * (i + 0.5)
        present = [100 * v for v in got[name] if v is not None]
        parts.append(_text(left - 12, y, _short(name, left), "end"))
        parts.append(_line(x(min(present, default=0)), y, x(max(present, default=0)), y, "join"))
        for label in sorted(own, key=lambda label: label != summary["baseline"]):
            value = own[label][name]
            if value is not None:
                tip = f"<title>{escape(label)}: {percent(value)}</title>"
                spot = f'cx="{x(100 * value):.1f}" cy="{y:.1f}" r="5"'
                parts.append(f'<circle class="dot {_series(summary, label)}" {spot}>{tip}</circle>')
    told = "; ".join(f"{n}: " + ", ".join(percent(v) for v in got[n]) for n in names)
    order = ", ".join(row["label"] for row in summary["rows"])
    return _svg(bottom + 42, title, f"In the order {order}. {told}", parts)


def curves(summary: dict[str, Any], part: dict[str, Any]) -> str:
    """Precision over recall at IoU .5, mean over classes and seeds."""
    left, right, top, bottom = 52, HALF - 16, 12, 300
    ticks = [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    x, y = _scale(ticks, left, right), _scale(ticks, bottom, top)
    parts = [_grid_x(ticks, x, top, bottom, "recall, %"), _grid_y(ticks, y, left, right, "precision, %")]
    for row in summary["rows"]:
        points = zip(summary["recall"], row[part["name"]]["curve"], strict=True)
        line = " ".join(f"{x(100 * r):.1f},{y(100 * p):.1f}" for r, p in points if p is not None)
        parts.append(f'<polyline class="curve {_series(summary, row["label"])}" points="{line}"/>')
    main = part["main"]
    told = "; ".join(f"{row['label']}: {title(main)} {percent(row[main]['value'])}" for row in summary["rows"])
    return _svg(bottom + 42, "Precision over recall at IoU 0.5", told, parts, HALF)


def cost(summary: dict[str, Any], part: dict[str, Any]) -> str:
    """A part's main number with its interval against the backbone's multiply-adds."""
    main, said = part["main"], title(part["main"])
    rows = [row for row in summary["rows"] if row[main]["value"] is not None]
    left, right, top, bottom = 52, HALF - 24, 12, 300
    tx = _ticks(0, 1.1 * max((row["macs"] / 1e9 for row in rows), default=1))
    ends = [100 * row[main]["value"] for row in rows]
    ends += [100 * end for row in rows for of in ("joint", "images") for end in (row[main][of] or {}).values()]
    ty = _ticks(0, max(ends, default=1))
    x, y = _scale(tx, left, right), _scale(ty, bottom, top)
    parts = [_grid_x(tx, x, top, bottom, "multiply-adds of the backbone, billions"), _grid_y(ty, y, left, right, said)]
    spots = {row["label"]: (x(row["macs"] / 1e9), y(100 * row[main]["value"])) for row in rows}
    labels: list[str] = []  # over all the dots
    taken: list[tuple[float, float, float]] = []
    for row in sorted(rows, key=lambda r: -r[main]["value"]):
        name, (px, py) = _series(summary, row["label"]), spots[row["label"]]
        if row[main]["joint"] or row[main]["images"]:
            span, kind = _shown(row[main], name)
            parts.append(_line(px, y(100 * span["low"]), px, y(100 * span["high"]), kind))
        parts.append(f'<circle class="dot {name}" cx="{px:.1f}" cy="{py:.1f}" r="5.5"/>')
        long = 16 + LETTER * len(row["label"])
        leftward = px + long > right and px - long > left
        start, end = (px - long, px) if leftward else (px, px + long)
        others = [(qx, qx, qy) for label, (qx, qy) in spots.items() if label != row["label"]] + taken
        place = py
        while any(start < q2 and q1 < end and abs(place - qy) < 15 for q1, q2, qy in others):
            place += 3
        taken.append((start, end, place))
        side = (px - 12, "end") if leftward else (px + 12, "start")
        labels.append(_text(side[0], place, _short(row["label"], right - left), side[1]))
    parts += labels
    told = "; ".join(f"{row['label']}: {quantity(row['macs'])}, {said} {interval(row[main])}" for row in rows)
    return _svg(bottom + 42, f"{said} against cost", told, parts, HALF)


def legend(summary: dict[str, Any]) -> str:
    """The rows' colours, as HTML."""
    keys = (f"<li>{key(summary, row['label'])}{escape(row['label'])}</li>" for row in summary["rows"])
    return f'<ul class="legend">{"".join(keys)}</ul>'


def key(summary: dict[str, Any], label: str) -> str:
    """A spot in a row's colour, as HTML."""
    return f'<span class="key {_series(summary, label)}"></span>'


def _shown(estimate: dict[str, Any], name: str) -> tuple[dict[str, float], str]:
    """The interval to draw, and its class: of both noises in the row's colour, or of images alone in grey."""
    return (estimate["joint"], f"whisker {name}") if estimate["joint"] else (estimate["images"], "whisker given")


def _series(summary: dict[str, Any], label: str) -> str:
    """The baseline is grey, `s0`; the others take colours in order."""
    others = [row["label"] for row in summary["rows"] if row["label"] != summary["baseline"]]
    if label not in others:
        return "s0"
    turn, place = divmod(others.index(label), SERIES - 1)
    return f"s{place + 1}{' again' if turn % 2 else ''}"  # hollow and dashed: shell.html


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers that span low..high."""
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-3) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


class _scale:
    """Data to pixels, so that the first tick is at `start` and the last at `end`."""

    def __init__(self, ticks: Sequence[float], start: float, end: float) -> None:
        self.low, self.start, self.factor = ticks[0], start, (end - start) / (ticks[-1] - ticks[0])

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.factor


def _margin(rows: Sequence[dict[str, Any]]) -> float:
    longest = max((len(row["label"]) for row in rows), default=0)
    return min(230.0, max(60.0, longest * LETTER + 24))


def _short(label: str, left: float) -> str:
    room = int((left - 20) / LETTER)
    return label if len(label) <= room else label[: room - 1] + "…"


def _number(value: float, sign: bool = False) -> str:
    text = f"{value:+g}" if sign and value else f"{value:g}"
    return text.replace("-", "−")


def _grid_x(ticks: Sequence[float], x: _scale, top: float, bottom: float, title: str, sign: bool = False) -> str:
    lines = "".join(_line(x(t), top, x(t), bottom, "grid") for t in ticks)
    texts = "".join(_text(x(t), bottom + 14, _number(t, sign), "middle", "tick") for t in ticks)
    return lines + texts + _text((x(ticks[0]) + x(ticks[-1])) / 2, bottom + 34, title, "middle", "tick")


def _grid_y(ticks: Sequence[float], y: _scale, left: float, right: float, title: str) -> str:
    lines = "".join(_line(left, y(t), right, y(t), "grid") for t in ticks)
    texts = "".join(_text(left - 8, y(t), _number(t), "end", "tick") for t in ticks)
    middle = (y(ticks[0]) + y(ticks[-1])) / 2
    turned = f'<g transform="translate(12 {middle:.1f}) rotate(-90)">{_text(0, 0, title, "middle", "tick")}</g>'
    return lines + texts + turned


def _line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    return f'<line class="{name}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, name: str = "label") -> str:
    # dy, not dominant-baseline: older renderers know it
    return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}" dy=".35em" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, title: str, description: str, parts: Sequence[str], width: int = WIDTH) -> str:
    size = f'viewBox="0 0 {width} {height:.0f}" style="min-width:{0.8 * width:.0f}px"'
    head = f'<svg class="chart" {size} role="img" aria-label="{escape(title)}">'
    return f"{head}<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(parts)}</svg>"
