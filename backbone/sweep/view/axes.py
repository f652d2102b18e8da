"""Axes: the dimensions of parallel coordinates, and costs in the logarithm."""

import math
from typing import Any

from backbone.sweep import analysis
from backbone.sweep.record import Record, Trial
from backbone.sweep.standing import Interval
from backbone.sweep.view.wording import amount, short, spelled_out


def dimension(record: Record, label: str, field: str, done: list[Trial]) -> dict[str, Any]:
    """A dimension. Values that are few or no numbers are spelled out, evenly spaced; rates are in the logarithm."""
    values = [t.point[field] for t in done]
    listed = analysis.ordered(record, field)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in listed)
    if not numbers or len(listed) <= 6:
        places = {analysis.key(v): i for i, v in enumerate(listed)}
        spelled = [short(text, 22) for text in spelled_out(listed)]
        ends = [-0.3, len(listed) - 0.7]
        ticks = {"tickvals": list(range(len(listed))), "ticktext": spelled, "range": ends}
        return {"label": label, "values": [places[analysis.key(v)] for v in values], **ticks}
    if min(listed) > 0 and max(listed) / min(listed) >= 10:
        low, high = math.log10(min(listed)), math.log10(max(listed))
        ticks = [low + (high - low) * i / 4 for i in range(5)]
        text = [f"{10**tick:.2g}" for tick in ticks]
        return {"label": label, "values": [math.log10(v) for v in values], "tickvals": ticks, "ticktext": text}
    return {"label": label, "values": values}


def log_ticks(low: float, high: float, cost: str) -> dict[str, Any]:
    """Ticks at 1, 2 and 5 of each decade, with units as people write them."""
    every = [
        m * 10.0**e for e in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)
    ]
    inside = [tick for tick in every if low / 1.2 <= tick <= high * 1.2]
    if len(inside) < 2:
        inside = sorted({low, high})
    if len(inside) > 8:
        inside = [tick for tick in inside if math.isclose(math.log10(tick) % 1, 0, abs_tol=1e-9)]
    return {"tickvals": inside, "ticktext": [amount(cost, tick) for tick in inside]}


def cost_label(record: Record, cost: str) -> str:
    """A cost with its unit, for people."""
    if cost == "depth":
        return "depth (weighted layers)"
    return next((o.label for o in record.objectives if o.name == cost), analysis.COSTS.get(cost, cost))


def error_bars(ends: list[tuple[Interval | None, float]]) -> dict[str, Any] | None:
    """Error bars from intervals and the values in them; None where none has a width."""
    if not any(span and span[0] < span[1] for span, _ in ends):
        return None
    up, down = ([span[side] if span else y for span, y in ends] for side in (1, 0))
    return {
        "array": [high - y for high, (_, y) in zip(up, ends, strict=True)],
        "arrayminus": [y - low for low, (_, y) in zip(down, ends, strict=True)],
        "thickness": 1,
        "width": 3,
    }
