"""The panels of a sweep, shown by the live page and by the report: a figure, its heading and its caption in words."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import plotly.graph_objects as go

from backbone.sweep import analysis
from backbone.sweep.record import Objective, Record, Trial
from backbone.sweep.standing import EXACT, interval, leading
from backbone.sweep.view import figures, grid
from backbone.sweep.view.figures import has, one_length, scored, trials
from backbone.sweep.view.wording import STATES, duration


@dataclass(frozen=True)
class Panel:
    """A picture with its heading and caption."""

    key: str
    tab: str
    title: str
    draw: Callable[[Record], go.Figure | None]
    """None where there is nothing to draw yet."""
    said: Callable[[Record], str]
    """Plain text."""


def panels(record: Record) -> list[Panel]:
    """All panels that this sweep has, in the order they are shown in."""
    first = record.objectives[0]
    noun = first.label.partition(" (")[0]
    noun = noun[0].upper() + noun[1:]
    others = [o.name for o in record.objectives[1:]]
    shown = dict.fromkeys(["depth", "macs", *others, "device_hours"])
    found = [
        Panel("curves", "Curves", "Learning curves", figures.curves, said_of_curves),
        Panel("parallel", "Parallel", "Parallel coordinates", figures.parallel, said_of_parallel),
    ]
    titles = {"macs": "multiply-adds", "params": "parameters", "device_hours": "training cost", "latency_ms": "latency"}
    for cost in shown:
        if cost != first.name:
            name = titles.get(cost, cost)
            tab = name[0].upper() + name[1:]
            found.append(Panel(f"against-{cost}", tab, f"{noun} against {name}", _drawn(cost), _said(cost)))
    return [
        *found,
        Panel("grid", "Grid", "Grid", grid.grid, said_of_grid),
        Panel("importance", "Importance", "Importance of each field", figures.importance, said_of_importance),
        Panel("rates", "Learning rates", "Learning rates", figures.rates, said_of_rates),
        Panel("costs", "Cost so far", "Cost so far", figures.costs, said_of_costs),
    ]


def missing(record: Record, panel: Panel) -> str:
    """What to say where there is no figure: that it may come, or why there will be none."""
    if record.state != "finished":
        return "Nothing to draw yet."
    reasons = {
        "grid": "No two fields have listed values that several trials differ in.",
        "importance": "No field explains anything." if len(record.of_state("finished")) >= analysis.FEWEST else "",
        "parallel": "No field varies between finished trials.",
        "rates": "No trial has a schedule.",
    }
    return reasons.get(panel.key, "No trial has both values." if panel.key.startswith("against") else "No trial ran.")


def alone(record: Record, trial: Trial) -> Record:
    """The record with this trial alone, to draw its own curve and rate."""
    return replace(record, trials=[trial])


def said_of_curves(record: Record) -> str:
    stopped, failed = len(record.of_state("stopped")), len(record.of_state("failed"))
    parts = [f"A line a trial, {leading(record)} bold."]
    if stopped:
        parts.append(f"{stopped} stopped early: dashed, with a cross where it ended.")
    if failed:
        parts.append(f"{failed} failed: dotted, with a star.")
    if record.rungs:
        at = ", ".join(f"{100 * rung:.3g}" for rung in record.rungs)
        lines = "Vertical lines: the rungs" if one_length(record) else "Rungs"
        parts.append(f"{lines}, at {at} % of a trial's own schedule, where only the better ones go on.")
    return " ".join(parts)


def said_of_parallel(record: Record) -> str:
    left = len(record.trials) - len(scored(record, record.objectives[0]))
    text = f"A line a finished trial; colour is {record.objectives[0].label}. Drag along an axis to select."
    return f"{text} {trials(left)} left out: not finished." if left else text


def said_of_against(record: Record, cost: str) -> str:
    objective = record.objectives[0]
    undrawn = [t for t in record.trials if analysis.score(t, objective) is None or not has(record, t, cost)]
    hollow = [t for t in record.trials if t.state != "finished" and t not in undrawn]
    parts = ["Grey: the Pareto front, of finished trials alone."]
    if cost == "depth":
        parts.append(f"Lines: {extreme(objective)} of the finished trials of each depth.")
    if objective.name not in EXACT and any(interval(t, objective.name) for t in record.of_state("finished")):
        parts.append("Bars: 95 % intervals, of other validation images.")
    if hollow:
        parts.append(f"{trials(len(hollow))} hollow: unfinished, at the lowest error so far, not to be compared.")
    if undrawn:
        parts.append(f"{trials(len(undrawn))} without a value.")
    return " ".join(parts)


def said_of_grid(record: Record) -> str:
    objective = record.objectives[0]
    label = objective.label
    of_which = f"{extreme(objective)} of the finished trials of each pair"
    return f"{label[0].upper()}{label[1:]}, {of_which}. Trials stopped early do not count."


def said_of_importance(record: Record) -> str:
    done = len(record.of_state("finished"))
    if not record.importance:
        so_far = "" if record.state == "finished" else "so far "
        return f"It needs {analysis.FEWEST} finished trials that differ; {so_far}{done} finished."
    few = " With so few, take it as a hint." if done < 20 else ""
    return (
        f"Why the {done} finished trials differ in {record.objectives[0].label}: what each field explains alone, as a "
        f"share of what all fields explain alone.{few}"
    )


def said_of_rates(record: Record) -> str:
    text = f"The whole schedule of each trial, also of those that did not get to its end; {leading(record)} bold."
    changes = sum(len(t.lineage) for t in record.trials)
    took = f"Diamonds, {changes}: a trial took another's weights and went on at another rate."
    return f"{text} {took}" if changes else text


def said_of_costs(record: Record) -> str:
    """Cost so far, of what, and what is left of each limit of the budget."""
    spent = record.device_hours
    parts = [f"{duration(3600 * spent)} of device time so far"]
    for state in ("finished", "stopped", "failed"):
        hours = sum(t.values.get("device_hours", 0.0) for t in record.of_state(state))
        if hours:
            parts.append(f"{duration(3600 * hours)} in {STATES[state]} trials")
    text = ", ".join(parts) + "."
    left = left_of_budget(record)
    return f"{text} Left: {', '.join(left)}." if left else text


def left_of_budget(record: Record) -> list[str]:
    """What is left of trials, device-hours and hours, of those the budget limits."""
    budget = record.sweep.get("budget") or {}
    begun = sum(bool(trial.started) for trial in record.trials)
    left = [f"{max(0, analysis.planned(record) - begun)} of {analysis.planned(record)} trials"] if record.trials else []
    for key, spent, unit in (
        ("device_hours", record.device_hours, "device time"),
        ("hours", record.seconds / 3600, "wall time"),
    ):
        if budget.get(key):
            left.append(f"{duration(3600 * max(0.0, budget[key] - spent))} of {duration(3600 * budget[key])} {unit}")
    return left


def extreme(objective: Objective) -> str:
    return "the lowest" if objective.mode == "min" else "the highest"


def _drawn(cost: str) -> Callable[[Record], go.Figure | None]:
    return lambda record: figures.against(record, cost)


def _said(cost: str) -> Callable[[Record], str]:
    return lambda record: said_of_against(record, cost)
