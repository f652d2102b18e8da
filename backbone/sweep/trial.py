"""One trial: what Tune runs, on CPUs in a process that had others before. It starts the trial's run, and hands its
evaluations on."""

import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from backbone.compute import Scaling
from backbone.errors import Lost, UserError
from backbone.lease import PATIENCE
from backbone.stopping import Stopped
from backbone.storage import filesystem, join
from backbone.sweep.options import Asha, Sweep
from backbone.sweep.segment import Segment
from backbone.sweep.space import recipe_of
from backbone.training.state import Store

DetectionAP = Callable[[str], dict[str, float]]
"""Takes a finished trial's run; returns by objective what its backbone is worth in detection, from 0 to 1, and as
`<objective>_low` and `_high` the ends of its interval."""


@dataclass(frozen=True)
class Common:
    """What all trials of a sweep are given."""

    sweep: Sweep
    tree: dict[str, Any]
    """The base recipe, resolved."""

    url: str
    cwd: str
    """The driver's working directory, which relative paths are meant from."""

    detection_ap: DetectionAP | None

    alone: bool
    """A trial's own process is the only worker of its run: another would take seconds to start, in every trial."""

    follows: bool
    """When a trial ends, the next has its process."""


def run_trial(config: dict[str, Any], common: Common) -> None:
    """Train the trial's recipe as an ordinary run and report to Tune. `config` is its {"id", "folder", "point"}.

    Each evaluation is a report of {"epoch", "step", "val_error", ..., "device_hours"}. The last one comes once the
    artifact is there, with every objective and `finished`; or, where trying again would fail the same way, with
    `failed`, the reason.
    """
    from ray import tune

    if common.follows:  # or Tune would fail the next trial where this one ends late
        os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(TO_END + 60)
    if Path(common.cwd).is_dir():  # Tune works in a folder of its own; relative paths are the driver's
        os.chdir(common.cwd)
    recipe = recipe_of(common.sweep, common.tree, common.url, config["folder"], config["point"])
    if common.alone:
        recipe = recipe.model_copy(update={"scaling": recipe.scaling.model_copy(update={"num_workers": 0})})
    segment = Segment.of(tune.get_context().get_trial_name(), recipe, config, tune.get_checkpoint())
    if not segment.passes_on:  # what came between the last report and an interruption
        for record in evaluations(segment.url):
            if record["step"] < record["total"]:
                tune.report({**_row(record, segment.recipe.scaling), **segment.about})
    run = _Run(segment, common)
    run.start()
    row: dict[str, Any] = {}
    try:
        for record in iter(run.records.get, None):
            if record["kind"] == "evaluation":
                row = {**_row(record, segment.recipe.scaling), **segment.about}
                if record["step"] < record["total"]:  # the last one waits for the artifact
                    with segment.passed_on(record["step"], record["epoch"], run.is_alive) as checkpoint:
                        tune.report(row, checkpoint=checkpoint)
                    run.goes_on.set()
    except SystemExit:  # raised by `report`: Tune has decided that it shall end
        if common.follows:
            run.end()
        raise
    run.join()
    if isinstance(run.error, UserError | FloatingPointError) and not isinstance(run.error, Lost):
        tune.report({**row, "failed": str(run.error)})
        return
    if run.error:
        raise run.error
    row = {**_row(evaluations(segment.url)[-1], segment.recipe.scaling), **run.metrics, **segment.about}
    if "latency_ms" in common.sweep.objectives:
        row["latency_ms"] = latency_ms(join(segment.url, "artifact"), segment.recipe.scaling)
    if common.detection_ap:
        row |= common.detection_ap(segment.url)
    tune.report({**row, "finished": True})


ANSWER = 10.0
"""Seconds that a run waits for the scheduler to say whether it goes on, where another trial waits for its process."""

TO_END = 600
"""Seconds in which a run that shall end has its next record, and ends; after that the process does, and is replaced."""


class _Run(threading.Thread):
    """The run, in a thread, because starting it waits until it has ended."""

    def __init__(self, segment: Segment, common: Common) -> None:
        super().__init__(daemon=True)
        self.segment, self.follows = segment, common.follows
        self.asks = common.follows and isinstance(common.sweep.scheduler, Asha)
        self.goes_on, self.unwanted = threading.Event(), False
        self.records: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self.metrics: dict[str, Any] = {}
        self.error: BaseException | None = None

    def run(self) -> None:
        from backbone.job import submit
        from backbone.training.pretrain import PRETRAIN

        try:
            self.segment.adopt()
            self.metrics = submit(PRETRAIN, self.segment.recipe, watch=self._seen, patience=PATIENCE).results
        except BaseException as error:
            if not self.unwanted:
                traceback.print_exc()
            self.error = error
        finally:
            try:
                if self.follows:
                    _forget(self.error)
            finally:
                self.records.put(None)

    def _seen(self, record: dict[str, Any]) -> None:
        self.goes_on.clear()
        self.records.put(record)
        if self.asks and record["kind"] == "evaluation" and record["step"] < record["total"]:
            self.goes_on.wait(ANSWER)
        if self.unwanted:
            raise Stopped(signal.SIGTERM, final=True)

    def end(self) -> None:
        """Let it end at its next record, at once where it waits for an answer, and wait for that."""
        self.unwanted = True
        self.goes_on.set()
        self.join(TO_END)
        if self.is_alive():
            os._exit(1)


def _forget(error: BaseException | None) -> None:
    """What a run leaves in the process that the next trial has: its model, loaders and batches, which an error's frames
    hold, and compiled graphs, which count against the next one's own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    if "torch._dynamo" in sys.modules:
        sys.modules["torch"].compiler.reset()
    gc.collect()


def evaluations(url: str) -> list[dict[str, Any]]:
    """What a run has reported of its evaluations, from its own files: its history, or that in its newest checkpoint."""
    fs, path = filesystem(url)
    if fs.exists(join(path, "history.json")):
        history = json.loads(fs.cat_file(join(path, "history.json")))
    else:
        state = Store(join(url, "checkpoints")).newest(print)
        history = state["progress"]["history"] if state else []
    return [record for record in history if record["kind"] == "evaluation"]


def _row(record: dict[str, Any], scaling: Scaling) -> dict[str, Any]:
    """What Tune is told of an evaluation."""
    row = {name: value for name, value in record.items() if name not in ("kind", "total", "val_seconds")}
    return {
        **row,
        "share": record["step"] / record["total"],
        "device_hours": record["train_seconds"] * scaling.processes / 3600,
    }


def latency_ms(artifact: str, scaling: Scaling) -> float:
    """Median time of one image through a backbone, in milliseconds, on what one training worker has."""
    import ray

    if not scaling.num_workers:
        return _measure(artifact, scaling.use_gpu, scaling.cpus_per_worker)
    # A task of its own, outside the trial's share of the cluster, which is next to nothing.
    options: dict[str, Any] = {"num_cpus": scaling.cpus_per_worker, "num_gpus": int(scaling.use_gpu)}
    measure = ray.remote(_measure).options(**options, scheduling_strategy="DEFAULT")
    return ray.get(measure.remote(artifact, scaling.use_gpu, scaling.cpus_per_worker))


def _measure(artifact: str, use_gpu: bool, threads: int) -> float:
    import torch

    from backbone.artifact import load

    torch.set_num_threads(threads)
    device = torch.device("cuda" if use_gpu else "cpu")
    net, inputs, _ = load(artifact)
    net.to(device).to(memory_format=torch.channels_last)
    image = torch.zeros(1, 3, inputs.size, inputs.size, device=device).to(memory_format=torch.channels_last)
    times = []
    with torch.inference_mode():
        for _ in range(60):
            began = time.perf_counter()
            net.classify(image)
            if use_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    return 1000 * sorted(times[10:])[25]
