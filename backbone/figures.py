"""The pictures of `backbone.analysis`, drawn from its numbers alone."""

import io
from typing import Any


def draw_gradients(rows: list[dict[str, Any]]) -> bytes:
    """PNG: norm of the gradient by each unit's output, at the start and after training, a panel each.

    `rows`: {name, kind, depth, state, units as of `gradient_norms`}.
    """
    states = sorted({row["state"] for row in rows})
    figure, panels = _panels(len(states))
    for panel, state in zip(panels, states, strict=True):
        for row in (row for row in rows if row["state"] == state):
            norms = [unit["output"] for unit in row["units"]]
            _line(panel, row, norms)
        panel.set(
            yscale="log", xlabel="depth of the unit: 0 image, 1 classes", ylabel="gradient norm a sample", title=state
        )
    return _png(figure)


def draw_responses(rows: list[dict[str, Any]]) -> bytes:
    """PNG as the paper's Fig. 7: deviation of each 3x3 layer's output, in their order and by size.

    `rows`: {name, kind, depth, layers as of `layer_responses`}.
    """
    figure, (ordered, ranked) = _panels(2)
    for row in rows:
        deviations = [layer["std"] for layer in row["layers"]]
        _line(ordered, row, deviations)
        _line(ranked, row, sorted(deviations, reverse=True))
    ordered.set(xlabel="depth of the layer: 0 image, 1 classes", ylabel="std", title="layer responses", yscale="log")
    ranked.set(xlabel="rank by size: 0 largest, 1 smallest", ylabel="std", yscale="log")
    return _png(figure)


def draw_scaling(rows: list[dict[str, Any]], name: str) -> bytes:
    """PNG: gradients under λ-scaled shortcuts, of the whole net and through the shortcuts alone.

    `rows`: {scale, units as of `gradient_norms`, measured and closed_form as of `shortcut_path` and
    `shortcut_factors`}.
    """
    figure, (whole, alone) = _panels(2)
    for number, row in enumerate(rows):
        colour, label = f"C{number}", f"λ = {row['scale']:g}"
        whole.plot([unit["output"] for unit in row["units"]], color=colour, label=label)
        places = range(len(row["measured"]))
        alone.plot(places, row["closed_form"], color=colour, linewidth=1, label=f"{label}: λ^k")
        alone.plot(places, row["measured"], ".", color=colour, markersize=3, label="measured")
    whole.set(yscale="log", xlabel="unit, from image to classes", ylabel="gradient norm a sample", title=name)
    alone.set(
        yscale="log", xlabel="unit, from image to classes", title="through the shortcuts alone, by the last unit's"
    )
    return _png(figure)


def _line(panel: Any, row: dict[str, Any], values: list[float]) -> None:
    depths = {20: "#9ecae1", 56: "#4292c6", 110: "#08306b"}
    colour = depths.get(row["depth"], "#737373")
    style = "--" if row["kind"] == "plain" else "-"
    panel.plot(
        [i / max(len(values) - 1, 1) for i in range(len(values))], values, style, color=colour, label=row["name"]
    )


def _panels(count: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    figure = Figure(figsize=(5 * max(count, 1), 4.2), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _png(figure: Any) -> bytes:
    for axes in figure.axes:
        axes.legend(frameon=False, fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()
