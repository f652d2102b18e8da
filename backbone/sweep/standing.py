"""What may be said of a sweep's finished trials: the interval of what each reached, and whether one is the best.

Intervals are 95 %, of other validation images, had it been these very trainings: what another training would change is
not in them, as each trial is trained once. Pure functions of the record; imports neither torch nor Ray.
"""

import math

from backbone.intervals import wilson
from backbone.sweep.record import Objective, Record, Trial

EXACT = ("macs", "params")
"""Objectives that are counted, and have no interval."""

Interval = tuple[float, float]


def interval(trial: Trial, name: str) -> Interval | None:
    """Of an objective of a finished trial, in its unit; None where it is not known."""
    value = trial.values.get(name)
    if trial.state != "finished" or value is None:
        return None
    if name in EXACT:
        return value, value
    if name == "val_error":
        images = trial.history[-1].get("val_images") if trial.history else None
        return wilson(value, images) if images else None
    low, high = trial.values.get(f"{name}_low"), trial.values.get(f"{name}_high")
    return None if low is None or high is None else (low, high)


def least_gap(a: float, ours: Interval, b: float, theirs: Interval) -> float:
    """Lower end of the 95 % interval of b - a, from the intervals around both.

    As if judged on images of their own (Newcombe, 1998, method 10; Zou and Donner, 2008). They were the same images, on
    which nets tend to err together: the true interval is narrower, so this errs to "level".
    """
    return b - a - math.hypot(ours[1] - a, b - theirs[0])


def is_better(one: Trial, other: Trial, objective: Objective) -> bool | None:
    """Whether one is shown to be better: the interval of the difference excludes 0. None where one is not known."""
    ours, theirs = interval(one, objective.name), interval(other, objective.name)
    if ours is None or theirs is None:
        return None
    a, b = one.values[objective.name], other.values[objective.name]
    if objective.mode == "max":
        a, b, ours, theirs = -a, -b, (-ours[1], -ours[0]), (-theirs[1], -theirs[0])
    return least_gap(a, ours, b, theirs) > 0


def level(record: Record) -> list[Trial]:
    """Finished trials that `record.best` is not shown to be better than, the better ones first."""
    if not record.best:
        return []
    best, objective = record.trial(record.best), record.objectives[0]
    found = [t for t in record.of_state("finished") if t.id != best.id and not is_better(best, t, objective)]
    sign = 1 if objective.mode == "min" else -1
    return sorted(found, key=lambda t: (sign * t.values.get(objective.name, math.inf), t.id))


def has_best(record: Record) -> bool:
    """Whether one trial is shown to be better than all others that finished, of which there is one at least."""
    return bool(record.best) and len(record.of_state("finished")) > 1 and not level(record)


def word(record: Record, trial: Trial) -> str:
    """What a trial is among those that finished: the best, level at the top, the only one; else empty."""
    if not record.best or trial.state != "finished":
        return ""
    if trial.id != record.best:
        shown = is_better(record.trial(record.best), trial, record.objectives[0])
        return "" if shown else "level at the top"
    if len(record.of_state("finished")) == 1:
        return "the only one finished"
    return "the best" if has_best(record) else "level at the top"


def leading(record: Record) -> str:
    """What to call the trial that pictures show bold."""
    return "the best" if has_best(record) else "the lowest" if record.objectives[0].mode == "min" else "the highest"
