"""The only module that knows Ray Tune: it runs the board's trials, as many at a time as the cluster holds.

Tune carries them out, and its schedulers decide which go on. What is known of a sweep is in the board's record and not
in Tune's pickles, so that a sweep goes on after any end, with another Ray, a larger budget or on another cluster. A
scheduler is told again what it had seen.
"""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher

from backbone.storage import join
from backbone.sweep.board import Board
from backbone.sweep.record import Trial
from backbone.sweep.trial import Judge, run_trial

RETRIES = 2
"""How often a trial whose own process was lost, with its node, is started again."""


def tune_board(board: Board, places: int, judge: Judge | None) -> None:
    """Run the board's trials until there are no more, or a budget is used up."""
    scheduler = _scheduler(board)
    trainable = tune.with_parameters(run_trial, judge=judge)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"CPU": 0.01}),  # the run's workers, started by it, take the trial's resources
        tune_config=tune.TuneConfig(
            search_alg=_Points(board, scheduler),
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=places,
        ),
        run_config=tune.RunConfig(
            name=f"{len(board.record.trials):04d}-{random.randrange(16**6):06x}",
            storage_path=join(board.record.url, "tune"),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            callbacks=[_Recorder(board)],
            stop=_Budget(board),
            verbose=0,
        ),
    )
    tuner.fit()


def _scheduler(board: Board) -> Any:
    options = board.sweep.scheduler
    if options.kind == "none":
        return FIFOScheduler()
    scheduler = ASHAScheduler(
        time_attr="epoch",
        grace_period=options.grace,
        max_t=max(board.most_epochs, options.grace),
        reduction_factor=options.reduction,
        metric="val_error",
        mode="min",
    )
    for trial in board.record.of_state("finished", "stopped"):
        _tell_again(scheduler, trial, trial.id)
    return scheduler


def _tell_again(scheduler: Any, trial: Trial, tune_id: str) -> None:
    """What a trial reported before this attempt, for the scheduler's rungs."""
    if isinstance(scheduler, ASHAScheduler):
        stand_in: Any = SimpleNamespace(trial_id=tune_id)
        scheduler.on_trial_add(None, stand_in)
        for row in trial.history:
            scheduler.on_trial_result(None, stand_in, row)


class _Points(Searcher):
    """Hands the board's trials to Tune."""

    def __init__(self, board: Board, scheduler: Any) -> None:
        super().__init__(metric="val_error", mode="min")
        self.board, self.scheduler = board, scheduler

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        trial = None if self.board.over_budget() else self.board.next()
        if trial is None:
            return Searcher.FINISHED
        _tell_again(self.scheduler, trial, trial_id)
        return {
            "id": trial.id,
            "recipe": self.board.recipe(trial).model_dump(mode="json"),
            "objectives": list(self.board.sweep.objectives),
            "cwd": str(Path.cwd()),
        }

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """The board learns by itself."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the record is what is kept."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""


class _Budget(tune.Stopper):
    def __init__(self, board: Board) -> None:
        self.board = board

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return bool(self.board.over_budget())


class _Recorder(tune.Callback):
    """Takes what Tune tells of its trials to the board."""

    def __init__(self, board: Board) -> None:
        self.board = board

    def _trial(self, trial: Any) -> Trial:
        return self.board.record.trial(trial.config["id"])

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.board.heartbeat()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.board.started(self._trial(trial))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        mine = self._trial(trial)
        row = {k: v for k, v in result.items() if k in ("step", "epoch", "train_seconds") or k.startswith("val_")}
        names = {"val_error", "AP", "latency_ms"} if result.get("finished") else set()
        values = {k: result[k] for k in names | {"device_hours"} if k in result}
        self.board.reported(mine, row, values)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        mine = self._trial(trial)
        if trial.last_result.get("finished"):
            self.board.finished(mine)
        else:
            over = self.board.over_budget()
            self.board.stopped(mine, over or f"behind at the rung of {self.board.record.rungs[mine.rung]:g} epochs")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_error()
        self.board.failed(self._trial(trial), _cause(error))


def _cause(error: Exception | None) -> str:
    """The innermost error's last line: what a person wants to read."""
    while error is not None and getattr(error, "cause", None) is not None:
        error = error.cause  # ty: ignore[unresolved-attribute]
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else type(error).__name__
