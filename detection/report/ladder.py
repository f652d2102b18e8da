"""Does the cheap answer give the order of the dear one? The rungs of a ladder against its last, as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from detection.report.measures import Main
from detection.report.orders import agreement
from detection.report.summary import Row
from detection.report.ways import judge

ENOUGH = 0.8
"""Kendall's tau that is called the same order but for little: of ten pairs of rows nine."""
CHEAP = 0.1
"""Part of the last rung's cost that is called cheap."""


@dataclass(frozen=True)
class Rung:
    """A cheaper way to judge the rows, or the last one."""

    name: str
    changes: dict[str, Any]
    """Fields of the recipe that the last rung has otherwise, dotted."""

    rows: tuple[Row, ...]
    labels: float
    """Share of the training images, `data.share`."""

    seconds: Mapping[str, float | None]
    """By row: training and validation of one of its trainings, the mean of those there are, as measured."""

    work: Mapping[str, float | None]
    """By row: multiply-adds, likewise, as foretold; None where they could not be counted."""

    main: Main
    validation: str
    """Fingerprint of the images it is judged on."""


def to_json(
    rungs: Sequence[Rung],
    left_out: Mapping[str, str],
    baseline: str,
    missing: Sequence[str] = (),
    resamples: int = 1000,
) -> dict[str, Any]:
    """What each rung is worth, costs, and how its order agrees with that of the last of them.

    Args:
        rungs: in the order of the report.
        left_out: rung -> why it has no results.
        baseline: label of the report's.
        missing: a sentence for each run that failed.
        resamples: as of the report, whose numbers those of the last rung then are.
    """
    last = rungs[-1]
    measured = judge(last.rows, last.main, last.validation, resamples)[0]
    full = {row.label: len(row.trainings) for row in last.rows}
    told = []
    for rung in rungs:
        way, worth = judge(rung.rows, rung.main, rung.validation, resamples)
        labels = [row.label for row in rung.rows]
        counts = {row.label: len(row.trainings) for row in rung.rows}
        first = rung.rows[0].trainings[0].metrics["provenance"]
        told.append(
            {
                "name": rung.name,
                "changes": rung.changes,
                "labels": rung.labels,
                "label_images": first["train_images"],
                "steps": first["steps"],
                "trainings": sum(len(row.trainings) for row in rung.rows),
                "worth": {label: asdict(one) for label, one in worth.items()},
                "seconds": _sum(rung.seconds, labels, counts),
                "seconds_share": _share(rung.seconds, last.seconds, labels, full),
                "multiply_adds": _sum(rung.work, labels, counts),
                "multiply_adds_share": _share(rung.work, last.work, labels, full),
                "without": [row.label for row in last.rows if row.label not in labels],
                "tau": None if rung is last else asdict(agreement(way, measured)),
            }
        )
    return {
        "enough": ENOUGH,
        "cheap": CHEAP,
        "main": last.main,
        "baseline": baseline,
        "rungs": told,
        "left_out": dict(left_out),
        "missing": list(missing),
    }


def _sum(by_row: Mapping[str, float | None], labels: Sequence[str], trainings: Mapping[str, int]) -> float | None:
    """Over so many trainings of these rows; None where one is not known."""
    found = [(by_row.get(label), trainings[label]) for label in labels]
    return None if any(value is None for value, _ in found) else sum((value or 0) * count for value, count in found)


def _share(
    own: Mapping[str, float | None],
    last: Mapping[str, float | None],
    labels: Sequence[str],
    trainings: Mapping[str, int],
) -> float | None:
    """What as many trainings of these rows cost, over what they cost on the last rung."""
    both = [label for label in labels if label in last]
    over, under = _sum(own, both, trainings), _sum(last, both, trainings)
    return over / under if over is not None and under else None
