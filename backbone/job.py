"""What every job does, in this order: prepare -> payload -> launch -> finished.

    outcome = submit(PRETRAIN, recipe)

A `Job` is a few functions. `prepare` runs on the driver and checks everything that can be checked; what it returns, the
payload, travels to every worker, where `work` does the job; `finished` finds the results of a run that has ended, so
that submitting it again does nothing twice; and `place` is the folder that is held meanwhile, so that nobody else does.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from backbone.cluster import joined
from backbone.compute import Scaling
from backbone.lease import lease
from backbone.storage import join
from backbone.tracking import Tracker
from backbone.tracking import check as check_tracking
from backbone.training.ray_train import launch
from backbone.training.recipe import TrainingRecipe
from backbone.training.run import run_url
from backbone.training.world import Payload, Report, World, is_first_process

Results = dict[str, Any]
Say = Callable[[str], None]


class Options(Protocol):
    """What a job is told, at least."""

    @property
    def scaling(self) -> Scaling: ...


Told = TypeVar("Told", bound=Options)
R = TypeVar("R", bound=TrainingRecipe)
P = TypeVar("P", bound=Payload)


@dataclass(frozen=True)
class Job(Generic[Told, P]):
    """One kind of work. All are functions of an installed package: they are pickled by name."""

    prepare: Callable[[Told, Say], P]
    """Raises UserError for every mistake that can be seen before workers start; `say` is told what takes long."""

    work: Callable[[P, World, Report], Results]
    """Runs on every worker; the first one's results come back."""

    finished: Callable[[str], Results | None] = lambda url: None
    """The results of the run at this URL; None while it has not ended, or where the work is done anew each time."""

    place: Callable[[Told], str] | None = None
    """The run's folder, held from before `prepare` to the end; None where the work is done anew each time."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    url: str
    results: Results
    seconds: float | None
    """From the start of the workers to the end; None: it had been finished before."""

    @property
    def artifact(self) -> str:
        """Of a training: the folder that `backbone.load` or `detection.load` reads."""
        return join(self.url, "artifact")

    @property
    def headline(self) -> str:
        """One line for a terminal."""
        if self.seconds is None:
            return f"{self.url} is finished; another --name or --seed begins another run"
        return f"trained in {self.seconds:.0f} s"


def submit(
    job: Job[Told, P],
    options: Told,
    label: str = "",
    watch: Report = lambda record: None,
    say: Say = print,
    patience: float = 0.0,
) -> Outcome:
    """Carry a job out, from the beginning or from where it stopped.

    `label` and `watch` are as in `launch`; `patience`, seconds, is how long another process may still be at the run.

    Raises:
        UserError: a mistake of the user's; or another process is at this run.
        FloatingPointError: the training diverged.
    """
    first = is_first_process(options.scaling)
    check_tracking(options)
    held = lease(job.place(options), patience=patience, say=say) if job.place and first else nullcontext()
    with held as hold:
        payload = job.prepare(options, say)
        results = job.finished(payload.url)
        if results is not None:
            return Outcome(payload.url, results, None)
        began = time.monotonic()
        tracker = Tracker(getattr(payload, "recipe", None) if first else None, payload.url, say)

        def seen(record: dict[str, Any]) -> None:
            tracker.show(record)
            watch(record)

        with tracker:
            results = launch(job.work, payload, options.scaling, label, seen, hold)
            tracker.finished(results)
        return Outcome(payload.url, results, time.monotonic() - began)


def submit_all(job: Job[R, P], recipes: Sequence[R], say: Say = print) -> list[Outcome]:
    """`submit` one after another, on one Ray cluster where any of them wants one; each line says whose it is."""
    open_ones = [recipe for recipe in recipes if job.finished(run_url(recipe)) is None]
    with joined(say, any(recipe.scaling.num_workers for recipe in open_ones)):
        return [
            submit(job, recipe, recipe.run_name, say=lambda text, name=recipe.run_name: say(f"[{name}] {text}"))
            for recipe in recipes
        ]
