"""Two fields against each other."""

from html import escape
from typing import Any

import plotly.graph_objects as go

from backbone.sweep import analysis
from backbone.sweep.record import Record, Trial
from backbone.sweep.view.figures import GREY, SCALE, blank
from backbone.sweep.view.wording import amount, short, short_names, spelled_out


def grid(record: Record, axes: tuple[str, str] | None = None) -> go.Figure | None:
    """What the best of the finished trials of each pair of values of two fields reached; `axes`: down and across.

    Cells nobody finished say so and have no colour.
    """
    fields = analysis.grid_fields(record)
    axes = axes or (fields[0], fields[1]) if len(fields) > 1 else None
    if not axes:
        return None
    objective, (down, across) = record.objectives[0], axes
    rows, columns = analysis.ordered(record, down), analysis.ordered(record, across)
    z: list[list[float | None]] = []
    text: list[list[str]] = []
    left_open: list[tuple[int, int]] = []
    for row in rows:
        z.append([])
        text.append([])
        for column in columns:
            here = [t for t in record.trials if _is(t, down, row) and _is(t, across, column)]
            done = [s for t in here if t.state == "finished" and (s := analysis.score(t, objective)) is not None]
            best = None if not done else min(done) if objective.mode == "min" else max(done)
            z[-1].append(best)
            text[-1].append(amount(objective.name, best) if done else "")
            if here and not done:
                left_open.append((len(z[-1]) - 1, len(z) - 1))
    names = short_names([down, across])
    figure = blank(names[across], names[down])
    figure.add_heatmap(
        z=z,
        x=[short(text, 26) for text in spelled_out(columns)],
        y=[short(text, 26) for text in spelled_out(rows)],
        text=text,
        texttemplate="%{text}",
        hovertemplate=f"{escape(names[down])} %{{y}}, {escape(names[across])} %{{x}}: %{{text}}<extra></extra>",
        colorscale=SCALE,
        reversescale=objective.mode == "max",
        showscale=False,
        xgap=3,
        ygap=3,
    )
    for x, y in left_open:
        figure.add_annotation(x=x, y=y, text="unfinished", showarrow=False, font={"size": 11, "color": GREY})
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", showgrid=False, autorange="reversed")
    figure.update_layout(height=max(260, 90 + 56 * len(rows)))
    return figure


def _is(trial: Trial, field: str, given: Any) -> bool:
    return field in trial.point and analysis.key(trial.point[field]) == analysis.key(given)
