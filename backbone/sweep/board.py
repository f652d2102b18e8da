"""The driver's side of a sweep, without Ray: opens the record, proposes trials, takes in what they report."""

import contextlib
import importlib.metadata
import json
import shutil
import time
from collections.abc import Callable
from typing import Any, Literal

import yaml

from backbone.cli import laid_over
from backbone.errors import UserError
from backbone.lease import Lease
from backbone.storage import filesystem, is_local, join, replace_file
from backbone.sweep.ahead import Ahead
from backbone.sweep.analysis import importance
from backbone.sweep.options import OBJECTIVES, Asha, Sweep
from backbone.sweep.record import FILE, ROUNDING, Objective, Record, Trial, pareto, read
from backbone.sweep.search import Search
from backbone.sweep.space import Point, recipe_at, recipe_of, size, told
from backbone.sweep.standing import word
from backbone.tracking import check as check_tracking
from backbone.training import schedule
from backbone.training.recipe import Recipe
from backbone.training.run import recorded_precision, run_place

FREE_FIELDS = ("base", "base_with", "storage", "budget", "parallel", "keep_checkpoints")
"""What may change when a sweep is submitted again; the base recipe is compared by what it says."""

HEARTBEAT = 15.0
"""Seconds between two writes of the record when nothing happens."""

SPENT = 0.05
"""Share of its time that a sweep may spend on rewriting its record, which grows with it."""

FREE = 1.0
"""Seconds that are spared a record that is quickly written."""

SETTLED = 600.0
"""Seconds after a trial's end when nothing of it writes any longer."""


class Board:
    """Everything the sweep knows, and the one who writes it down."""

    def __init__(self, sweep: Sweep, say: Callable[[str], None], held: Lease | None = None) -> None:
        """Check the sweep, and open its folder, which is `held`, or go on with it.

        Raises:
            UserError: a bad space, base recipe or data; points that cannot be trained; storage too full; or another
                sweep under this name.
        """
        self.sweep, self.say, self.held = sweep, say, held
        self.ahead = Ahead(sweep)
        self._due, self._behind = 0.0, False
        """From when on reports are written down at once again, and whether there are some that were not."""

        self._bare: set[str] = set()
        """Trials without checkpoints: hundreds need not be looked for again whenever one ends."""

        self.tree, self.base = self.ahead.tree, self.ahead.base
        check_tracking(self.base)
        url = run_place(sweep.storage, sweep.name)
        self.record = self._open(url)
        self._began, self._before = time.monotonic(), self.record.seconds
        self.search = Search(sweep, self.record.trials)
        unfinished = self.record.of_state("waiting", "running", "failed")
        self.todo = [trial for trial in unfinished if not trial.final]
        if self.base.compute.precision == "auto":  # trials are compared, also with those that begin on other hardware
            runs = (recorded_precision(self.record.place(trial)) for trial in self.record.trials)
            if precision := next((one for one in runs if one), None):
                self.tree = laid_over(self.tree, {"compute": {"precision": precision}})
        if self.record.trials:
            self.say(f"going on with {url}: {self.counts()}")

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles whatever it is given, and what a sweep goes on from is the record."""
        return {}

    def _open(self, url: str) -> Record:
        fs, path = filesystem(url)
        asked = self.sweep.model_dump(mode="json")
        if fs.exists(join(path, FILE)):
            record = read(url)
            _check_same(record, asked, self.tree)
            record.sweep = asked
            return record
        versions = {name: importlib.metadata.version(name) for name in ("raybone", "torch", "ray", "optuna")}
        record = Record(
            name=self.sweep.name,
            url=url,
            sweep=asked,
            base=self.tree,
            objectives=[OBJECTIVES[name] for name in self.sweep.objectives],
            rungs=self.ahead.rungs(),
            versions=versions,
        )
        needed = self.ahead.disk_bytes(1)
        try:
            fs.makedirs(path, exist_ok=True)
        except OSError as error:
            raise UserError(f"storage {url} cannot be written: {error}") from error
        if is_local(url) and shutil.disk_usage(path).free < needed:
            free = shutil.disk_usage(path).free
            raise UserError(f"storage {path}: {free / 2**30:.1f} GiB free, the sweep takes {needed / 2**30:.1f} GiB")
        record.write()
        return record

    def announce(self, places: int) -> None:
        """Say what is about to happen and what it will take."""
        self.record.state, self.record.why = "running", ""
        budget, scheduler = self.sweep.budget, self.sweep.scheduler
        limits = [f"{getattr(budget, name):g} {name}" for name in ("device_hours", "hours") if getattr(budget, name)]
        most = budget.trials or size(self.sweep.space)
        self.say(f"{most:g} trials, {places} at a time, {' and '.join(['at most', *limits]) if limits else 'no limit'}")
        if isinstance(scheduler, Asha) and self.record.rungs:
            rungs = ", ".join(f"{rung:.3g}" for rung in (100 * rung for rung in self.record.rungs))
            self.say(f"asha: one of {scheduler.reduction} goes on after {rungs} % of its schedule")
        self.say(f"at most {self.ahead.disk_bytes(places) / 2**30:.2f} GiB in {self.record.url}")
        self.say(f"watch it with: python jobs/dashboard.py {self.record.url}")

    def next(self) -> Trial | None:
        """The next trial to run: one that was interrupted, else a new one, written down before it begins."""
        if self.todo:
            return self.todo.pop(0)
        point = self.search.next()
        return self._add(point) if point is not None else None

    def _add(self, point: Point) -> Trial:
        name = f"{len(self.record.trials):04d}"
        trial = Trial(id=name, point=point, folder=f"trials/{name}")
        recipe = self.recipe(trial)
        steps = self.ahead.steps(recipe)
        trial.net, trial.epochs = recipe.model.name, steps.epochs
        trial.lr = schedule.curve(recipe.schedule, recipe.optim, steps)
        trial.values = self.ahead.cost(recipe)
        self.record.trials.append(trial)
        self.record.write()
        return trial

    def recipe(self, trial: Trial) -> Recipe:
        """What a trial trains."""
        return recipe_of(self.sweep, self.tree, self.record.url, trial.folder, trial.point)

    def started(self, trial: Trial) -> None:
        self._bare.discard(trial.id)
        trial.state, trial.started = "running", trial.started or time.time()
        self.say(f"[{trial.id}] {trial.net}: {told(trial.point)}")
        self.write()

    def reported(self, trial: Trial, row: dict[str, float], values: dict[str, float]) -> None:
        """Take in an evaluation; one that was seen before an interruption is passed over."""
        trial.values |= values
        if not trial.history or row["step"] > trial.history[-1]["step"]:
            trial.history.append(row)
            trial.rung = sum(trial.share(row) >= rung * ROUNDING for rung in self.record.rungs) - 1
            self.say(f"[{trial.id}] epoch {row['epoch']:.2f} of {trial.epochs:g}  error {row['val_error']:.2f} %")
        self._write_soon()

    def moved(self, trial: Trial, run: str, lineage: list[dict[str, Any]]) -> None:
        """With PBT: it goes on in another run, with another trial's weights and another rate."""
        if lineage == trial.lineage:
            return
        left = join(self.record.place(trial), "checkpoints") if trial.folder != f"trials/{run}" else ""
        change = lineage[-1]
        trial.folder, trial.lineage = f"trials/{run}", lineage
        trial.history = [row for row in trial.history if row["step"] <= change["step"]]
        recipe = self._best(trial)
        trial.lr = schedule.curve(recipe.schedule, recipe.optim, self.ahead.steps(recipe))
        self.say(
            f"[{trial.id}] takes over trial {change['from']} at epoch {change['epoch']:g}: "
            f"learning rate {change['lr_before']:g} becomes {change['lr']:g}"
        )
        self.write()  # at once: no trial would tell it again, and what it leaves goes now
        if left:
            fs, path = filesystem(left)
            with contextlib.suppress(OSError):
                if fs.exists(path):
                    fs.rm(path, recursive=True)  # Tune holds those that others may take over

    def lr_now(self, trial: Trial) -> dict[str, Any]:
        """With PBT: the rate a trial goes on with, and how it came to it."""
        lr = trial.lineage[-1]["lr"] if trial.lineage else trial.point["optim.lr"]
        return {"optim.lr": lr, "lineage": trial.lineage}

    def finished(self, trial: Trial) -> None:
        trial.state, trial.ended = "finished", time.time()
        told = "  ".join(f"{o.name} {trial.values[o.name]:.4g}" for o in self.record.objectives)
        self._ended(trial, f"finished: {told}")

    def stopped(self, trial: Trial, why: str) -> None:
        trial.state, trial.ended, trial.why = "stopped", time.time(), why
        self._ended(trial, f"stopped at epoch {trial.epoch:.2f}: {why}")

    def failed(self, trial: Trial, why: str, final: bool = False) -> None:
        """`final`: it would fail the same way again; others are tried again when the sweep goes on."""
        trial.state, trial.ended, trial.why, trial.final = "failed", time.time(), why, final
        self._ended(trial, f"failed: {why}")

    def _ended(self, trial: Trial, text: str) -> None:
        self.search.learn(trial)
        before = self.record.best
        self._rank()
        if self.record.best != before:  # pages say how to train it
            self._write_best()
        self._remove_checkpoints()
        self.say(f"[{trial.id}] {text}  ({self.counts()})")
        self.write()

    def _ranked(self) -> list[Trial]:
        """Finished trials, the best by the first objective first."""
        first = self.record.objectives[0]
        sign = 1 if first.mode == "min" else -1
        return sorted(self.record.of_state("finished"), key=lambda trial: sign * trial.values[first.name])

    def _rank(self) -> None:
        """Best, Pareto front and importance from what is finished."""
        record, done, first = self.record, self.record.of_state("finished"), self.record.objectives[0]
        record.best = self._ranked()[0].id if done else ""
        axes = record.objectives if len(record.objectives) > 1 else [first, _against(first)]
        rows = [(trial.id, [trial.values[o.name] for o in axes]) for trial in done]
        record.pareto = pareto(rows, [o.mode for o in axes])
        record.importance = importance(done, first)

    def _remove_checkpoints(self) -> None:
        """Trials that have ended keep none, but for the best finished; artifacts and logs stay."""
        kept = {trial.id for trial in self._ranked()[: self.sweep.keep_checkpoints]}
        ended = self.record.of_state("finished", "stopped", "failed")
        for trial in [one for one in ended if one.id not in kept | self._bare]:
            fs, path = filesystem(join(self.record.place(trial), "checkpoints"))
            # A run that was stopped just now may still be writing; what it leaves goes with the next that ends.
            with contextlib.suppress(OSError):
                if fs.exists(path):
                    fs.rm(path, recursive=True)
                elif time.time() - trial.ended > SETTLED:
                    self._bare.add(trial.id)

    def over_budget(self) -> str:
        """Which budget is used up; empty while none is."""
        budget, record = self.sweep.budget, self.record
        if budget.hours and self.seconds > 3600 * budget.hours:
            return f"budget.hours {budget.hours:g} is used up"
        if budget.device_hours and record.device_hours > budget.device_hours:
            return f"budget.device_hours {budget.device_hours:g} is used up"
        return ""

    @property
    def seconds(self) -> float:
        """Wall time of all attempts."""
        return self._before + time.monotonic() - self._began

    def write(self) -> None:
        """Replace the record; UserError if another process has taken the sweep over."""
        if self.held:
            self.held.check()
        began = time.monotonic()
        self.record.seconds = self.seconds
        self.record.write()
        took = time.monotonic() - began
        self._behind, self._due = False, time.monotonic() + max(0.0, took / SPENT - FREE)

    def _write_soon(self) -> None:
        """`write`, or leave it to `heartbeat`. What a kill loses of reports, their trials tell again."""
        self._behind = True
        if time.monotonic() >= self._due:
            self.write()

    def heartbeat(self) -> None:
        """Show that the sweep is alive, and write what was left."""
        late = self._behind and time.monotonic() >= self._due
        if late or time.time() - self.record.updated > HEARTBEAT:
            self.write()

    def end(self, state: Literal["finished", "interrupted"], why: str) -> None:
        """The last word: `best.yaml` beside the record. What still ran waits for the sweep to go on."""
        if self.held:
            self.held.check()
        self.record.state, self.record.why = state, why
        for trial in self.record.of_state("running"):
            trial.state = "waiting"
        if self.record.best:
            self._write_best()
        self.write()
        self._remove_checkpoints()  # last: it may take long, and who stops a sweep does not wait

    def _write_best(self) -> None:
        """`best.yaml`: the recipe of the best so far, and what is known of it."""
        if self.held:
            self.held.check()
        trial = self.record.trial(self.record.best)
        shown = "  ".join(f"{name} {value:.6g}" for name, value in trial.values.items())
        known = word(self.record, trial)
        head = f"# Trial {trial.id} of the sweep {self.sweep.name}, {known}: {told(trial.point)}\n# {shown}\n"
        text = head + yaml.safe_dump(self._best(trial).model_dump(mode="json"), sort_keys=False)
        replace_file(join(self.record.url, "best.yaml"), text.encode())

    def _best(self, trial: Trial) -> Recipe:
        """The recipe that trains a trial again, at one go: what PBT changed on the way is its schedule."""
        overrides: dict[str, Any] = {"name": f"{self.sweep.name}-best", "run.storage": self.sweep.storage}
        if precision := recorded_precision(self.record.place(trial)):  # what auto came out as there
            overrides["compute.precision"] = precision
        if trial.lineage:
            in_unit = "epoch" if self.base.schedule.unit == "epochs" else "step"
            overrides["schedule.kind"] = "pieces"
            overrides["schedule.milestones"] = [change[in_unit] for change in trial.lineage]
            overrides["schedule.rates"] = [change["lr"] for change in trial.lineage]
            overrides["optim.lr"] = trial.lineage[0]["lr_before"]
        return recipe_at(self.sweep, self.tree, trial.point, overrides)

    def counts(self) -> str:
        """How many trials have ended, and how: `2 finished, 1 stopped of 8`."""
        states = [trial.state for trial in self.record.trials]
        most = self.sweep.budget.trials or size(self.sweep.space)
        ended = [f"{states.count(s)} {s}" for s in ("finished", "stopped", "failed") if s in states]
        return f"{', '.join(ended) or 'none ended'} of {most:g}"


def _against(first: Objective) -> Objective:
    return OBJECTIVES["macs" if first.name != "macs" else "val_error"]


def _check_same(record: Record, asked: dict[str, Any], tree: dict[str, Any]) -> None:
    """UserError with the differences where another sweep lives under this name."""
    lines = []
    for what, old, new in (("", record.sweep, asked), ("the base recipe's ", record.base, tree)):
        for field in sorted({*old, *new} - (set(FREE_FIELDS) if not what else set())):
            before, now = (json.dumps(t.get(field), sort_keys=True) for t in (old, new))
            if before != now:
                lines.append(f"  {what}{field}: the sweep has {before}, this one {now}")
    if lines:
        raise UserError("\n".join([f"{record.url} is another sweep:", *lines, "give this one another --name"]))
