"""Training detectors from Python: what the jobs do, as functions.

run = detection.finetune("quickstart/detector.yaml", backbone="runs/mine/artifact")
told = detection.gains("quickstart/gains.yaml", storage="elsewhere")

Both names are modules, too: see `detection.called`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backbone.job import Outcome
    from detection.gains import Gains
    from detection.recipe import Finetune


@dataclass(frozen=True)
class Compared:
    """A comparison that has ended."""

    url: str
    """Its folder, with report.html, report.md and report.json."""

    report: dict[str, Any]
    """What report.json says; `report["rows"]` has AP, gains and their intervals. Of several detectors
    `report["blocks"]` has such a report each, by name."""

    markdown: str
    failed: dict[str, str]
    """Runs without results -> why; the report is of the others."""


def finetune(recipe: "Finetune | str | Path | dict[str, Any]", **changes: Any) -> "Outcome":
    """Put a backbone into a detector and train it, as `jobs/finetune.py`; arguments and outcome as of
    `backbone.pretrain`, `results` as `detection.scoring` gives them.

    Raises:
        UserError: a mistake in recipe, data or backbone; or another process is at this run.
        FloatingPointError: the training diverged.
    """
    from backbone.api import told
    from backbone.job import submit
    from detection.finetune import FINETUNE
    from detection.recipe import Finetune

    return submit(FINETUNE, told(Finetune, recipe, changes))


def gains(recipe: "Gains | str | Path | dict[str, Any]", **changes: Any) -> Compared:
    """Compare backbones in one detector and write the report, as `jobs/gains.py`; arguments as of `backbone.pretrain`.

    Raises:
        UserError: a mistake in a recipe, data or an artifact; another process is at it; or too few runs have results.
    """
    from backbone.api import told
    from backbone.storage import filesystem, join
    from detection.gains import Gains, run
    from detection.report.collect import write_report

    comparison = told(Gains, recipe, changes)
    todo, failed = run(comparison)
    again = f"detection.gains({recipe!r}{f', **{changes!r}' if changes else ''})"
    folder, markdown = write_report(comparison, todo, again, failed)
    fs, path = filesystem(join(folder, "report.json"))
    return Compared(folder, json.loads(fs.cat_file(path)), markdown, failed)
