"""What is known of a sweep, in one file: `<storage>/<name>/sweep.json`, written as it runs and read by everything else.

The sweep goes on from it, the dashboard and the report are drawn from it. It is plain JSON, replaced as a whole.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from backbone.errors import UserError
from backbone.storage import filesystem, is_local, join

VERSION = 1
FILE = "sweep.json"
QUIET_SECONDS = 60
"""A running sweep writes oftener than this; one that has not is interrupted."""

ROUNDING = 1 - 1e-9
"""A share of a schedule comes from a division, of steps or of epochs."""

State = Literal["waiting", "running", "finished", "stopped", "failed"]
"""stopped: by the scheduler or the budget before its end. Only finished trials can be compared."""


@dataclass(frozen=True)
class Objective:
    """What a sweep looks for."""

    name: str
    """Key of `Trial.values`: val_error (percent), AP (0 to 1), macs, params, latency_ms or device_hours."""

    mode: Literal["min", "max"]
    label: str
    """With its unit, for people."""

    def better(self, one: float, other: float) -> bool:
        return one < other if self.mode == "min" else one > other


@dataclass
class Trial:
    """One point of the space and what became of it."""

    id: str
    """Its number, four digits or more, in the order of proposal."""

    point: dict[str, Any]
    """Field of the recipe, as the space names it -> value. A value may be a whole section, a dict."""

    folder: str
    """Its run, below the sweep's folder: recipe.yaml, log.txt, tensorboard/, once finished artifact/, curves.png."""

    net: str = ""
    state: State = "waiting"
    epochs: float = 0.0
    """Its schedule's total."""

    history: list[dict[str, float]] = field(default_factory=list)
    """Evaluations in order of `step`: {"step", "epoch", "val_error", "val_top5_error", "val_loss", "train_seconds"}."""

    lr: list[tuple[float, float]] = field(default_factory=list)
    """(epoch, learning rate) points of its whole schedule, joined by lines."""

    values: dict[str, float] = field(default_factory=dict)
    """Objectives and costs known so far. `params` and `macs` from the start, `device_hours` while it runs, the rest of
    a finished trial only; of AP also `AP_low` and `AP_high`, the ends of its interval (`standing.interval`)."""

    rung: int = -1
    """Index of the last rung of the scheduler it reached, -1 before the first."""

    why: str = ""
    """Why it was stopped, or the error it failed with, one line. The whole of it is in log.txt."""

    final: bool = False
    """Of a failed one: it would fail the same way again, as with bad input or a loss that is not finite."""

    lineage: list[dict[str, Any]] = field(default_factory=list)
    """With PBT, how its weights came about: {"epoch", "step", "from": id of the trial whose weights it took over,
    "lr_before", "lr"} in order."""

    started: float = 0.0
    """Unix time of its first start, 0 before."""

    ended: float = 0.0

    @property
    def epoch(self) -> float:
        """How far it has come, in epochs."""
        return self.history[-1]["epoch"] if self.history else 0.0

    def share(self, row: dict[str, Any]) -> float:
        """How much of its schedule is done at an evaluation, 0 to 1."""
        return row["epoch"] / self.epochs

    @property
    def best_error(self) -> float:
        """Lowest validation error so far, percent; NaN before the first evaluation."""
        known = [row["val_error"] for row in self.history if row["val_error"] is not None]  # null: not a number
        return min(known, default=math.nan)


@dataclass
class Record:
    """A sweep, whole."""

    name: str
    url: str
    sweep: dict[str, Any]
    """The sweep's recipe, resolved."""

    base: dict[str, Any]
    """The base recipe, resolved, before a trial's point is laid over it."""

    objectives: list[Objective]
    """The first decides `best`, and the scheduler goes by validation error."""

    rungs: list[float] = field(default_factory=list)
    """Shares of a trial's own schedule, above 0 and below 1, at which the scheduler stops the worse ones; empty without
    one. Equal epochs would compare rates that are still high with rates near their end."""

    state: Literal["running", "finished", "interrupted"] = "running"
    why: str = ""
    """What ended it before all trials were done: a budget, or an interruption."""

    places: int = 1
    """Trials at a time."""

    devices: str = ""
    """What a trial computes on, in words: "1 worker of 1 CPU"."""

    dashboard: str = ""
    """Address of the Ray cluster's own dashboard."""

    trials: list[Trial] = field(default_factory=list)
    best: str = ""
    """Id of the best finished trial by the first objective."""

    pareto: list[str] = field(default_factory=list)
    """Ids of finished trials that no other is better than in every objective; with one objective, against macs."""

    importance: dict[str, float] = field(default_factory=dict)
    """Field -> share of the first objective's variation it explains; they sum to 1. Empty until trials suffice."""

    created: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)
    seconds: float = 0.0
    """Wall time of all attempts together."""

    versions: dict[str, str] = field(default_factory=dict)
    version: int = VERSION

    def trial(self, trial_id: str) -> Trial:
        return next(trial for trial in self.trials if trial.id == trial_id)

    def place(self, trial: Trial) -> str:
        """Local path or URL of a trial's run."""
        return join(self.url, trial.folder)

    def of_state(self, *states: State) -> list[Trial]:
        return [trial for trial in self.trials if trial.state in states]

    @property
    def device_hours(self) -> float:
        """Hours of training times devices, over all trials."""
        return sum(trial.values.get("device_hours", 0.0) for trial in self.trials)

    @property
    def alive(self) -> bool:
        """Whether a process is at it now, as far as its file tells."""
        return self.state == "running" and time.time() - self.updated < QUIET_SECONDS

    def write(self) -> None:
        """Replace the file, whole or not at all. Not-a-number becomes null."""
        self.updated = time.time()
        text = json.dumps(_plain(asdict(self)), indent=1, allow_nan=False)
        fs, path = filesystem(self.url)
        if is_local(self.url):
            aside = Path(path, f".{FILE}")
            aside.write_text(text)
            aside.replace(Path(path, FILE))
        else:
            fs.pipe_file(join(path, FILE), text.encode())


def read(url: str | Path) -> Record:
    """The record of the sweep in this folder, or of this sweep.json.

    Raises:
        UserError: there is none, it is damaged, or another version wrote it.
    """
    place = str(url).removesuffix(f"/{FILE}")
    fs, path = filesystem(place)
    try:
        tree = json.loads(fs.cat_file(join(path, FILE)))
    except FileNotFoundError as error:
        raise UserError(f"{place} holds no sweep: there is no {FILE}; give the folder <storage>/<name>") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{place}/{FILE} cannot be read: {error}") from error
    if not isinstance(tree, dict) or tree.get("version") != VERSION:
        found = tree.get("version") if isinstance(tree, dict) else None
        raise UserError(f"{place}/{FILE} has version {found!r}; this raybone reads {VERSION}")
    try:
        rows: list[dict[str, Any]] = tree.pop("trials")
        for row in rows:
            row["lr"] = [tuple(point) for point in row["lr"]]
        objectives = [Objective(**one) for one in tree.pop("objectives")]
        tree["url"] = place
        return Record(**tree, trials=[Trial(**row) for row in rows], objectives=objectives)
    except (KeyError, TypeError) as error:
        raise UserError(f"{place}/{FILE} is damaged: {error}") from error


def pareto(rows: Sequence[tuple[str, Sequence[float]]], modes: Sequence[str]) -> list[str]:
    """Ids of the rows that no other row dominates: at least as good in all values and better in one.

    `rows` are (id, one value an objective); `modes` say of each objective whether "min" or "max" is good.
    """
    signed = [(name, [v if m == "min" else -v for v, m in zip(values, modes, strict=True)]) for name, values in rows]

    def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    return [name for name, values in signed if not any(dominates(other, values) for _, other in signed)]


def _plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
