"""How a run grows with its ranks, measured as far as one machine goes and modelled past it; and 14 M samples.

For each number of ranks, gloo processes of one thread with a net of 8 layers on images of 32 px, four a rank: start-up,
a step, what the loop does beside steps (the look for a notice, the record of a log, an evaluation's sums and gathered
names, a checkpoint, a resume), memory. Ranks share this machine's cores, with each other and with whatever else runs,
so that what the clock says grows with turns taken; hence each rank's own processor time beside it, and lines fitted to
that, seconds = alone + each x ranks. Then the order and the index of a large data set. What is said of 256 and 1,024
GPUs is those lines and the model of `backbone/training/cost.py` with the rates of docs/results/cost_model.json, a ring
over this machine's loopback.

Ends after `--minutes` with the numbers of ranks it came to.
"""

import json
import math
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cost_model import Job, on_ranks
from results import FOLDER, parser, write
from torch import distributed as dist

from backbone.cli import validate
from backbone.data.index import tabulate
from backbone.data.stream import MicroBatches, order
from backbone.nets import build
from backbone.nets.count import parameters
from backbone.options import NetOptions
from backbone.training.cost import read_rates, ring_all_reduce
from backbone.training.engine import Trainer
from backbone.training.meter import Meter
from backbone.training.notice import Lookout
from backbone.training.pretrain import Classification, input_convention, open_data
from backbone.training.recipe import Recipe
from backbone.training.resume import newest
from backbone.training.state import Checkpointer, Progress, Store
from backbone.training.world import TIMEOUT_S, World

EACH = 4
"""Images a rank and step."""

BESIDE = ("look", "step with a record", "evaluation", "checkpoint", "resume")


def make_recipe(folder: str, ranks: int) -> Recipe:
    """A net and images so small that little but the loop is left."""
    tree = {
        "name": f"ranks{ranks}",
        "model": {"net": "cifar_resnet", "depth": 8, "shortcut": "A"},
        "data": {"train_images": 10**4, "val_images": 1, "size": 32, "workers": 0, "augment": {"kind": "cifar"}},
        "optim": {"batch": EACH * ranks, "micro_batch": EACH},
        "schedule": {"kind": "constant", "unit": "iterations", "total": 100},
        "compute": {"precision": "fp32"},
        "scaling": {"num_workers": 0},
        "run": {"storage": folder},
    }
    return validate(Recipe, tree, "benchmark")


def memory() -> dict[str, float]:
    """MiB of this process: its share of what is mapped (PSS), and what is its alone."""
    said = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    mib = {name: float(value.split()[0]) / 1024 for name, value in said.items()}
    return {"PSS": mib["Pss"], "own": mib["Private_Clean"] + mib["Private_Dirty"]}


def on_rank(recipe: Recipe, began: float, repeats: int, world: World) -> dict[str, Any]:
    """Seconds of each thing a rank does, by the clock and of its processor, the least of `repeats`, all ranks beginning
    together; and its memory. Of all ranks the most.
    """

    def timed(name: str, what: Callable[[], Any]) -> None:
        times, worked = [], []
        for _ in range(repeats):
            world.gather(None)
            start, start_work = time.perf_counter(), time.process_time()
            what()
            times.append(time.perf_counter() - start)
            worked.append(time.process_time() - start_work)
        found[name], found[f"{name} CPU"] = min(times), min(worked)

    if world.size > 1:
        dist.barrier()
    found: dict[str, Any] = {"start": time.time() - began}
    train, val = open_data(recipe.data, recipe.seed)
    task = Classification(recipe, input_convention(recipe, train, lambda text: None), train, val, world)
    trainer, meter = Trainer(task, recipe.optim, recipe.compute, recipe.seed, world), Meter(world, recipe.optim.batch)
    micro_batches = MicroBatches(recipe.optim.batch, EACH, world.rank, world.size, 0, 2 * repeats + 1)
    batches, progress = iter(task.batches(micro_batches)), Progress()
    trainer.step(batches, micro_batches, 0.001, 0, meter)  # the first is slower
    timed("step", lambda: trainer.step(batches, micro_batches, 0.001, 1, meter))
    timed("look", lambda: Lookout(world, 1e-9, 0).look(1))

    def logged() -> None:
        trainer.step(batches, micro_batches, 0.001, 1, meter)
        meter.record(progress, task.blame)

    timed("step with a record", logged)
    sums = np.zeros(4)
    timed("evaluation", lambda: (world.sum(torch.from_numpy(sums.copy())).tolist(), world.gather([])))
    store = Store(f"{recipe.run.storage}/{recipe.name}/checkpoints")
    with Checkpointer(store, 2) as checkpointer:

        def save() -> None:
            progress.step += 1
            trainer.share_statistics()
            trainer.check_weights(progress.step)
            if world.is_first:
                checkpointer.hold(trainer.state(), progress, {})
                checkpointer.commit()
            world.gather(None)

        timed("checkpoint", save)
    world.gather(None)  # the first has written it
    timed("resume", lambda: newest(store, world, lambda text: None))
    found |= memory()
    ranks = world.gather(found)
    return {name: max(rank[name] for rank in ranks) for name in found}


def large(samples: int) -> dict[str, float]:
    """Order and index of so many samples: seconds of this core, MB."""
    began = time.process_time()
    permutation = order(0, 0, samples).astype(np.min_scalar_type(samples))  # as `Stream` keeps it
    seconds = time.process_time() - began
    labels = np.arange(samples) % 1000
    began = time.process_time()
    arrays = tabulate("benchmark", (f"n{i % 1000:08d}/image_{i}.JPEG" for i in range(samples)), labels, labels, ["a"])
    indexing = time.process_time() - began
    index = sum(array.nbytes for array in arrays.values())
    return {
        "samples": samples,
        "order of an epoch, s": seconds,
        "order, MB a process": permutation.nbytes / 1e6,
        "index made from names, s": indexing,
        "index, MB": index / 1e6,
        "peak while making both, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def fitted(counts: list[int], seconds: list[float]) -> dict[str, float]:
    """Least squares of alone + each x ranks, seconds; of more than one rank, where there are collectives."""
    counts, seconds = counts[counts[0] == 1 :], seconds[counts[0] == 1 :]
    each, alone = np.polyfit(counts, seconds, 1)
    return {"alone": float(alone), "each": float(each)}


def modelled(gpus: int, rates: Any, lines: dict[str, dict[str, float]]) -> dict[str, float]:
    """Of ResNet-50 with SGD on so many GPUs: seconds of what every step, evaluation and resume adds, by the model."""
    weights = 4 * parameters(build(NetOptions(depth=50), 1000))
    state = 2 * weights
    ring = ring_all_reduce(gpus, weights, rates.bandwidth, rates.latency)
    waiting = ring_all_reduce(gpus, weights, math.inf, rates.latency)
    return {
        "GPUs": gpus,
        "images a GPU, of a batch of 1,024": 1024 / gpus,
        "all-reduce, s": ring,
        "of that latency, s": waiting,
        "latency of which the ring takes 20 ms, us": 1e6 * 0.02 / (waiting / rates.latency),
        **{f"{name}, CPU s of a rank": line["alone"] + line["each"] * gpus for name, line in lines.items()},
        "state read at a resume, GB": gpus * state / 1e9,
        "resume through one link, s": gpus * state / rates.bandwidth,
        "GPUs whose resume through one link takes the collectives' bound": TIMEOUT_S * rates.bandwidth / state,
    }


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    words.add_argument("--repeats", type=int, default=10)
    words.add_argument("--samples", type=int, default=14_000_000)
    words.add_argument("--minutes", type=float, default=6.0, help="no more ranks are begun after that")
    given = words.parse_args()
    began, rows = time.monotonic(), []
    rates = read_rates(str(FOLDER / "cost_model.json"))
    weights = 4 * parameters(build(NetOptions(net="cifar_resnet", depth=8, shortcut="A"), 12))
    for ranks in given.ranks:
        if time.monotonic() - began > 60 * given.minutes:
            break
        with tempfile.TemporaryDirectory() as folder:
            job = Job(on_rank, make_recipe(folder, ranks), time.time(), given.repeats)
            found = on_ranks(ranks, job)
        alone = rows[0]["step, ms"] if rows else 1e3 * found["step"]
        turns = max(1.0, ranks / rates.devices)
        predicted = alone * turns + 1e3 * ring_all_reduce(ranks, weights, rates.bandwidth, rates.latency)
        rows.append(
            {
                "ranks": ranks,
                "start, s": found["start"],
                **{f"{name}, ms": 1e3 * found[name] for name in ("step", *BESIDE)},
                **{f"{name}, CPU ms": 1e3 * found[f"{name} CPU"] for name in ("step", *BESIDE)},
                "step predicted, ms": predicted,
                "predicted / measured": predicted / (1e3 * found["step"]),
                "MiB a rank, its share": found["PSS"],
                "its own": found["own"],
                "load": os.getloadavg()[0],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    counts = [row["ranks"] for row in rows]
    lines = {name: fitted(counts, [row[f"{name}, CPU ms"] / 1e3 for row in rows]) for name in ("step", *BESIDE)}
    data = large(given.samples)
    model = [modelled(gpus, rates, lines) for gpus in (256, 1024)]
    print(json.dumps({"data": data, "fitted": lines, "model": model}, indent=1))
    agreement = statistics.median(row["predicted / measured"] for row in rows)
    write(given.output, rows, data=data, fitted=lines, model=model, predicted_by_measured=agreement)


if __name__ == "__main__":
    main()
