"""Measures the rates that `--dry-run --rates FILE` predicts with, and sets the prediction beside runs of gloo workers.

Rates come from one process that computes, updates and loads, and two that all-reduce; the runs are pretraining on
rendered images with 1, 2 and 4 workers on this machine, one thread each, all of it in turns. The file it writes is what
--rates reads.
"""

import itertools
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from loop_overhead import now
from results import parser, write

from backbone.cli import validate
from backbone.data.stream import MicroBatches
from backbone.nets import build
from backbone.nets.count import macs, parameters
from backbone.options import NetOptions
from backbone.training import engine
from backbone.training.cost import BUCKET, Rates, Shape, predict
from backbone.training.meter import Meter
from backbone.training.pretrain import Classification, Pretraining, input_convention, open_data, prepare, pretrain
from backbone.training.recipe import Recipe
from backbone.training.world import World, local_world

STEPS = 3
"""Of a log window; the first window of a run is warm-up."""


def make_recipe(storage: str, given: Any, windows: int, name: str) -> Recipe:
    """Pretraining on rendered images, one long epoch without evaluations before its end."""
    tree = {
        "model": {"net": "resnet", "depth": given.depth},
        "data": {"train_images": 10**6, "val_images": 1, "size": given.size, "workers": 0},
        "optim": {"batch": given.batch, "micro_batch": given.batch // 4},
        "schedule": {"kind": "constant", "unit": "iterations", "total": STEPS * windows},
        "compute": {"precision": given.precision},
        "scaling": {"num_workers": 0},
        "run": {"storage": storage, "log_every": STEPS, "precise_bn": 0},
    }
    return validate(Recipe, {**tree, "name": name}, "benchmark")


def one_device(recipe: Recipe, world: World) -> tuple[float, float, float]:
    """Training with the data at hand, images/s; the optimizer, bytes of weights a second; loading alone, images/s."""
    train, val = open_data(recipe.data, recipe.seed)
    task = Classification(recipe, input_convention(recipe, train, print), train, val, world)
    optim = recipe.optim
    micro_batches = MicroBatches(optim.batch, optim.micro_batch, 0, 1, 0, 1 + STEPS)
    loader = iter(task.batches(micro_batches))
    ready = list(itertools.islice(loader, len(micro_batches.units)))  # the first step loads slower
    began = time.perf_counter()
    loaded = sum(len(batch["labels"]) for batch in loader)
    loading = loaded / (time.perf_counter() - began)
    trainer = engine.Trainer(task, optim, recipe.compute, recipe.seed, world)
    meter = Meter(world, optim.batch)
    batches = itertools.cycle(ready)
    trainer.step(batches, micro_batches, 0.001, 0, meter)
    updating, update = 0.0, trainer.optimizer.step

    def timed(*args: Any) -> Any:
        nonlocal updating
        began = now(world.device)
        result = update(*args)
        updating += now(world.device) - began
        return result

    trainer.optimizer.step = timed  # ty: ignore[invalid-assignment]
    began = now(world.device)
    for step in range(STEPS):
        trainer.step(batches, micro_batches, 0.001, step + 1, meter)
    computing = now(world.device) - began - updating
    return STEPS * optim.batch / computing, STEPS * 4 * parameters(task.model) / updating, loading


def link(world: World) -> list[float]:
    """Seconds of an all-reduce of one bucket and of one number."""
    found = []
    for count in (BUCKET // 4, 1):
        values, times = torch.ones(count), []
        for _ in range(12):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(values)
            times.append(time.perf_counter() - began)
        found.append(statistics.median(times[2:]))
    return found


def run(recipe: Recipe, world: World) -> list[float]:
    """Seconds a step of a real run, a value a window."""
    rates: list[float] = []
    inputs = input_convention(recipe, open_data(recipe.data, recipe.seed)[0], print)
    payload = Pretraining(f"{recipe.run.storage}/{recipe.name}", recipe, inputs)
    pretrain(payload, world, lambda r: rates.append(r["images_per_second"]) if r["kind"] == "log" else None)
    return [recipe.optim.batch / rate for rate in rates[1:]]


def _rank(rank: int, size: int, port: int, what: Callable[[World], Any], queue: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with local_world(use_gpu=False, threads=1) as world:
        found = what(world)
        if world.is_first:
            queue.put(found)


class Job:
    """`what(*arguments, world)`, picklable."""

    def __init__(self, what: Callable[..., Any], *arguments: Any) -> None:
        self.what, self.arguments = what, arguments

    def __call__(self, world: World) -> Any:
        return self.what(*self.arguments, world)


def on_ranks(size: int, what: Callable[[World], Any]) -> Any:
    """What the first of `size` new processes returns."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    ranks = [context.Process(target=_rank, args=(r, size, port, what, queue)) for r in range(size)]
    for process in ranks:
        process.start()
    found = queue.get(timeout=600)
    for process in ranks:
        process.join()
    return found


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--depth", type=int, default=18)
    words.add_argument("--size", type=int, default=64)
    words.add_argument("--batch", type=int, default=32)
    words.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    words.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    words.add_argument("--turns", type=int, default=3)
    words.add_argument("--windows", type=int, default=3, help="of each run, after warm-up")
    given = words.parse_args()
    alone: list[tuple[float, float, float]] = []
    links: list[list[float]] = []
    runs: dict[int, list[float]] = {count: [] for count in given.workers}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(given.turns):
            recipe = make_recipe(folder, given, given.windows + 1, f"turn{turn}")
            alone.append(on_ranks(1, Job(one_device, recipe)))
            links.append(on_ranks(2, Job(link)))
            for count in given.workers:
                recipe = make_recipe(folder, given, given.windows + 1, f"turn{turn}-{count}")
                prepare(recipe, lambda text: None)
                runs[count] += on_ranks(count, Job(run, recipe))
    net = build(NetOptions(depth=given.depth), 12)
    images, update, loading = (statistics.median(values) for values in zip(*alone, strict=True))
    bucket, message = (statistics.median(values) for values in zip(*links, strict=True))
    # Of two workers: one bucket's bytes through the link and two messages, beside two messages alone.
    rates = Rates(
        measured=f"ResNet-{given.depth} at {given.size} px, {given.precision}, one CPU thread; gloo on one machine",
        multiply_adds=macs(net, given.size),
        images_per_second=images,
        update_bytes_per_second=update,
        loader_images_per_second=loading,
        bandwidth=BUCKET / max(bucket - message, 1e-9),
        latency=message / 2,
        devices=os.cpu_count() or 1,
        overlaps=False,
    )
    rows = []
    for count, seconds in runs.items():
        shape = Shape(
            workers=count,
            batch=given.batch,
            micro_batch=given.batch // 4,
            multiply_adds=rates.multiply_adds,
            gradient_bytes=4 * parameters(net),
            train_images=10**6,
            val_images=1,
            steps=STEPS,
            evaluations=0,
            loader_cores=0,
        )
        cost, measured = predict(shape, rates), statistics.median(seconds)
        rows.append(
            {
                "workers": count,
                "measured, ms a step": 1e3 * measured,
                "lowest to highest": f"{1e3 * min(seconds):.0f} to {1e3 * max(seconds):.0f}",
                "predicted, ms a step": 1e3 * cost.step,
                "compute": 1e3 * cost.compute,
                "update": 1e3 * cost.update,
                "all-reduce": 1e3 * cost.all_reduce,
                "loading": 1e3 * cost.loading,
                "predicted / measured": cost.step / measured,
                "windows": len(seconds),
            }
        )
    write(given.output, rows, rates=rates.model_dump())


if __name__ == "__main__":
    main()
