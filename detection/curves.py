"""A fine-tuning run's curves as a picture: AP, losses, learning rate."""

import io
from typing import Any


def draw_curves(history: list[dict[str, Any]], title: str) -> bytes:
    """PNG of the records of a run (`Progress.history`), over steps."""
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    logs = [record for record in history if "lr" in record]
    evaluations = [record for record in history if "val_AP" in record]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    precision, loss = figure.subplots(1, 2)
    colours = {"val_AP": "#08519c", "val_AP50": "#9ecae1", "val_AP_masks": "#a63603", "val_AP50_masks": "#fdae6b"}
    for name, colour in colours.items():
        points = [(r["step"], r[name]) for r in evaluations if name in r]
        if points:
            label = name.removeprefix("val_").replace("_", ", ")
            precision.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=label)
    precision.set(xlabel="step", ylabel="%, validation", ylim=(0, None), title=title)
    if evaluations:
        precision.legend(frameon=False)
    steps = [r["step"] for r in logs]
    for name in sorted({name for r in logs for name in r if name.startswith("loss")}):
        wide = 1.8 if name == "loss" else 0.9
        loss.plot(steps, [r[name] for r in logs], linewidth=wide, label=name.removeprefix("loss_"))
    loss.set(xlabel="step", ylabel="loss", ylim=(0, None))
    rate = loss.twinx()
    rate.plot(steps, [r["lr"] for r in logs], color="#969696", linestyle=":", linewidth=1, label="learning rate")
    rate.set(ylabel="learning rate", ylim=(0, None))
    handles = loss.get_legend_handles_labels()[0] + rate.get_legend_handles_labels()[0]
    loss.legend(handles=handles, frameon=False)
    for axes in (precision, loss):
        axes.spines[["top"]].set_visible(False)
        axes.grid(alpha=0.25)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()
