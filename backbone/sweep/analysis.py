"""What the trials of a sweep say together. Pure functions of its record; imports neither torch nor Ray."""

import json
import math
import re
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from backbone.sweep.record import Objective, Record, Trial, pareto

FEWEST = 5
"""Finished trials below which nothing is said about importance."""

COSTS = {
    "macs": "multiply-adds an image",
    "params": "parameters",
    "device_hours": "training cost (device-hours)",
    "latency_ms": "latency of one image (ms)",
}
"""What a backbone may cost, as `Trial.values` names it -> for people."""


def importance(trials: Sequence[Trial], objective: Objective) -> dict[str, float]:
    """Field -> its share of the variation of `objective` that single fields explain, largest first; they sum to 1.

    The first-order term of a functional ANOVA (Hutter et al., ICML 2014), over finished trials alone. They are grouped
    by a field's value (numbers of many values by rank, two to four groups), and the variance between the groups is what
    the field explains, less what as many random groups would: adjusted R², zero where negative. What fields do only
    together is not seen; where trials are few or unevenly spread, one field's share may be another's.

    Not Optuna's PED-ANOVA, its only evaluator without scikit-learn: of 40 sweeps where one field of three explains
    nearly all, it named that field in 0 with 6 or 8 trials, 9 with 12, 12 with 20, 32 with 50. This names it in all.

    Returns:
        Empty with fewer than 5 finished trials, or where no field explains anything.
    """
    done = [t for t in trials if t.state == "finished" and _known(t.values.get(objective.name))]
    if len(done) < FEWEST:
        return {}
    y = np.array([t.values[objective.name] for t in done], dtype=float)
    total = ((y - y.mean()) ** 2).sum()
    shared = [field for field in done[0].point if all(field in t.point for t in done)]
    explained = {}
    for field in shared:
        groups = _groups([t.point[field] for t in done])
        n, k = len(y), len(set(groups))
        if k < 2 or n - k < 2 or total <= 0:
            continue
        members = [y[[g == group for g in groups]] for group in set(groups)]
        within = sum(((part - part.mean()) ** 2).sum() for part in members)
        explained[field] = max(0.0, 1 - within / total * (n - 1) / (n - k))
    whole = sum(explained.values())
    if not whole:
        return {}
    shares = {field: float(explained.get(field, 0.0) / whole) for field in shared if len(_distinct(done, field)) > 1}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _groups(values: Sequence[Any]) -> list[Hashable]:
    """A group for each value: equal values, or ranks cut in two to four where numbers hardly repeat."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if not numbers or 2 * len(set(values)) <= len(values):
        return [key(v) for v in values]
    parts = max(2, min(4, len(values) // 3))
    ranks = {v: i for i, v in enumerate(sorted(set(values)))}
    return [ranks[v] * parts // len(ranks) for v in values]


def key(value: Any) -> str:
    """Equal for equal values of a point, lists and sections too."""
    return json.dumps(value, sort_keys=True, default=str)


def varying(record: Record) -> list[str]:
    """Fields of the space of which trials hold at least two values, in its order."""
    fields = list(dict.fromkeys(field for trial in record.trials for field in trial.point))
    return [field for field in fields if len(_distinct(record.trials, field)) > 1]


def _distinct(trials: Sequence[Trial], field: str) -> set[str]:
    return {key(trial.point[field]) for trial in trials if field in trial.point}


def ordered(record: Record, field: str) -> list[Any]:
    """The different values of a field: as the space lists its choices, numbers by size."""
    found = {key(t.point[field]): t.point[field] for t in record.trials if field in t.point}
    values = list(found.values())
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return sorted(values)
    listed = [key(v) for v in (record.sweep.get("space", {}).get(field) or {}).get("choice") or ()]
    return sorted(values, key=lambda v: listed.index(key(v)) if key(v) in listed else len(listed))


def field_of(record: Record, trial: Trial, field: str) -> Any:
    """The value of a recipe's field in this trial: of its point, of a section in its point, or of the base recipe."""
    if field in trial.point:
        return trial.point[field]
    for name, value in trial.point.items():
        if isinstance(value, dict) and field.startswith(f"{name}."):
            found = _below(value, field[len(name) + 1 :])
            if found is not None:
                return found
    return _below(record.base, field)


def _below(tree: Any, field: str) -> Any:
    for word in field.split("."):
        tree = tree.get(word) if isinstance(tree, dict) else None
    return tree


def cost(record: Record, trial: Trial, name: str) -> float | None:
    """Depth in weighted layers, or a value of the trial; None where it is not known."""
    value = field_of(record, trial, "model.depth") if name == "depth" else trial.values.get(name)
    return value if _known(value) else None


def family(trial: Trial) -> str:
    """The net without its depth: cifar_resnet20 -> cifar_resnet."""
    return re.sub(r"\d+", "", trial.net) or "net"


def score(trial: Trial, objective: Objective) -> float | None:
    """What a trial reached: the objective of a finished one, of others the lowest validation error so far if the
    objective is that, else None."""
    if trial.state == "finished":
        value = trial.values.get(objective.name)
        return value if _known(value) else None
    if objective.name == "val_error":
        return min((row["val_error"] for row in trial.history if _known(row.get("val_error"))), default=None)
    return None


def front(record: Record, objective: Objective, name: str) -> list[Trial]:
    """Finished trials that no other one is better than in both `objective` and the cost `name`, cheapest first."""
    modes = {o.name: o.mode for o in record.objectives}
    rows = [
        (t.id, (s, c))
        for t in record.of_state("finished")
        if (s := score(t, objective)) is not None and (c := cost(record, t, name)) is not None
    ]
    ids = set(pareto(rows, [objective.mode, modes.get(name, "min")]))
    return sorted((t for t in record.trials if t.id in ids), key=lambda t: (cost(record, t, name), t.id))


def grid_fields(record: Record) -> list[str]:
    """Fields a grid can be laid over: those the space lists values of, 12 at most, depth first, then the most."""
    space = record.sweep.get("space") or {}
    listed = [f for f in varying(record) if math.isfinite(_size(space.get(f) or {}))]
    few = [field for field in listed if len(_distinct(record.trials, field)) <= 12]
    return sorted(few, key=lambda f: (not f.endswith("depth"), -len(_distinct(record.trials, f))))


def planned(record: Record) -> int:
    """How many trials the sweep will have, as far as its recipe tells, and at least as many as it has."""
    budget = (record.sweep.get("budget") or {}).get("trials") or 0
    sizes = [_size(d or {}) for d in (record.sweep.get("space") or {}).values()]
    points = math.prod(sizes) if sizes else math.inf
    few = min(n for n in (budget or math.inf, points, math.inf))
    return max(len(record.trials), int(few) if math.isfinite(few) else 0)


def _size(distribution: dict[str, Any]) -> float:
    if distribution.get("choice"):
        return len(distribution["choice"])
    if distribution.get("integers"):
        low, high, step = (*distribution["integers"], 1)[:3]
        return len(range(low, high + 1, step))
    return math.inf


def seconds_left(record: Record) -> float | None:
    """A guess: the trials to come take as long as those that are done, and a budget of time may end it before.

    None unless it runs, and before three trials and as many as run at a time are done.
    """
    done, todo = len(record.of_state("finished", "stopped", "failed")), planned(record)
    if not record.alive or done < max(3, record.places) or done >= todo:
        return None
    budget, ends = record.sweep.get("budget") or {}, [record.seconds * (todo - done) / done]
    if budget.get("hours"):
        ends.append(3600 * budget["hours"] - record.seconds)
    if budget.get("device_hours") and record.device_hours:
        ends.append(record.seconds * (budget["device_hours"] / record.device_hours - 1))
    return max(0.0, min(ends))


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
