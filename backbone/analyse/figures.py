"""The pictures of `backbone.analyse.analysis`, drawn from its numbers alone."""

import io
from typing import Any


def draw_gradients(rows: list[dict[str, Any]]) -> bytes:
    """PNG: norm of the gradient by each unit's output, and by its weights, at the start and after training.

    `rows`: {name, kind, depth, state, trained (in words), units as of `gradient_norms`}. A column for each state; a
    row shares its scale, so that start and end can be compared.
    """
    states = sorted({row["state"] for row in rows})
    measures = {"output": "by the unit's output, a sample", "weights": "by the unit's weights"}
    figure, panels = _panels(len(measures), len(states), sharey="row")
    for line, (measure, words) in zip(panels, measures.items(), strict=True):
        for panel, state in zip(line, states, strict=True):
            shown = [row for row in _sorted(rows) if row["state"] == state]
            for row in shown:
                _line(panel, row, [unit[measure] for unit in row["units"]], _label(row, shown))
            panel.set(yscale="log", title=_title(shown))
            panel.set_xlabel("depth of the unit: 0 image, 1 classes")
        line[0].set_ylabel(f"L2 norm of the loss's gradient\n{words}")
    return _png(figure)


def draw_responses(rows: list[dict[str, Any]]) -> bytes:
    """PNG as the paper's Fig. 7: deviation of each 3x3 layer's output, in their order and by size.

    `rows`: {name, kind, depth, trained (in words), layers as of `layer_responses`}. The scale starts at 0 as the
    paper's, but is logarithmic where layers differ more than 20-fold.
    """
    figure, ((ordered, ranked),) = _panels(1, 2, sharey="row")
    everything = [layer["std"] for row in rows for layer in row["layers"]]
    for row in _sorted(rows):
        deviations = [layer["std"] for layer in row["layers"]]
        _line(ordered, row, deviations, _label(row, rows))
        _line(ranked, row, sorted(deviations, reverse=True), _label(row, rows))
    title = f"layer responses\n{_title(rows)}"
    ordered.set(xlabel="depth of the layer: 0 image, 1 classes", title=title)
    if max(everything) > 20 * min(everything):
        ordered.set_yscale("log")
    else:
        ordered.set_ylim(bottom=0)
    ordered.set_ylabel("std of the 3x3 layer's output,\nafter BN, before ReLU or addition")
    ranked.set(xlabel="rank by size: 0 largest, 1 smallest", title="the same by size")
    return _png(figure)


def draw_scaling(rows: list[dict[str, Any]], name: str) -> bytes:
    """PNG: gradients under λ-scaled shortcuts, of the whole net and through the shortcuts alone.

    `rows`: {scale, units as of `gradient_norms`, measured and closed_form as of `shortcut_path` and
    `shortcut_factors`}.
    """
    figure, ((alone, whole),) = _panels(1, 2)
    for number, row in enumerate(rows):
        colour, label = f"C{number}", f"λ = {row['scale']:g}"
        whole.plot([unit["output"] for unit in row["units"]], color=colour, label=label)
        places = range(len(row["measured"]))
        alone.plot(places, row["closed_form"], color=colour, linewidth=1, label=label)
        alone.plot(places, row["measured"], ".", color=colour, markersize=4)
    title = f"{name}, shortcuts alone (F = 0)\ndots: measured, lines: λ to the number of units above"
    alone.set(yscale="log", xlabel="unit, from image to classes", title=title)
    alone.set_ylabel("gradient, relative to λ = 1")
    whole.set(yscale="log", xlabel="unit, from image to classes", title=f"{name}, the whole net\nat initialisation")
    whole.set_ylabel("L2 norm of the loss's gradient\nby the unit's output, a sample")
    return _png(figure)


def _sorted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In the order of the legend: by depth, plain before residual."""
    return sorted(rows, key=lambda row: (row["depth"] or 0, row["kind"]))


def _title(rows: list[dict[str, Any]]) -> str:
    """The state of nets that share a panel: how long they were trained, where all were equally long."""
    if rows[0].get("state") == "at initialisation":
        return "at initialisation"
    trained = {row.get("trained", "") for row in rows}
    return f"after {trained.pop()}" if len(trained) == 1 and "" not in trained else "trained"


def _label(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """A net's name, with its training where the title cannot say it."""
    return row["name"] + (f", {row['trained']}" if _title(rows) == "trained" and row.get("trained") else "")


def _line(panel: Any, row: dict[str, Any], values: list[float], label: str) -> None:
    depths = {20: "#9ecae1", 56: "#4292c6", 110: "#08306b"}
    colour = depths.get(row["depth"], "#737373")
    style = "--" if row["kind"] == "plain" else "-"
    panel.plot([i / max(len(values) - 1, 1) for i in range(len(values))], values, style, color=colour, label=label)


def _panels(rows: int, columns: int, **shared: Any) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    figure = Figure(figsize=(5 * columns, 4.2 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def _png(figure: Any) -> bytes:
    for axes in figure.axes:
        axes.legend(frameon=False, fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()
