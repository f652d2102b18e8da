"""One trial: what Tune runs in a process of its own. It starts the trial's run, and hands its evaluations on."""

import os
import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from backbone.errors import UserError
from backbone.storage import filesystem, join
from backbone.training.recipe import Recipe, Scaling

Judge = Callable[[str, dict[str, Any]], float]
"""Takes the URL of a finished backbone artifact and a trial's config; returns its detection AP, from 0 to 1."""

FINAL = "failed.txt"
"""What a trial leaves that would fail the same way again: bad input, or a loss that is not finite."""


def run_trial(config: dict[str, Any], judge: Judge | None = None) -> None:
    """Train `config["recipe"]` as an ordinary run and report to Tune.

    Each evaluation is a report of {"epoch", "step", "val_error", ..., "device_hours"}. The last one comes once the
    artifact is there, with every objective and `finished`.

    Raises:
        UserError, FloatingPointError: the trial cannot be trained; it is not tried again.
    """
    from ray import tune

    os.chdir(config["cwd"])
    recipe = Recipe.model_validate(config["recipe"])
    fs, path = filesystem(join(recipe.run.storage, recipe.run_name))
    if fs.exists(join(path, FINAL)):
        raise UserError(fs.cat_file(join(path, FINAL)).decode())
    run = _Run(recipe)
    run.start()
    devices = recipe.scaling.num_workers
    row: dict[str, Any] = {}
    for record in iter(run.records.get, None):
        if record["kind"] == "evaluation":
            row = {k: v for k, v in record.items() if k not in ("kind", "total", "val_seconds")}
            row["device_hours"] = row["train_seconds"] * devices / 3600
            if record["step"] < record["total"]:  # the last one waits for the artifact
                tune.report(row)
    run.join()
    if run.error:
        if isinstance(run.error, UserError | FloatingPointError):
            fs.pipe_file(join(path, FINAL), str(run.error).encode())
        raise run.error
    artifact = join(recipe.run.storage, recipe.run_name, "artifact")
    row |= {**run.metrics, **_position(artifact)}
    if "latency_ms" in config["objectives"]:
        row["latency_ms"] = latency_ms(artifact, recipe.scaling)
    if judge:
        row["AP"] = judge(artifact, config)
    tune.report({**row, "finished": True})


class _Run(threading.Thread):
    """The run, in a thread, because it waits until the run has ended."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(daemon=True)
        self.recipe = recipe
        self.records: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self.metrics: dict[str, Any] = {}
        self.error: BaseException | None = None

    def run(self) -> None:
        from backbone.training.cluster import launch
        from backbone.training.pretrain import finished, prepare, pretrain

        try:
            payload = prepare(self.recipe)
            done = finished(payload["url"])
            self.metrics = done or launch(pretrain, payload, self.recipe.scaling, watch=self.records.put)
        except BaseException as error:
            traceback.print_exc()
            self.error = error
        finally:
            self.records.put(None)


def _position(artifact: str) -> dict[str, Any]:
    """Step, epoch and cost at the end of a finished run, from its own files: it may have finished before a restart."""
    import json

    from backbone.training.state import training_seconds

    fs, path = filesystem(artifact)
    about = json.loads(fs.cat_file(join(path, "config.json")))["raybone"]["provenance"]
    recipe = about["recipe"]
    history = json.loads(fs.cat_file(join(path.rpartition("/")[0], "history.json")))
    seconds = training_seconds(history, recipe["optim"]["batch"])
    step = history[-1]["step"]
    return {
        "step": step,
        "epoch": step * recipe["optim"]["batch"] / about["train_images"],
        "train_seconds": seconds,
        "device_hours": seconds * recipe["scaling"]["num_workers"] / 3600,
    }


def latency_ms(artifact: str, scaling: Scaling) -> float:
    """Median time of one image through the backbone, in milliseconds, on what one training worker has."""
    import ray

    options: dict[str, Any] = {"num_cpus": scaling.cpus_per_worker, "num_gpus": int(scaling.use_gpu)}
    return ray.get(ray.remote(_measure).options(**options).remote(artifact, scaling.use_gpu, scaling.cpus_per_worker))


def _measure(artifact: str, use_gpu: bool, threads: int) -> float:
    import time

    import torch

    from backbone.artifact import load

    torch.set_num_threads(threads)
    device = torch.device("cuda" if use_gpu else "cpu")
    net, inputs, _ = load(artifact)
    net.to(device, memory_format=torch.channels_last)
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
