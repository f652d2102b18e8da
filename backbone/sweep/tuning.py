"""The only module that knows Ray Tune: it runs the board's trials, as many at a time as the cluster holds.

Tune carries them out, and its schedulers decide which go on. What is known of a sweep is in the board's record and not
in Tune's pickles, so that a sweep goes on after any end, with another Ray, a larger budget or on another cluster. A
scheduler is told again what it had seen.
"""

import json
import logging
import os
import pickle
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.exceptions import RayActorError
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining
from ray.tune.search import Searcher

from backbone.cluster import bundle, check_alive
from backbone.errors import last_line
from backbone.storage import for_ray, join
from backbone.sweep.board import Board
from backbone.sweep.options import Asha, Pbt
from backbone.sweep.record import ROUNDING, Trial
from backbone.sweep.trial import Common, DetectionAP, run_trial

TRIAL_MEMORY = 256 * 2**20
"""Bytes a trial's own process asks for, and no CPU, where the run's workers are processes that it starts."""

LOOKED = 5.0
"""Seconds between two looks whether the cluster is still there."""

RETRIES = 2
"""How often such a process, when it was lost with its node, is started again."""


def tune_board(board: Board, places: int, detection_ap: DetectionAP | None) -> None:
    """Run the board's trials until there are no more, or a budget is used up."""
    if isinstance(options := board.sweep.scheduler, Pbt):
        space, search, scheduler = _population(board, options)
        if not space["id"]["grid_search"]:
            return
    else:
        space, scheduler = {}, _scheduler(board)
        search = _Points(board, scheduler)
    scaling = board.base.scaling
    # Not with a detector to train, whose workers would wait for what the trial holds.
    alone = scaling.num_workers == 1 and detection_ap is None
    # To start a process and to import what training needs takes seconds of a core, in every trial. On a GPU it ends all
    # the same, and gives all its memory back; a population's trials are begun anew on their way, which is Tune's to do.
    follows = alone and not scaling.use_gpu and search is not None
    # Not in the trials' configs: those are the columns of TensorBoard's HParams.
    common = Common(board.sweep, board.tree, board.record.url, str(Path.cwd()), detection_ap, alone, follows)
    trainable = tune.with_parameters(run_trial, common=common)
    tuner = tune.Tuner(
        tune.with_resources(trainable, bundle(scaling) if alone else {"memory": TRIAL_MEMORY}),
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=-1 if search else 1,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
            max_concurrent_trials=places if search else None,  # 0 is no bound; a population is there whole
            reuse_actors=follows,
        ),
        run_config=tune.RunConfig(
            name=f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            **for_ray(join(board.record.url, "tune")),
            failure_config=tune.FailureConfig(max_failures=scaling.max_failures if alone else RETRIES),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=3),
            callbacks=[_Recorder(board)],
            stop=_Budget(board),
            verbose=0,
        ),
    )
    # What it has to say of a lost trial is a traceback; the board says it in a line.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    tuner.fit()


def _config(board: Board, trial: Trial) -> dict[str, Any]:
    """What `run_trial` is given of a trial."""
    return {"id": trial.id, "folder": trial.folder, "point": trial.point}


def _name(trial: Any) -> str:
    """Asked for once, when the trial is made: with PBT, configs wander between trials later."""
    return trial.config["id"]


def _scheduler(board: Board) -> Any:
    options = board.sweep.scheduler
    if not isinstance(options, Asha):
        return FIFOScheduler()
    scheduler = ASHAScheduler(
        time_attr="share",
        grace_period=min(options.grace / board.ahead.least_epochs * ROUNDING, 1),  # ty: ignore[invalid-argument-type]
        max_t=1,
        reduction_factor=options.reduction,
        metric="val_error",
        mode="min",
    )
    for trial in board.record.of_state("finished", "stopped"):
        _tell_again(scheduler, trial, trial.id)
    return scheduler


def _population(board: Board, options: Pbt) -> tuple[dict[str, Any], None, Any]:
    """All trials at once, and the scheduler that lets them learn from each other."""
    configs = {trial.id: {**_config(board, trial), **board.lr_now(trial)} for trial in iter(board.next, None)}
    (d,) = board.sweep.space.values()
    low, high = d.uniform or d.loguniform

    def explore(config: dict[str, Any]) -> dict[str, Any]:
        return {**config, "optim.lr": min(max(float(f"{config['optim.lr']:.4g}"), low), high)}

    scheduler = PopulationBasedTraining(
        time_attr="epoch",
        metric="val_error",
        mode="min",
        perturbation_interval=options.every,
        quantile_fraction=options.share,
        hyperparam_mutations={"optim.lr": tune.uniform(low, high) if d.uniform else tune.loguniform(low, high)},
        custom_explore_fn=explore,
        require_attrs=False,  # a failed trial reports no error rate
        synch=True,  # compared after equally many epochs; and more trials than places take turns
    )

    def of_trial(field: str) -> Any:
        return tune.sample_from(lambda config: configs[config["id"]][field])

    fields = [field for field in next(iter(configs.values()), {}) if field != "id"]
    space = {"id": tune.grid_search(list(configs)), **{field: of_trial(field) for field in fields}}
    return space, None, scheduler


def _tell_again(scheduler: Any, trial: Trial, tune_id: str) -> None:
    """What a trial reported before this attempt, for the scheduler's rungs."""
    if isinstance(scheduler, ASHAScheduler):
        stand_in: Any = SimpleNamespace(trial_id=tune_id)
        scheduler.on_trial_add(None, stand_in)
        for row in trial.history:
            scheduler.on_trial_result(None, stand_in, {**row, "share": trial.share(row)})


class _Points(Searcher):
    """Hands the board's trials to Tune."""

    def __init__(self, board: Board, scheduler: Any) -> None:
        super().__init__(metric="val_error", mode="min")
        self.board, self.scheduler = board, scheduler

    def suggest(self, trial_id: str) -> Any:
        trial = None if self.board.over_budget() else self.board.next()
        if trial is None:
            return Searcher.FINISHED
        _tell_again(self.scheduler, trial, trial_id)
        return _config(self.board, trial)

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
        self.board, self.looked = board, 0.0

    def _trial(self, trial: Any) -> Trial:
        return self.board.record.trial(str(trial))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() - self.looked > LOOKED:
            check_alive()
            self.looked = time.monotonic()
        self.board.heartbeat()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = pickle.loads(Path(trial.pickled_error_file).read_bytes())  # written just now, on this machine
        how = "its process was killed or lost" if isinstance(error, RayActorError) else _cause(error)
        self.board.say(f"[{trial}] {how}; it is started again and goes on from its newest checkpoint")

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.board.started(self._trial(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        mine = self._trial(trial)
        if "failed" in result:
            return
        self.board.moved(mine, result["run"], json.loads(result["lineage"]))
        row = {k: v for k, v in result.items() if k in ("step", "epoch", "train_seconds") or k.startswith("val_")}
        ends = {f"{name}_{end}" for name in ("AP", "AP_masks") for end in ("low", "high")}
        names = {"val_error", "AP", "AP_masks", "latency_ms", *ends} if result.get("finished") else set()
        self.board.reported(mine, row, {k: result[k] for k in names | {"device_hours"} if k in result})

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        mine, last = self._trial(trial), trial.last_result
        if last.get("finished"):
            self.board.finished(mine)
        elif "failed" in last:
            self.board.failed(mine, last["failed"], final=True)
        else:
            over = self.board.over_budget()
            self.board.stopped(
                mine, over or f"behind at {100 * self.board.record.rungs[mine.rung]:.3g} % of its schedule"
            )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        mine, error = self._trial(trial), trial.get_error()
        if mine.state == "waiting" and isinstance(error, RayActorError):  # lost between a trial before and this one
            self.board.todo.append(mine)
        else:
            self.board.failed(mine, _cause(error))


def _cause(error: Exception | None) -> str:
    """The innermost error's last line: what a person wants to read."""
    inner = getattr(error, "cause", None)
    if inner is not None:
        return _cause(inner)
    return last_line(error) if error else "unknown"
