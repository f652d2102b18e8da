"""Finished pretrainings side by side: one picture of their curves, and what trainings that differ in seed alone say."""

import json
import re
import statistics
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from backbone.errors import UserError
from backbone.options import Strict
from backbone.storage import filesystem, join


class Comparison(Strict):
    """Lay the curves of finished pretrainings over one another. The command line gives the fields."""

    runs: tuple[str, ...] = Field(min_length=1)
    """Folders or URLs of runs, `<storage>/<name>`. Those that differ in their seed alone are one net trained again."""

    output: str = "curves.png"
    """The picture: file or URL."""


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    name: str
    history: list[dict[str, Any]]
    """Its records: `error` of training and `val_error`, percent, by `step`."""
    error: float
    """Top-1 error of its artifact on the validation images, percent."""
    same: str
    """Equal for runs that are the same but for the seed: recipe and data."""


def read(url: str) -> Trained:
    """What a finished pretraining left.

    Raises:
        UserError: there is no run, it has not finished, or it is a detector's.
    """
    fs, path = filesystem(url)
    try:
        record = json.loads(fs.cat_file(join(path, "run.json")))
    except FileNotFoundError as error:
        raise UserError(f"--runs {url}: no run here: run.json is missing; give <storage>/<name>") from error
    try:
        config = json.loads(fs.cat_file(join(path, "artifact", "config.json")))
        history = json.loads(fs.cat_file(join(path, "history.json")))
    except FileNotFoundError as error:
        raise UserError(f"--runs {url}: has not finished; submit it again to go on with it") from error
    if "raybone" not in config:
        raise UserError(f"--runs {url}: is a detector's run; jobs/gains.py compares those")
    known = {field: value for field, value in record["identity"].items() if field != "seed"}
    # Rendered scenes are the seed's own, and the recipe says all about them.
    data = {} if known.get("data.source") == "synthetic" else record["data"]
    return Trained(
        name=url.rstrip("/").rpartition("/")[2],
        history=history,
        error=config["raybone"]["provenance"]["metrics"]["val_error"],
        same=json.dumps([known, data], sort_keys=True),
    )


def repeats(runs: list[Trained]) -> list[list[Trained]]:
    """The runs, those that are the same but for the seed together, in order of the first of each."""
    found: dict[str, list[Trained]] = {}
    for run in runs:
        found.setdefault(run.same, []).append(run)
    return list(found.values())


def title(group: list[Trained]) -> str:
    """What a group is called: its first run, or all of them where they differ in a number at their end alone."""
    first, *others = (re.sub(r"[-_.]?(seed)?\d+$", "", run.name) for run in group)
    return first if others and first and set(others) == {first} else group[0].name


def table(groups: list[list[Trained]]) -> str:
    """Error of each run; of several trainings also what Table 6 gives of ResNet-110: best, mean and deviation."""
    width = max(len(run.name) for group in groups for run in group)
    lines = []
    for group in groups:
        lines += [f"{run.name:<{width}}  {run.error:.2f} % top-1 error" for run in group]
        errors = [run.error for run in group]
        if len(errors) > 1:
            spread = f"best {min(errors):.2f} %, mean {statistics.mean(errors):.2f} +- {statistics.stdev(errors):.2f} %"
            lines.append(f"{title(group)}, {len(errors)} trainings: {spread} (standard deviation of one)")
    return "\n".join(lines)
