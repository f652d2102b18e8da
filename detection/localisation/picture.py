"""A picture of guessed boxes, and the results for a terminal."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from detection.localisation.judge import ERRORS, Guess
from detection.localisation.measure import is_found
from detection.localisation.sources import LocatedSource

TRUTH, FOUND, MISSED = "#ffffff", "#31a354", "#de2d26"
COLUMNS = 4


def draw_guesses(
    guesses: Sequence[Guess], source: LocatedSource, targets: np.ndarray, classes: Sequence[str], count: int
) -> bytes:
    """PNG of `count` images spread evenly over `guesses`: their objects in white, dashed, and the box for the surest
    class. A box is green where it would be right for that class, a title where the class is, else red."""
    from matplotlib.figure import Figure  # without pyplot: no global state, no display
    from matplotlib.patches import Rectangle

    at = np.linspace(0, len(guesses) - 1, min(count, len(guesses))).round().astype(int)
    rows = -(-len(at) // COLUMNS)
    figure = Figure(figsize=(2.6 * COLUMNS, 2.9 * rows), layout="constrained")
    for place, axes in enumerate(figure.subplots(rows, COLUMNS, squeeze=False).flat):
        axes.set_axis_off()
        if place >= len(at):
            continue
        one = guesses[at[place]]
        label, truth = int(targets[one.image]), source.boxes(one.image)
        right = is_found(0, truth, [0], one.boxes)
        axes.imshow(source.image(one.image))
        colours = [(box, TRUTH, "--") for box in truth] + [(one.boxes[0], FOUND if right else MISSED, "-")]
        for (x1, y1, x2, y2), colour, style in colours:
            # Pixel centres are whole numbers to matplotlib, and halves here.
            corner = x1 - 0.5, y1 - 0.5
            axes.add_patch(Rectangle(corner, x2 - x1, y2 - y1, fill=False, color=colour, linestyle=style, linewidth=2))
        said, is_ = classes[one.labels[0]], classes[label]
        title = f"{said} {one.probabilities[0]:.0%}" + ("" if said == is_ else f"\n({is_})")
        axes.set_title(title, fontsize=9, color=FOUND if said == is_ else MISSED)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    return png.getvalue()


def table(record: dict[str, Any]) -> str:
    """Errors, percent, for a terminal: with the image's own class, with the surest and with five predicted ones."""
    head = ("own class", "top-1", "top-5", "top-5 of classes alone")
    lines = ["localisation error, %; in brackets 95 % intervals over images", f"{'testing':<9}"]
    lines[-1] += "".join(f"{name:>24}" for name in head)
    for row in record["results"]:
        cells = []
        for name in ERRORS:
            low, high = row[f"{name}_interval"]
            cells.append(f"{row[name]:.1f} ({low:.1f} to {high:.1f})")
        lines.append(f"{row['protocol']:<9}" + "".join(f"{cell:>24}" for cell in cells))
        if "changed" in row:
            changed = [row["changed"][name] for name in ERRORS]
            before = [f"{one['before']:.1f}" for one in changed]
            lines.append(f"{'  before':<9}" + "".join(f"{cell:>24}" for cell in before))
            cells = [
                f"{one['change']:+.1f} ({low:+.1f} to {high:+.1f})"
                for one, (low, high) in zip(changed, (one["change_interval"] for one in changed), strict=True)
            ]
            lines.append(f"{'  change':<9}" + "".join(f"{cell:>24}" for cell in cells))
    row = record["results"][-1]
    lines.append(f"{row['images']:,} images, {len(row['unreadable'])} unreadable left out")
    for row in record["results"]:
        told = ", ".join(f"{name} {error}" for name, error in row["paper"].items())
        lines.append(f"the paper's (Table 13, ImageNet val), {row['protocol']}: {told}")
    return "\n".join(lines)
