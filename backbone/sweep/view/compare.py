"""Chosen trials side by side: curves in a colour each, what differs in their recipes, and filters to choose by."""

import csv
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from backbone.sweep import analysis
from backbone.sweep.record import Record, Trial
from backbone.sweep.standing import interval, word
from backbone.sweep.view.figures import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, blank
from backbone.sweep.view.wording import NONE, STATES, amount, short_names, span, spelled_out, value

COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, "#7f5539", "#8b8f96")
"""A colour a chosen trial (Okabe-Ito, brown and grey): no more are compared at a time."""

FEW = 12
"""Different values of a field, up to which it can be chosen by."""

FIRST = 4
"""Trials that are compared before anyone chose."""


def first_choice(record: Record, trials: Sequence[Trial]) -> list[str]:
    """Ids of the trials to begin with: the finished ones that reached most, or else those that came furthest."""
    objective = record.objectives[0]
    sign = 1 if objective.mode == "min" else -1

    def rank(trial: Trial) -> tuple[bool, float]:
        reached = trial.values.get(objective.name) if trial.state == "finished" else None
        return reached is None, sign * reached if reached is not None else -trial.epoch

    return [t.id for t in sorted((t for t in trials if t.history), key=rank)[:FIRST]]


def curves(record: Record, ids: Sequence[str]) -> go.Figure | None:
    """Validation error against epochs of these trials, at most as many as there are colours."""
    drawn = [record.trial(i) for i in ids[: len(COLOURS)]]
    if not any(trial.history for trial in drawn):
        return None
    figure = blank("epoch", "validation error (%)")
    for trial, colour in zip(drawn, COLOURS, strict=False):
        figure.add_scatter(
            x=[row["epoch"] for row in trial.history],
            y=[row["val_error"] for row in trial.history],
            mode="lines+markers",
            line={"color": colour, "width": 2.4, "dash": "solid" if trial.state in ("finished", "running") else "dash"},
            marker={"size": 5, "color": colour},
            name=escape(f"{trial.id} {trial.net}"),
            meta=trial.id,
            hovertemplate=f"<b>{escape(trial.id)}</b> epoch %{{x:.4g}}: %{{y:.2f}} %<extra></extra>",
        )
    figure.update_xaxes(rangemode="tozero")
    return figure


def fields_of(record: Record) -> list[str]:
    """Fields of the recipe that points of the space set, those of sections one by one."""
    found: dict[str, None] = {}
    for trial in record.trials:
        for name, given in trial.point.items():
            found |= dict.fromkeys(_flat(name, given))
    return list(found)


def _flat(name: str, given: Any) -> list[str]:
    if not isinstance(given, dict):
        return [name]
    return [field for key, inner in given.items() for field in _flat(f"{name}.{key}", inner)]


def recipe_words(record: Record, trial: Trial, fields: Sequence[str]) -> dict[str, str]:
    """Field -> its value in this trial's recipe, in words; a dash where it has none."""
    found = {field: analysis.field_of(record, trial, field) for field in fields}
    return {field: NONE if given in (None, [], "") else value(given) for field, given in found.items()}


def outcome(record: Record, trial: Trial) -> dict[str, str]:
    """What became of a trial, by label."""
    found = {"net": trial.net or NONE, "state": STATES[trial.state]}
    if known := word(record, trial):
        found["state"] += f", {known}"
    for one in record.objectives:
        reached = trial.values.get(one.name) if trial.state == "finished" or one.name != "val_error" else None
        ends = span(one.name, interval(trial, one.name))
        found[one.label] = f"{amount(one.name, reached)} {ends}".strip()
    found["lowest error so far"] = amount("val_error", trial.best_error)
    found["epochs"] = f"{trial.epoch:.3g} of {trial.epochs:g}"
    return found | {
        "parameters": amount("params", trial.values.get("params")),
        "device time": amount("device_hours", trial.values.get("device_hours")),
    }


def differences(record: Record, ids: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(label, a value of each trial) of all that became of them, and of the fields in which their recipes differ."""
    chosen = [record.trial(i) for i in ids[: len(COLOURS)]]
    if not chosen:
        return []
    fields = fields_of(record)
    outcomes, recipes = [outcome(record, t) for t in chosen], [recipe_words(record, t, fields) for t in chosen]
    rows = [(label, [one[label] for one in outcomes]) for label in outcomes[0]]
    listed = [(field, [one[field] for one in recipes]) for field in fields]
    return rows + [(field, values) for field, values in listed if len(set(values)) > 1]


def filters(record: Record) -> dict[str, dict[str, str]]:
    """Field, or "state" -> the values to choose by, each with its words; of fields that vary, and not in too many."""
    states = dict.fromkeys(t.state for t in record.trials)
    found: dict[str, dict[str, str]] = {"state": {state: STATES[state] for state in states}} if len(states) > 1 else {}
    for field in analysis.varying(record):
        values = analysis.ordered(record, field)
        if len(values) <= FEW:
            found[field] = dict(zip(map(analysis.key, values), spelled_out(values), strict=True))
    return found


def labels(record: Record) -> dict[str, str]:
    """What to call each of the filters."""
    return {"state": "state"} | short_names(analysis.varying(record))


def passing(record: Record, chosen: Mapping[str, Sequence[str]]) -> list[Trial]:
    """Trials whose fields have one of the chosen values; a field without any chosen lets all through."""

    def held(trial: Trial, field: str) -> str | None:
        if field == "state":
            return trial.state
        return analysis.key(trial.point[field]) if field in trial.point else None

    wanted = {field: values for field, values in chosen.items() if values}
    return [t for t in record.trials if all(held(t, field) in values for field, values in wanted.items())]


def as_csv(record: Record, trials: Sequence[Trial] | None = None) -> str:
    """The trials as comma-separated values with a head: numbers bare and in full, fields by their whole names."""
    fields, names = fields_of(record), [objective.name for objective in record.objectives]
    costs = [name for name in ("params", "macs", "device_hours") if name not in names]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = [f"{names[0]}_low", f"{names[0]}_high"]
    head = [
        "trial",
        "state",
        "net",
        *names,
        *ends,
        "lowest_val_error",
        "epoch",
        "epochs",
        "rung",
        *costs,
        *fields,
        "why",
    ]
    writer.writerow(head)
    for t in record.trials if trials is None else trials:
        reached = [t.values.get(name) if t.state == "finished" or name != "val_error" else None for name in names]
        lowest = min((row["val_error"] for row in t.history if row.get("val_error") is not None), default=None)
        line = [t.id, t.state, t.net, *reached, *(interval(t, names[0]) or (None, None)), lowest, t.epoch, t.epochs]
        line += [t.rung + 1 or None, *(t.values.get(name) for name in costs)]
        given = [analysis.field_of(record, t, field) for field in fields]
        line += [g if g is None or isinstance(g, str | int | float) else analysis.key(g) for g in given]
        writer.writerow([*line, t.why])
    return text.getvalue()
