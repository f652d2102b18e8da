"""A run's curves as a picture: what it is measured by, its losses, its learning rate."""

import io
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

FEW = 20
"""Fewer points than these are drawn as such: a line through one is nothing."""


class Measure(NamedTuple):
    """A curve of the left panel."""

    key: str
    """Of log records, or of evaluations (`val_...`). Runs that never report it have no such curve."""

    label: str
    colour: str


def draw_curves(
    history: list[dict[str, Any]], title: str, measures: Iterable[Measure], unit: str, final: float | None = None
) -> bytes:
    """PNG of the records of a run (`Progress.history`), over steps, as in the paper's figures 4 and 6.

    `unit` is the left axis, `final` a level on it: what the artifact has.
    """
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for measure in measures:
        _plot(left, history, measure.key, label=measure.label, color=measure.colour)
    if final is not None:
        left.axhline(final, color="#08519c", linestyle=":", linewidth=1, label=f"artifact {final:.2f} %")
    left.set(xlabel="step", ylabel=unit, ylim=(0, None), title=title)
    if left.get_legend_handles_labels()[0]:
        left.legend(frameon=False)
    for name in sorted({name for record in history for name in record if name.startswith(("loss", "val_loss"))}):
        label = {"loss": "training loss", "val_loss": "validation"}.get(name, name.removeprefix("loss_"))
        _plot(right, history, name, label=label, linewidth=1.8 if name in ("loss", "val_loss") else 0.9)
    right.set(xlabel="step", ylabel="loss", ylim=(0, None))
    rate = right.twinx()
    _plot(rate, history, "lr", label="learning rate", color="#969696", linestyle=":", linewidth=1)
    rate.set(ylabel="learning rate", ylim=(0, None))
    right.legend(
        handles=[line for axes in (right, rate) for line in axes.get_legend_handles_labels()[0]], frameon=False
    )
    for axes in (left, right):
        axes.spines[["top"]].set_visible(False)
        axes.grid(alpha=0.25)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()


def draw_overlay(curves: Sequence[tuple[str, Sequence[list[dict[str, Any]]]]]) -> bytes:
    """PNG of top-1 error over steps of several nets, as the paper's figures 4 and 6: training thin, validation bold.

    `curves` are (label, the records of each training of that net): a colour a net.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for i, (label, histories) in enumerate(curves):
        for history in histories:
            _plot(axes, history, "error", color=f"C{i % 10}", linewidth=0.7, alpha=0.8)
            _plot(axes, history, "val_error", color=f"C{i % 10}", linewidth=2.2)
        axes.plot([], [], color=f"C{i % 10}", linewidth=2.2, label=label)
    axes.set(xlabel="step", ylabel="top-1 error (%): training thin, validation bold", ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()


def _plot(axes: Any, history: list[dict[str, Any]], key: str, **look: Any) -> None:
    points = [(record["step"], record[key]) for record in history if key in record]
    if points:
        marker = {"marker": "o", "markersize": 3} if len(points) < FEW else {}
        axes.plot(*zip(*points, strict=True), **marker, **look)
