"""The chart of a ladder: what every row is worth, against the share of labels and against what a rung costs."""

import io
from typing import TYPE_CHECKING, Any

from detection.report.wording import title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1f6fb2", "#d2691e", "#1d8a6b", "#a2479b", "#b8901a", "#c2405a", "#4f7f2b")
BASELINE = "#7d838c"
"""The page's, in its order: the baseline is grey, the others take colours."""
MARKERS = "osD^vP*X"
ALONE = "#8b8f96"
APART = 0.012
"""Of the axis, between rows that would lie over each other."""


def draw(ladder: dict[str, Any]) -> bytes:
    """PNG of `ladder.to_json`'s dict. Whiskers are joint 95 % intervals, grey ones of other images alone."""
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    rungs = ladder["rungs"]
    last = rungs[-1]
    by_labels = [rung for rung in rungs if rung["labels"] < 1 or rung is last]
    by_cost = [rung for rung in rungs if rung["seconds_share"]]
    panels = [
        ("share of the labels, %", [(100 * rung["labels"], rung) for rung in by_labels], True),
        (f"cost, % of the seconds of {last['name']}", [(100 * rung["seconds_share"], rung) for rung in by_cost], False),
    ]
    panels = [panel for panel in panels if len(panel[1]) > 1]
    figure = Figure(figsize=(5.6 * max(1, len(panels)), 4.6), layout="constrained")
    axes = figure.subplots(1, max(1, len(panels)), squeeze=False, sharey=True)[0]
    for ax, (said, points, joined) in zip(axes, panels, strict=False):
        _panel(ax, points, list(last["worth"]), ladder["baseline"], joined)
        ax.set(xlabel=said)
    axes[0].set(ylabel=f"{title(ladder['main'])}, %", ylim=(0, None))
    if panels:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()


def _panel(
    ax: "Axes", points: list[tuple[float, dict[str, Any]]], labels: list[str], baseline: str, joined: bool
) -> None:
    """A dot with its whisker for each row on each rung; `joined` by lines."""
    from matplotlib.ticker import LogLocator, NullFormatter

    others = [label for label in labels if label != baseline]
    colours = {baseline: BASELINE} | {label: COLOURS[k % len(COLOURS)] for k, label in enumerate(others)}
    span = max(x for x, _ in points) / min(x for x, _ in points)
    for k, label in enumerate(labels):
        colour = colours[label]
        shift = span ** (APART * (k - (len(labels) - 1) / 2))
        own = [(x * shift, rung["worth"][label]) for x, rung in points if label in rung["worth"]]
        own = sorted([one for one in own if one[1]["value"] is not None], key=lambda one: one[0])
        for x, told in own:
            ends = told["joint"] or told["images"]
            if ends:
                style = colour if told["joint"] else ALONE
                ax.plot([x, x], [100 * ends["low"], 100 * ends["high"]], color=style, alpha=0.55, linewidth=1.6)
        xs, values = [x for x, _ in own], [100 * told["value"] for _, told in own]
        line, marker = "-" if joined else "none", MARKERS[k % len(MARKERS)]
        ax.plot(xs, values, linestyle=line, marker=marker, color=colour, label=label, linewidth=1.2, markersize=6)
    for k, (x, rung) in enumerate(sorted(points, key=lambda point: point[0])):
        ax.annotate(
            rung["name"],
            (x, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4 + 11 * (k % 2)),  # names of rungs that cost the same, one above the other
            textcoords="offset points",
            rotation=30,
            fontsize=8,
            color="#666b73",
        )
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
