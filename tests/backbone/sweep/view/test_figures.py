"""The numbers in the figures are those of the record, and what is unfinished is never drawn as finished."""

import json
import math

import pytest

from backbone.sweep import analysis
from backbone.sweep.record import Objective, Record, Trial, read
from backbone.sweep.view import figures
from backbone.sweep.view.grid import grid
from backbone.sweep.view.panels import left_of_budget, panels, said_of_costs
from backbone.sweep.view.wording import spelled_out
from tests.backbone.sweep.conftest import COSINE, EPOCHS, STEPS, make_trial


@pytest.fixture
def written(record: Record) -> Record:
    """The record as its file has it."""
    record.write()
    return read(record.url)


def test_curves(written: Record) -> None:
    figure = figures.curves(written)
    assert figure
    drawn = {trace.meta: trace for trace in figure.data}
    assert set(drawn) == {t.id for t in written.trials if t.history}
    for trial in written.trials:
        if trial.history:
            trace = drawn[trial.id]
            assert list(trace.x) == [row["epoch"] for row in trial.history]
            assert list(trace.y) == [row["val_error"] for row in trial.history]
            assert trial.id in trace.hovertemplate
    ends = {trial.state: drawn[trial.id].marker.symbol[-1] for trial in written.trials if trial.history}
    assert ends["stopped"] == "x"
    assert len(set(ends.values())) == 4, "states differ by symbol, not by colour alone"
    assert drawn["0003"].line.dash == "dash"
    assert drawn["0001"].line.dash == "solid"
    assert [shape.x0 for shape in figure.layout.shapes] == [2, 4]
    assert sum(bool(trace.showlegend) for trace in figure.data) == 4


def test_states_differ_without_colour() -> None:
    assert len({(look.dash, look.end) for look in figures.LOOKS.values()}) == len(figures.LOOKS)
    assert len({look.pattern for look in figures.LOOKS.values()}) == len(figures.LOOKS)
    assert len({symbol for _, symbol, _ in figures.FAMILIES}) == len(figures.FAMILIES)


def test_parallel_holds_finished_trials_with_their_values_spelled_out(written: Record) -> None:
    figure = figures.parallel(written)
    assert figure
    done = written.of_state("finished")
    plot = figure.data[0]
    assert list(plot.meta) == [t.id for t in done]
    depth, shortcut, schedule, lr, error = plot.dimensions
    assert list(error["values"]) == [t.values["val_error"] for t in done] == list(plot.line.color)
    for dimension, field in ((depth, "model.depth"), (shortcut, "model.shortcut")):
        words = dict(zip(dimension.tickvals, dimension.ticktext, strict=True))
        assert [words[v] for v in dimension["values"]] == [str(t.point[field]) for t in done]
    assert list(schedule.ticktext) == ["steps", "cosine"]
    assert [dict(zip(lr.tickvals, lr.ticktext, strict=True))[v] for v in lr["values"]] == [
        f"{t.point['optim.lr']:g}" for t in done
    ]


def test_rates_of_many_values_are_in_the_logarithm(written: Record) -> None:
    for i, trial in enumerate(written.trials):
        trial.point["optim.lr"] = 0.01 * 1.7**i
    figure = figures.parallel(written)
    assert figure
    lr = figure.data[0].dimensions[3]
    assert list(lr["values"]) == [math.log10(t.point["optim.lr"]) for t in written.of_state("finished")]
    assert lr.ticktext[0] == "0.01"


@pytest.mark.parametrize("cost", ["depth", "macs", "device_hours"])
def test_error_against_cost(written: Record, cost: str) -> None:
    written.trial("0007").history[-1]["val_error"] = 1.0  # stopped, and better than all: still not on the front
    figure = figures.against(written, cost)
    assert figure
    points = {
        identity: (x, y, trace.marker.symbol)
        for trace in figure.data
        if trace.meta in ("finished", "unfinished")
        for identity, x, y in zip(trace.ids, trace.x, trace.y, strict=True)
    }
    assert set(points) == {t.id for t in written.trials if t.history}
    for trial in written.trials:
        if trial.history:
            finished = trial.state == "finished"
            y = trial.values["val_error"] if finished else trial.best_error
            x = trial.point["model.depth"] if cost == "depth" else trial.values[cost]
            assert points[trial.id][:2] == (x, y)
            assert points[trial.id][2].endswith("-open") != finished
    front = next(trace for trace in figure.data if trace.meta == "front")
    assert {written.trial(i).state for i in front.ids} == {"finished"}
    assert list(front.y) == [written.trial(i).values["val_error"] for i in front.ids]
    assert list(front.y) == sorted(front.y, reverse=True)
    if cost == "macs":
        assert set(front.ids) == set(written.pareto)
        assert figure.layout.xaxis.type == "log"
    if cost == "depth":
        lines = {trace.name: (list(trace.x), list(trace.y)) for trace in figure.data if trace.meta == "best"}
        by_id = {t.id: t.values.get("val_error") for t in written.trials}
        assert lines == {
            "cifar_resnet": ([20, 44, 56], [by_id["0001"], by_id["0008"], by_id["0002"]]),
            "cifar_plain": ([20, 32], [by_id["0006"], by_id["0004"]]),
        }


def test_objective_against_objective(written: Record) -> None:
    written.objectives = [Objective("AP", "max", "detection AP"), Objective("latency_ms", "min", "latency (ms)")]
    for i, trial in enumerate(written.of_state("finished")):
        trial.values["AP"] = 0.2 + 0.05 * (i % 3)
    assert "against-latency_ms" in [panel.key for panel in panels(written)]
    figure = figures.against(written, "latency_ms")
    assert figure
    drawn = {i: y for trace in figure.data if trace.meta == "finished" for i, y in zip(trace.ids, trace.y, strict=True)}
    assert drawn == {t.id: t.values["AP"] for t in written.of_state("finished")}
    assert not [trace for trace in figure.data if trace.meta == "unfinished"], "an AP is not known before the end"
    front = next(trace for trace in figure.data if trace.meta == "front")
    assert max(front.y) == max(drawn.values())


def test_grid_shows_the_best_finished_and_leaves_the_rest_open(written: Record) -> None:
    figure = grid(written)
    assert figure
    heat = figure.data[0]
    assert list(heat.y) == ["20", "32", "44", "56"]
    assert list(heat.x) == ["A", "none"]
    value = {t.id: t.values.get("val_error") for t in written.trials}
    assert [list(row) for row in heat.z] == [
        [value["0001"], value["0006"]],
        [None, value["0004"]],
        [value["0008"], None],
        [value["0002"], None],
    ]
    assert {(note.x, note.y) for note in figure.layout.annotations} == {(0, 1), (1, 2), (1, 3)}


def test_importance_rates_and_costs(written: Record) -> None:
    bars = figures.importance(written)
    rates = figures.rates(written)
    costs = figures.costs(written)
    assert bars
    assert rates
    assert costs
    assert dict(zip(bars.data[0].meta, bars.data[0].x, strict=True)) == written.importance
    lines = {t.meta: list(zip(t.x, t.y, strict=True)) for t in rates.data}
    assert lines["0009 lineage"] == [(2.0, 0.2)]
    assert all(lines[t.id] == t.lr for t in written.trials)
    drawn = {i: y for trace in costs.data for i, y in zip(trace.x, trace.y, strict=True)}
    assert drawn == {t.id: t.values["device_hours"] for t in written.trials if "device_hours" in t.values}
    assert sum(drawn.values()) == pytest.approx(written.device_hours)
    assert all(written.trial(i).state == trace.meta for trace in costs.data for i in trace.x)


def test_what_is_left_of_the_budget(written: Record) -> None:
    written.sweep["budget"] = {"trials": 12, "device_hours": 1.0, "hours": 0.5}
    for trial in written.trials:
        trial.values["device_hours"] = 0.05
    assert left_of_budget(written) == [
        "3 of 12 trials",
        "30\u00a0min of 60\u00a0min device time",
        "17\u00a0min of 30\u00a0min wall time",
    ]
    assert said_of_costs(written).startswith("30\u00a0min of device time so far, 15\u00a0min in finished trials")


@pytest.mark.parametrize("n", [0, 1, 2, 200])
def test_any_number_of_trials(written: Record, n: int) -> None:
    rows = [
        make_trial(i + 1, "finished" if i % 3 else "stopped", 20 + 12 * (i % 4), i % 2 > 0, STEPS, 0.1, EPOCHS)
        for i in range(n)
    ]
    written.trials, written.best, written.importance = rows, "0002" if n > 1 else "", {}
    for panel in panels(written):
        figure = panel.draw(written)
        assert panel.said(written)
        assert (figure is None) or len(json.dumps(json.loads(figure.to_json()))) < 2_000_000
        assert figure is None or figure.layout.uirevision == "stay"
    drawn = figures.curves(written)
    assert (drawn is None) == (n == 0)


def test_a_trial_that_knows_nothing_and_one_that_diverged(written: Record) -> None:
    written.trials = [Trial("0001", {"model.depth": 20}, "t/0001"), written.trial("0001"), written.trial("0006")]
    written.trials[1].id = "0002"
    written.trials[1].history[2]["val_error"] = None  # ty: ignore[invalid-assignment]
    written.best = ""
    for panel in panels(written):
        panel.draw(written)


def test_words_of_the_sweep_cannot_be_markup(written: Record) -> None:
    trial = written.trial("0003")
    trial.why, trial.point["model.shortcut"], trial.net = "<img src=x>", "<b>", "<i>net20"
    drawn = [figure for panel in panels(written) if (figure := panel.draw(written)) is not None]
    hovers = [
        str(t.get(key)) for f in drawn for t in f.to_dict()["data"] for key in ("hovertext", "hovertemplate", "name")
    ]
    assert any("&lt;img src=x&gt;" in hover for hover in hovers)
    assert not any(bad in hover for hover in hovers for bad in ("<img", "<i>net", "shortcut <b>"))


def test_sections_are_told_apart_in_one_word() -> None:
    assert spelled_out([STEPS, COSINE]) == ["steps", "cosine"]
    assert spelled_out([STEPS, {"kind": "steps", "milestones": [2]}]) == ["[4, 6]", "[2]"]
    assert spelled_out([{"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a": 2, "b": 2}]) == ["a 1, b 1", "a 1, b 2", "a 2, b 2"]
    assert spelled_out([STEPS]) == ["kind steps, milestones [4, 6]"]
    assert analysis.key({"b": 1, "a": [1, 2]}) == analysis.key({"a": [1, 2], "b": 1})
