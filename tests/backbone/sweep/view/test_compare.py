"""Trials side by side: curves, what differs, filters, and the table for other programs."""

import csv
import io
import json

import pytest

from backbone.sweep import analysis
from backbone.sweep.record import Record
from backbone.sweep.view import compare
from backbone.sweep.view.grid import grid
from tests.backbone.sweep.conftest import COSINE, STEPS


def test_each_chosen_trial_is_a_colour(record: Record) -> None:
    figure = compare.curves(record, ["0008", "0003", "0002"])
    assert figure
    for trace, i in zip(figure.data, ("0008", "0003", "0002"), strict=True):
        rows = record.trial(i).history
        assert (trace.meta, list(trace.x)) == (i, [row["epoch"] for row in rows])
        assert list(trace.y) == [row["val_error"] for row in rows]
    assert len({trace.line.color for trace in figure.data}) == 3
    assert [trace.line.dash for trace in figure.data] == ["solid", "dash", "solid"]  # the second was stopped
    assert compare.curves(record, ["0010"]) is None  # it waits
    assert len(set(compare.COLOURS)) == len(compare.COLOURS)


def test_the_best_are_compared_first(record: Record) -> None:
    done = sorted(record.of_state("finished"), key=lambda t: t.values["val_error"])
    assert compare.first_choice(record, record.trials) == [t.id for t in done[:4]]
    running = [t for t in record.trials if t.state in ("running", "stopped")]
    assert compare.first_choice(record, running) == ["0007", "0009", "0003"]  # the furthest first: 4, 3 and 2 epochs


def test_differences_are_those_of_the_recipes(record: Record) -> None:
    rows = dict(compare.differences(record, ["0001", "0002"]))  # 20 and 56 layers, steps and cosine, rate 0.1
    assert rows["model.depth"] == ["20", "56"]
    assert rows["schedule.kind"] == ["steps", "cosine"]
    assert rows["schedule.milestones"] == ["[4, 6]", "–"]
    assert rows["schedule.warmup"] == ["–", "0.5"]
    assert not {"optim.lr", "model.shortcut"} & rows.keys()
    assert rows["net"] == ["cifar_resnet20", "cifar_resnet56"]
    assert rows["validation error (%)"][0].startswith("21.23\u00a0% [20.44–")
    assert rows["epochs"] == ["8 of 8", "8 of 8"]
    stopped = dict(compare.differences(record, ["0003"]))
    assert stopped["validation error (%)"] == ["–"]  # what an unfinished one reached is not to be compared
    assert compare.differences(record, []) == []


@pytest.mark.parametrize(
    ("chosen", "ids"),
    [
        ({}, range(1, 11)),
        ({"model.depth": ["20"]}, (1, 6)),
        ({"model.depth": ["20", "56"], "state": ["finished"]}, (1, 2, 6)),
        ({"schedule": [analysis.key(COSINE)], "model.shortcut": [analysis.key("none")]}, (4, 6)),
        ({"state": ["waiting"], "model.depth": ["20"]}, ()),
    ],
)
def test_filters(record: Record, chosen: dict, ids: tuple) -> None:
    assert [t.id for t in compare.passing(record, chosen)] == [f"{i:04d}" for i in ids]
    offered = compare.filters(record)
    assert all(set(values) <= offered[field].keys() for field, values in chosen.items())


def test_fields_of_many_values_are_no_filters(record: Record) -> None:
    assert list(compare.filters(record)) == ["state", "model.depth", "model.shortcut", "schedule", "optim.lr"]
    for i, trial in enumerate(record.trials):
        trial.point["optim.lr"] = i / 7
    assert "optim.lr" in compare.filters(record)
    record.trials += [
        type(trial)(**{**vars(trial), "id": f"1{trial.id}", "point": {**trial.point, "optim.lr": 9 + i}})
        for i, trial in enumerate(record.trials)
    ]
    assert "optim.lr" not in compare.filters(record)
    assert compare.labels(record)["model.depth"] == "depth"


def test_the_table_as_csv_holds_every_number_in_full(record: Record) -> None:
    rows = list(csv.DictReader(io.StringIO(compare.as_csv(record))))
    assert [row["trial"] for row in rows] == [t.id for t in record.trials]
    for row, trial in zip(rows, record.trials, strict=True):
        assert row["state"] == trial.state
        assert row["val_error"] == (str(trial.values["val_error"]) if trial.state == "finished" else "")
        assert row["lowest_val_error"] == (str(trial.best_error) if trial.history else "")
        assert float(row["optim.lr"]) == trial.point["optim.lr"]
        assert row["schedule.kind"] == trial.point["schedule"]["kind"]
        milestones = row["schedule.milestones"]
        assert (json.loads(milestones) if milestones else None) == trial.point["schedule"].get("milestones")
        assert row["why"] == trial.why
        if trial.state == "finished":
            assert float(row["val_error_low"]) < trial.values["val_error"] < float(row["val_error_high"])
    assert len(list(csv.reader(io.StringIO(compare.as_csv(record, record.trials[:2]))))) == 3
    assert STEPS["milestones"] == [4, 6]


def test_a_grid_is_laid_over_the_chosen_fields(record: Record) -> None:
    figure = grid(record, ("schedule", "model.shortcut"))
    assert figure
    heat = figure.data[0]
    assert (list(heat.y), list(heat.x)) == (["steps", "cosine"], ["A", "none"])
    best = {}
    for t in record.of_state("finished"):
        at = (t.point["schedule"]["kind"], t.point["model.shortcut"])
        best[at] = min(best.get(at, 100.0), t.values["val_error"])
    assert [list(row) for row in heat.z] == [[best.get((k, s)) for s in ("A", "none")] for k in ("steps", "cosine")]
    turned = grid(record, ("model.shortcut", "schedule"))
    assert turned
    assert [list(row) for row in turned.data[0].z] == [list(column) for column in zip(*heat.z, strict=True)]
