"""What the trials say together, against closed forms and functions whose answer is known."""

import math
import random
import subprocess
import sys

import pytest

from backbone.sweep import analysis
from backbone.sweep.record import Objective, Record, Trial
from backbone.sweep.view import wording
from tests.backbone.sweep.conftest import COSINE, STEPS

ERROR = Objective("val_error", "min", "validation error (%)")


def trials_of(points: list[dict], values: list[float], state: str = "finished") -> list[Trial]:
    return [
        Trial(f"{i:04d}", point, "", state=state, values={"val_error": value})  # ty: ignore[invalid-argument-type]
        for i, (point, value) in enumerate(zip(points, values, strict=True))
    ]


@pytest.mark.parametrize("n", [6, 8, 12, 20, 50])
def test_the_field_that_matters_is_named(n: int) -> None:
    right = 0
    for seed in range(40):
        rng = random.Random(seed)
        points = [
            {"depth": rng.choice([20, 32]), "shortcut": rng.choice("AN"), "lr": 10 ** rng.uniform(-2, 0)}
            for _ in range(n)
        ]
        shares = analysis.importance(
            trials_of(points, [10 * (p["shortcut"] == "N") + rng.random() for p in points]), ERROR
        )
        right += bool(shares) and max(shares, key=shares.__getitem__) == "shortcut"
    assert right == 40


def test_a_rate_with_a_best_value_inside_is_seen() -> None:
    """Not monotone: a correlation would be near zero."""
    rng = random.Random(1)
    points = [{"lr": 10 ** rng.uniform(-3, 0), "depth": rng.choice([20, 32])} for _ in range(40)]
    values = [20 * (math.log10(p["lr"]) + 1.5) ** 2 + rng.random() for p in points]
    assert analysis.importance(trials_of(points, values), ERROR)["lr"] > 0.9


def test_shares_of_a_full_grid_are_those_of_two_way_anova() -> None:
    points = [{"a": a, "b": b} for a in (1, 2, 3) for b in "xy" for _ in range(4)]
    values = [4.0 * p["a"] + 6.0 * (p["b"] == "y") for p in points]
    # n 24. Variances of the effects 4a and 6[b=y]: 16 * 2/3 and 36 / 4; each R² adjusted by 23/21 and 23/22.
    a, b = 16 * 2 / 3, 36 / 4
    explained = {"a": 1 - b / (a + b) * 23 / 21, "b": 1 - a / (a + b) * 23 / 22}
    found = analysis.importance(trials_of(points, values), ERROR)
    whole = sum(explained.values())
    assert found == pytest.approx({name: share / whole for name, share in explained.items()})
    assert sum(found.values()) == pytest.approx(1)


def test_nothing_is_said_where_nothing_is_known() -> None:
    points = [{"a": i % 2, "schedule": STEPS if i % 3 else COSINE} for i in range(8)]
    values = [float(i % 2) for i in range(8)]
    assert analysis.importance(trials_of(points[:4], values[:4]), ERROR) == {}
    assert analysis.importance(trials_of(points, values, "stopped"), ERROR) == {}
    assert analysis.importance(trials_of(points, [3.0] * 8), ERROR) == {}
    assert analysis.importance(trials_of([{"a": 1}] * 8, values), ERROR) == {}
    assert analysis.importance(trials_of(points, values), Objective("AP", "max", "AP")) == {}
    assert analysis.importance(trials_of(points, values), ERROR)["a"] == pytest.approx(1, abs=0.1)


def test_fronts_hold_finished_trials_alone(record: Record) -> None:
    best = min(t.values["val_error"] for t in record.of_state("finished"))
    record.trial("0003").history[-1]["val_error"] = best - 5  # a stopped trial may be far better and yet not compared
    front = analysis.front(record, ERROR, "macs")
    assert [t.id for t in front] == sorted(record.pareto, key=lambda i: record.trial(i).values["macs"])
    assert {t.state for t in front} == {"finished"}


def test_scores(record: Record) -> None:
    finished, stopped = record.trial("0001"), record.trial("0007")
    assert analysis.score(finished, ERROR) == finished.values["val_error"]
    assert analysis.score(stopped, ERROR) == stopped.best_error
    stopped.history[0]["val_error"] = None  # ty: ignore[invalid-assignment]  # what not-a-number is in the file
    assert analysis.score(stopped, ERROR) == min(row["val_error"] for row in stopped.history[1:])
    assert analysis.score(stopped, Objective("AP", "max", "AP")) is None
    assert analysis.score(record.trial("0010"), ERROR) is None


def test_depth_comes_from_the_point_a_section_or_the_base(record: Record) -> None:
    trial = record.trial("0002")
    assert analysis.cost(record, trial, "depth") == 56
    trial.point = {"model": {"depth": 110}}
    assert analysis.cost(record, trial, "depth") == 110
    trial.point = {"model": {"shortcut": "B"}}
    assert analysis.cost(record, trial, "depth") == 20


def test_plan_and_time_left(record: Record) -> None:
    assert analysis.planned(record) == 12
    record.sweep["budget"] = {"trials": 0}
    assert analysis.planned(record) == 10  # an endless space tells nothing
    del record.sweep["space"]["optim.lr"]
    assert analysis.planned(record) == 4 * 2 * 2
    assert analysis.seconds_left(record) == pytest.approx(754 * 8 / 8)
    record.sweep["budget"] = {"trials": 0, "hours": 0.25}
    assert analysis.seconds_left(record) == pytest.approx(900 - 754)
    record.state = "finished"
    assert analysis.seconds_left(record) is None


def test_axes(record: Record) -> None:
    assert analysis.grid_fields(record)[:2] == ["model.depth", "model.shortcut"]
    assert analysis.varying(record) == ["model.depth", "model.shortcut", "schedule", "optim.lr"]
    assert analysis.ordered(record, "schedule") == [STEPS, COSINE]
    assert analysis.ordered(record, "model.depth") == [20, 32, 44, 56]


def test_words() -> None:
    assert wording.amount("val_error", 12.345) == "12.35\u00a0%"
    assert wording.amount("macs", 40.8e6) == "40.8\u00a0M"
    assert wording.amount("device_hours", 0.5) == "30\u00a0min"
    assert wording.amount("AP", None) == wording.amount("AP", math.nan) == "–"
    assert wording.point({"model.depth": 20, "schedule": STEPS}) == "depth 20 · schedule kind steps, milestones [4, 6]"
    assert wording.short_names(["a.lr", "b.lr", "depth"]) == {"a.lr": "a.lr", "b.lr": "b.lr", "depth": "depth"}


def test_needs_neither_torch_nor_ray() -> None:
    code = "import sys, backbone.sweep.view.page, backbone.sweep.analysis; print({'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
