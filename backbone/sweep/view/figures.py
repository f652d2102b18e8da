"""The pictures of a sweep, each drawn once for the live page and for the report: Record -> Plotly figure.

Text and grid colours are left to the page around, so that figures follow light and dark. States differ by colour
(Okabe-Ito), dash and symbol. The caption of a view says in words what is left out.
"""

import math
from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go

from backbone.sweep import analysis
from backbone.sweep.record import Objective, Record, Trial
from backbone.sweep.standing import interval, word
from backbone.sweep.view.axes import cost_label, dimension, error_bars, log_ticks
from backbone.sweep.view.wording import STATES, amount, point, short, short_names

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, GREY = "#0072B2 #E69F00 #009E73 #D55E00 #CC79A7 #56B4E9 #8b8f96".split()
FAINT = "rgba(128,128,128,0.22)"
SCALE = [[0, BLUE], [0.5, "#999999"], [1, ORANGE]]
"""Low to high; the same with any colour vision, and visible on light and dark."""


@dataclass(frozen=True)
class Look:
    colour: str
    dash: str
    end: str
    """Symbol of the last point of its curve."""
    pattern: str


LOOKS = {
    "finished": Look(BLUE, "solid", "circle", ""),
    "running": Look(GREEN, "solid", "triangle-right", "."),
    "stopped": Look(ORANGE, "dash", "x", "/"),
    "failed": Look(VERMILLION, "dot", "star-triangle-down", "x"),
    "waiting": Look(GREY, "dashdot", "circle-open", "-"),
}
FAMILIES = ((BLUE, "circle", "solid"), (VERMILLION, "square", "dash"), (GREEN, "diamond", "dot"))
FAMILIES += ((PURPLE, "triangle-up", "dashdot"), (ORANGE, "cross", "longdash"), (SKY, "star", "longdashdot"))


def curves(record: Record) -> go.Figure | None:
    """Validation error against epochs, a line a trial, its end marked by its state; rungs as vertical lines."""
    drawn = [t for t in record.trials if t.history]
    if not drawn:
        return None
    figure, shown = blank("epoch", "validation error (%)"), set()
    for trial in sorted(drawn, key=lambda t: t.id == record.best):  # the best on top
        look, n, best = LOOKS[trial.state], len(trial.history), trial.id == record.best
        symbols, sizes = ["circle"] * (n - 1) + [look.end], [4] * (n - 1) + [10]
        figure.add_scatter(
            x=[row["epoch"] for row in trial.history],
            y=[row["val_error"] for row in trial.history],
            mode="lines+markers",
            line={"color": look.colour, "dash": look.dash, "width": 3.5 if best else 1.6},
            marker={"symbol": symbols, "size": sizes, "color": look.colour, "opacity": 1, "line": {"width": 0}},
            opacity=1 if best or len(drawn) < 20 else 0.65 if len(drawn) < 60 else 0.4,
            name=STATES[trial.state],
            legendgroup=trial.state,
            legendrank=list(STATES).index(trial.state) + 1,
            showlegend=_first(trial.state, shown),
            meta=trial.id,
            hovertemplate=f"{_about(trial, record)}<br>epoch %{{x:.4g}}: %{{y:.2f}} %<extra></extra>",
        )
    _rungs(figure, record)
    figure.update_xaxes(rangemode="tozero")
    return figure


def parallel(record: Record) -> go.Figure | None:
    """Parallel coordinates: the fields that vary and the first objective, which is the colour too; finished trials."""
    objective = record.objectives[0]
    done = scored(record, objective)
    fields = [f for f in analysis.varying(record) if all(f in t.point for t in done)]
    if not done or not fields:
        return None
    names = short_names(fields)
    axes = [dimension(record, names[f], f, done) for f in fields]
    reached = [analysis.score(t, objective) for t in done]
    axes.append({"label": short(objective.label, 26), "values": reached})
    line = {"color": reached, "colorscale": SCALE, "showscale": True, "reversescale": objective.mode == "max"}
    line["colorbar"] = {"thickness": 10, "outlinewidth": 0, "title": {"text": ""}}
    figure = go.Figure(
        go.Parcoords(
            dimensions=axes,
            line=line,
            labelangle=0,
            labelfont={"size": 13},
            tickfont={"size": 12},
            meta=[t.id for t in done],
        )
    )
    figure.update_layout(template="none", margin={"l": 70, "r": 30, "t": 62, "b": 28}, height=400, uirevision="stay")
    figure.update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")
    return figure


def against(record: Record, cost: str) -> go.Figure | None:
    """The first objective against "depth", a cost or another objective, with the Pareto front of finished trials.

    Families of nets differ by colour and symbol; unfinished trials are hollow. Against depth, a line goes through the
    best finished trial of each depth, as in the paper's degradation study.
    """
    objective = record.objectives[0]
    points = [
        (t, x, y)
        for t in record.trials
        if (x := analysis.cost(record, t, cost)) is not None and (y := analysis.score(t, objective)) is not None
    ]
    if not points:
        return None
    figure = blank(cost_label(record, cost), objective.label)
    families = list(dict.fromkeys(analysis.family(t) for t in record.trials if t.net))
    front = analysis.front(record, objective, cost)
    if front:
        figure.add_scatter(
            x=[analysis.cost(record, t, cost) for t in front],
            y=[analysis.score(t, objective) for t in front],
            mode="lines+markers",
            line={"color": GREY, "width": 5, "shape": "linear"},
            marker={"size": 17, "symbol": "circle-open", "color": GREY, "line": {"width": 2}},
            opacity=0.5,
            name="Pareto front",
            meta="front",
            ids=[t.id for t in front],
            hoverinfo="skip",
        )
    for i, family in enumerate(families):
        colour, symbol, dash = FAMILIES[i % len(FAMILIES)]
        for finished in (True, False):
            mine = [p for p in points if analysis.family(p[0]) == family and (p[0].state == "finished") == finished]
            if not mine:
                continue
            bars = error_bars([(interval(t, objective.name), y) for t, _, y in mine])
            mark = {"size": 10, "symbol": symbol if finished else f"{symbol}-open", "color": colour}
            figure.add_scatter(
                x=[x for _, x, _ in mine],
                y=[y for _, _, y in mine],
                mode="markers",
                error_y=bars,
                marker=mark | {"line": {"width": 2 if not finished else 0}},
                name=_plain(family),
                showlegend=finished,
                meta="finished" if finished else "unfinished",
                ids=[t.id for t, _, _ in mine],
                hovertext=[_spot(t, record, cost) for t, _, _ in mine],
                hoverinfo="text",
            )
        if cost == "depth":
            best: dict[float, float] = {}
            for t, x, y in points:
                if analysis.family(t) == family and t.state == "finished":
                    best[x] = y if x not in best or objective.better(y, best[x]) else best[x]
            if len(best) > 1:
                line = {"color": colour, "dash": dash, "width": 2}
                xs = sorted(best)
                figure.add_scatter(x=xs, y=[best[x] for x in xs], mode="lines", line=line, meta="best", name=family)
                figure.data[-1].update(showlegend=False, hoverinfo="skip")
    if any(t.state != "finished" for t, _, _ in points):
        hollow = {"symbol": "circle-open", "size": 10, "color": GREY, "line": {"width": 2}}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=hollow, name="unfinished", meta="legend")
    xs = sorted({x for _, x, _ in points})
    if cost == "depth":
        figure.update_xaxes(tickvals=xs if len(xs) <= 10 else None)
    elif min(xs) > 0:
        ends = [math.log10(min(xs)) - 0.08, math.log10(max(xs)) + 0.08]
        figure.update_xaxes(type="log", range=ends, **log_ticks(min(xs), max(xs), cost))
    return figure


def importance(record: Record) -> go.Figure | None:
    """A bar a field, the largest on top."""
    if not record.importance:
        return None
    names = short_names(list(record.importance))
    rows = sorted(record.importance.items(), key=lambda item: item[1])
    figure = blank("share of the explained variation", "")
    figure.add_bar(
        x=[share for _, share in rows],
        y=[short(names[field], 24) for field, _ in rows],
        orientation="h",
        text=[f"{100 * share:.0f} %" for _, share in rows],
        textposition="outside",
        cliponaxis=False,
        marker={"color": BLUE},
        width=0.55,
        meta=[field for field, _ in rows],
        hovertemplate="%{y}: %{x:.1%}<extra></extra>",
    )
    figure.update_xaxes(tickformat=".0%", range=[0, max(share for _, share in rows) * 1.18])
    figure.update_layout(height=120 + 42 * len(rows))
    return figure


def rates(record: Record) -> go.Figure | None:
    """The learning rate of each trial over its whole schedule; where PBT changed it, a mark."""
    drawn = [t for t in record.trials if t.lr]
    if not drawn:
        return None
    figure, shown = blank("epoch", "learning rate"), set()
    for trial in sorted(drawn, key=lambda t: t.id == record.best):
        look = LOOKS[trial.state]
        figure.add_scatter(
            x=[epoch for epoch, _ in trial.lr],
            y=[lr for _, lr in trial.lr],
            mode="lines",
            line={"color": look.colour, "dash": look.dash, "width": 3.5 if trial.id == record.best else 1.6},
            opacity=1 if trial.id == record.best else 0.85,
            name=STATES[trial.state],
            legendgroup=trial.state,
            legendrank=list(STATES).index(trial.state) + 1,
            showlegend=_first(trial.state, shown),
            meta=trial.id,
            hovertemplate=f"{_about(trial, record)}<br>epoch %{{x:.3g}}: %{{y:.4g}}<extra></extra>",
        )
        if trial.lineage:
            took = [
                f"took the weights of {x['from']}, rate {x['lr_before']:.4g} → {x['lr']:.4g}" for x in trial.lineage
            ]
            figure.add_scatter(
                x=[step["epoch"] for step in trial.lineage],
                y=[step["lr"] for step in trial.lineage],
                mode="markers",
                marker={"symbol": "diamond", "size": 9, "color": PURPLE},
                name="took other weights",
                legendgroup="lineage",
                showlegend=_first("lineage", shown),
                meta=f"{trial.id} lineage",
                hovertext=[f"{_about(trial, record)}<br>{escape(text)}" for text in took],
                hoverinfo="text",
            )
    figure.update_yaxes(rangemode="tozero")
    return figure


def costs(record: Record) -> go.Figure | None:
    """Device-hours of each trial, coloured by what became of it."""
    drawn = [t for t in record.trials if t.values.get("device_hours")]
    if not drawn:
        return None
    figure = blank("trial", "device-hours")
    for state in STATES:
        mine = [t for t in drawn if t.state == state]
        if mine:
            look = LOOKS[state]
            pattern = {"shape": look.pattern, "fillmode": "overlay", "solidity": 0.2, "fgcolor": "white"}
            figure.add_bar(
                x=[t.id for t in mine],
                y=[t.values["device_hours"] for t in mine],
                name=STATES[state],
                marker={"color": look.colour, "pattern": pattern},
                meta=state,
                hovertext=[f"{_about(t, record)}<br>{amount('device_hours', t.values['device_hours'])}" for t in mine],
                hoverinfo="text",
            )
    order = [t.id for t in drawn]
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=order, showgrid=False)
    figure.update_layout(barmode="stack", legend={"traceorder": "normal"})
    return figure


def blank(x: str, y: str) -> go.Figure:
    """A figure without data, its axes labelled."""
    figure = go.Figure()
    axis = {"gridcolor": FAINT, "zeroline": False, "linecolor": FAINT, "automargin": True}
    figure.update_layout(
        template="none",
        height=420,
        margin={"l": 12, "r": 16, "t": 36, "b": 12},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"},
        hovermode="closest",
        hoverlabel={"align": "left"},
        uirevision="stay",  # zoom and hidden legend entries survive a refresh
        xaxis={"title": {"text": escape(x), "font": {"size": 13}}, **axis},
        yaxis={"title": {"text": escape(y), "font": {"size": 13}}, **axis},
    )
    return figure


def _rungs(figure: go.Figure, record: Record) -> None:
    length = one_length(record)
    for i, epoch in enumerate(length * rung for rung in record.rungs if length):
        figure.add_shape(
            type="line", x0=epoch, x1=epoch, y0=0, y1=1, yref="paper", line={"color": GREY, "width": 1, "dash": "dot"}
        )
        figure.add_annotation(
            x=epoch, y=1, yref="paper", yanchor="top", xanchor="left", text=f"rung {i + 1}", showarrow=False
        )
        figure.layout.annotations[-1].font = {"size": 11, "color": GREY}


def _about(trial: Trial, record: Record) -> str:
    known = word(record, trial)
    best, state = f", {known}" if known else "", STATES[trial.state]
    why = f"<br>{escape(short(trial.why, 70))}" if trial.why else ""
    return f"<b>{escape(trial.id)}</b> {escape(trial.net)}, {state}{best}<br>{escape(point(trial.point))}{why}"


def _spot(trial: Trial, record: Record, cost: str) -> str:
    first = record.objectives[0]
    reached, spent = analysis.score(trial, first), analysis.cost(record, trial, cost)
    at = f"{spent:g}" if cost == "depth" and spent is not None else amount(cost, spent)
    so_far = "" if trial.state == "finished" else " so far, unfinished"
    return (
        f"{_about(trial, record)}<br>{escape(first.label)} {amount(first.name, reached)}{so_far}"
        f"<br>{escape(cost_label(record, cost))} {at}"
    )


def scored(record: Record, objective: Objective) -> list[Trial]:
    return [t for t in record.of_state("finished") if analysis.score(t, objective) is not None]


def one_length(record: Record) -> float:
    """The epochs of all trials' schedules; 0 where they differ."""
    lengths = {t.epochs for t in record.trials}
    return lengths.pop() if len(lengths) == 1 else 0


def has(record: Record, trial: Trial, cost: str) -> bool:
    return analysis.cost(record, trial, cost) is not None


def _first(name: str, shown: set[str]) -> bool:
    new = name not in shown
    shown.add(name)
    return new


def _plain(family: str) -> str:
    return escape(family.replace("_", " "))


def trials(n: int) -> str:
    return f"{n} trial{'' if n == 1 else 's'}"
