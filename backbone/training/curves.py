"""A run's curves as a picture: training and validation error, loss, learning rate."""

import io
from typing import Any


def draw_curves(history: list[dict[str, Any]], title: str, final_error: float) -> bytes:
    """PNG of the records of a run (`Progress.history`), over steps, as in the paper's figures 4 and 6."""
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    logs = [record for record in history if "lr" in record]
    evaluations = [record for record in history if "val_error" in record]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    error, loss = figure.subplots(1, 2)
    error.plot([r["step"] for r in logs], [r["error"] for r in logs], color="#9ecae1", label="training")
    error.plot(
        [r["step"] for r in evaluations], [r["val_error"] for r in evaluations], color="#08519c", label="validation"
    )
    error.axhline(final_error, color="#08519c", linestyle=":", linewidth=1, label=f"artifact {final_error:.2f} %")
    error.set(xlabel="step", ylabel="top-1 error (%)", ylim=(0, None), title=title)
    error.legend(frameon=False)
    loss.plot([r["step"] for r in logs], [r["loss"] for r in logs], color="#9ecae1", label="training loss")
    loss.plot(
        [r["step"] for r in evaluations], [r["val_loss"] for r in evaluations], color="#08519c", label="validation"
    )
    loss.set(xlabel="step", ylabel="loss")
    rate = loss.twinx()
    rate.plot([r["step"] for r in logs], [r["lr"] for r in logs], color="#e6550d", linewidth=1, label="learning rate")
    rate.set(ylabel="learning rate", ylim=(0, None))
    handles = loss.get_legend_handles_labels()[0] + rate.get_legend_handles_labels()[0]
    loss.legend(handles=handles, frameon=False)
    for axes in (error, loss):
        axes.spines[["top"]].set_visible(False)
        axes.grid(alpha=0.25)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()
