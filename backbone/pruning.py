"""What of a storage may go: chosen by policy, shown first, and removed only from runs that nobody is at and that no
other came from.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pydantic import Field, model_validator

from backbone.errors import StorageError, UserError
from backbone.lease import FILE as LEASE
from backbone.lease import lease
from backbone.lineage import Held, Origin, is_train_state, look
from backbone.options import Strict
from backbone.storage import filesystem, join

DAY = 86400
WHOLE = ("backbone", "detector", "localiser")
"""Kinds of runs that may go as a whole. What a sweep or a comparison says is kept."""


class Listing(Strict):
    """What runs a storage holds."""

    storage: str = "runs"
    """Folder or URL, as given to trainings for run.storage."""

    prune: tuple[str, ...] = ()
    """What may go: checkpoints (train state of finished runs; artifact, results and log stay), failed, stopped (such
    runs as a whole). It is shown, and removed with --yes only. What is running, and what another run of the storage
    came from, stays."""

    older_than: float = Field(0.0, ge=0)
    """prune: only runs whose newest file is so many days old."""

    @model_validator(mode="after")
    def _possible(self) -> "Listing":
        if wrong := [one for one in self.prune if one not in ("checkpoints", "failed", "stopped")]:
            raise ValueError(f"prune {' '.join(wrong)}: may be checkpoints, failed, stopped")
        if self.older_than and not self.prune:
            raise ValueError("older_than is read with prune only: --prune checkpoints --older_than 30")
        return self


@dataclass(frozen=True)
class Removal:
    """What is to go of a run."""

    run: Held
    whole: bool
    """The folder, or its train state alone."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.run.size if self.whole else self.run.checkpoints

    @property
    def what(self) -> str:
        """In words."""
        return f"the whole run, {self.run.state}" if self.whole else "checkpoints"


def choose(runs: Sequence[Held], asked: Listing, now: float | None = None) -> tuple[list[Removal], list[str]]:
    """What goes, and lines that say what would but for others.

    `now` is Unix time, by default the clock's.
    """
    now = time.time() if now is None else now
    parents = came_from(runs)
    removals, kept = [], []
    for run in runs:
        if asked.older_than and (not run.updated or now - run.updated < asked.older_than * DAY):
            continue  # what has no time may be of today
        at_it = _at_work_above(run, runs)
        whole = run.state in asked.prune and run.kind in WHOLE
        if not whole and not ("checkpoints" in asked.prune and run.state == "finished" and run.checkpoints):
            continue
        if at_it:
            kept.append(f"{run.name}: stays, {at_it} is not finished")
        elif whole and "/" in run.name:
            kept.append(f"{run.name}: stays, it is part of another")
        elif whole and "artifact/config.json" in run.files:
            kept.append(f"{run.name}: stays, it has an artifact")
        elif whole and run.name in parents:
            kept.append(f"{run.name}: stays, {parents[run.name]} came from it")
        else:
            removals.append(Removal(run, whole))
    return removals, kept


def came_from(runs: Iterable[Held]) -> dict[str, str]:
    """Name of each run that another came from -> the first of those others."""
    found: dict[str, str] = {}
    for run in runs:
        for origin in run.origins:
            if origin.run and origin.run != run.name:
                found.setdefault(origin.run, run.name)
    return found


def _at_work_above(run: Held, runs: Sequence[Held]) -> str:
    """The sweep that a trial is part of, while it is not finished: it may go on from any checkpoint."""
    above = (one for one in runs if run.name.startswith(f"{one.name}/") and one.state != "finished")
    return next((one.name for one in above), "")


def remove(removals: Sequence[Removal], say: Callable[[str], None]) -> int:
    """Carry it out; returns the bytes that went. A run that has changed since it was read, or that somebody is at, is
    named and stays.

    Raises:
        StorageError: the object store fails or refuses, as it would with all others. Those before are said and gone.
    """
    gone = 0
    for one in removals:
        try:
            with lease(one.run.url, say=say):
                if not _unchanged(one.run):
                    say(f"{one.run.name}: stays, it has changed since it was looked at")
                    continue
                _remove(one)
        except StorageError:
            raise
        except (UserError, OSError) as error:
            say(f"{one.run.name}: stays ({error})")
            continue
        gone += one.size
        say(f"{one.run.name}: removed {one.what}")
    return gone


def _unchanged(run: Held) -> bool:
    """Whether a run's files are those it was chosen by, their sizes and times too, its lease apart. What is failed or
    stopped has no artifact, so that nothing can have come from it meanwhile."""
    fs, path = filesystem(run.url)
    fs.invalidate_cache(path)
    found = {name[len(path.rstrip("/")) + 1 :]: look(info) for name, info in fs.find(path, detail=True).items()}
    return {**found, LEASE: (0, 0.0)} == {**run.files, LEASE: (0, 0.0)}


def _remove(one: Removal) -> None:
    """The folder, or those of train state.

    Of a whole run that goes first what may lie without the rest, and last the log, by which it is known for failed, and
    what makes it a run: one that was removed in part is still listed and can be removed again, and submitted again it
    begins anew. The other way about its checkpoints would stay, seen by nobody but the next run of that name.
    """
    fs, path = filesystem(one.run.url)
    states = {file.partition("/")[0] for file in one.run.files if is_train_state(file)}
    tops = {file.partition("/")[0] for file in one.run.files} - states if one.whole else set()
    last = ("log.txt", "recipe.yaml", "run.json")
    for name in [*sorted(states), *sorted(tops - {*last, LEASE}), *(name for name in last if name in tops)]:
        fs.rm(join(path, name), recursive=True)
    if one.whole and fs.exists(path):  # in a bucket there is no folder
        fs.rm(path, recursive=True)


def table(runs: Sequence[Held]) -> str:
    """The runs for a terminal."""
    rows = [("run", "kind", "state", "best", "from", "size", "changed")]
    for run in runs:
        state = f"{run.state}: {run.why}" if run.why and run.state in ("failed", "running") else run.state
        rows.append(
            (run.name, run.kind, _short(state, 44), run.headline, _short(_from(run.origins), 40), _size(run), _day(run))
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    total, state_bytes = sum(run.size for run in runs), sum(run.checkpoints for run in runs)
    count = f"{len(runs)} run(s), {megabytes(total)}, of which {megabytes(state_bytes)} are checkpoints"
    return "\n".join([*lines, "", count])


def megabytes(size: int) -> str:
    """Bytes in words."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _size(run: Held) -> str:
    return megabytes(run.size)


def _day(run: Held) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(run.updated)) if run.updated else ""


def _from(origins: Sequence[Origin]) -> str:
    return ", ".join(dict.fromkeys(map(_named, origins)))


def _named(origin: Origin) -> str:
    if not origin.run:
        return origin.place + (f" {origin.sha256[:8]}" if origin.sha256 else "")
    took_none = origin.sha256 is None and "/results" not in origin.place
    return origin.run + " (net alone)" * took_none


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
