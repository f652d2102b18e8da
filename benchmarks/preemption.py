"""A node is taken away with notice: what is lost, whether the weights are the same, and what looking for it costs.

    python benchmarks/preemption.py

A cluster of two nodes (two raylets at 127.0.0.2 and 127.0.0.3) trains a small net with one worker on each, or with one
on the second alone. Mid-run the second node is drained, as clouds do with spot machines: `ray drain-node --reason
DRAIN_NODE_REASON_PREEMPTION`. With `max_failures: 0`, and no checkpoint due before the end, the run goes on on the
first node. The weights at its end are compared with those of a run that nobody disturbed. The same where nobody looks
for the notice, with a checkpoint every 100 steps.

"Steps lost" are those that were taken and taken again: each step is a record, and the last one before the run stood
still is the one it had reached. A step that proves a checkpoint, after which the ranks leave, has none: where the run
said at which step it saved, it is counted as one more.
"""

import contextlib
import io
import itertools
import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

# Before ray is imported; the tests, which run this, switch the watcher off.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_TRAIN_ENABLE_STATE_TRACKING": "0"}
os.environ |= {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1", "OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}

import torch
from results import parser, save, spread, write

from backbone.artifact import load
from backbone.cli import validate
from backbone.cluster import DEFAULTS
from backbone.compute import Scaling
from backbone.training.pretrain import prepare, pretrain
from backbone.training.ray_train import launch
from backbone.training.recipe import Recipe
from backbone.training.world import Payload, Report, World

os.environ |= {name: value for name, value in DEFAULTS.items() if name not in os.environ}

import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group

RECIPE: dict[str, Any] = {
    "model": {"net": "cifar_resnet", "depth": 8, "shortcut": "A"},
    "data": {"train_images": 160, "val_images": 50, "size": 32, "crop_pct": 1.0, "workers": 0},
    "optim": {"batch": 16, "micro_batch": 8, "lr": 0.05, "lr_batch": 16},
    "schedule": {"kind": "cosine", "unit": "iterations"},
    "compute": {"precision": "fp32"},
    "scaling": {"num_workers": 2, "placement": "SPREAD", "max_failures": 0},
    "run": {"log_every": 1, "eval_every": 10_000, "precise_bn": 64},
}
CASES: dict[str, dict[str, object]] = {
    "two workers": {},
    "one worker": {"scaling.num_workers": 1},
    "two workers, not looked for": {"scaling.notice_every": 0, "run.checkpoint_every": 100},
}
DRAINED_AT = 20
NODE: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 100 * 2**20}


def make_recipe(storage: str, name: str, **changes: object) -> Recipe:
    tree = {key: dict(value) for key, value in RECIPE.items()}
    return validate(Recipe, tree, "benchmark", {"name": name, "run.storage": storage, **changes})


def looks(payload: Payload, world: World, report: Report) -> dict[str, Any]:
    """Seconds of each of 200 looks: of Ray Train's barrier, and of what the ranks tell each other."""
    took: dict[str, list[float]] = {"barrier": [], "ranks": []}
    one = torch.ones(1, dtype=torch.float64)
    for number in range(210):
        for name, do in (("barrier", world.notice), ("ranks", lambda: world.min(one).item())):
            began = time.perf_counter()
            do()
            if number >= 10:
                took[name].append(time.perf_counter() - began)
    return took


def drain(node: Any, gcs: str, seconds: int) -> None:
    """As a cloud's agent would, through the public command."""
    words = ["ray", "drain-node", "--address", gcs, "--node-id", node.node_id]
    words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    words += ["--deadline-remaining-seconds", str(seconds)]
    command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", *words[1:]]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


@contextlib.contextmanager
def heard() -> Generator[io.StringIO]:
    """What is printed within, which goes on to be printed."""
    text = io.StringIO()

    class Tee(io.TextIOBase):
        def write(self, part: str) -> int:
            text.write(part)
            return sys.__stdout__.write(part) if sys.__stdout__ else 0

    with contextlib.redirect_stdout(Tee()):
        yield text


def disturbed(recipe: Recipe, cluster: Cluster, deadline: int) -> dict[str, Any]:
    """Train `recipe` while the second node is drained from step `DRAINED_AT`; what came of it."""
    node = cluster.add_node(**NODE, node_ip_address="127.0.0.3")
    cluster.wait_for_nodes(timeout=60)
    full = None
    if recipe.scaling.num_workers == 1:  # keeps the worker from the first node, until that is all there is
        first = next(one["NodeID"] for one in ray.nodes() if one["Alive"] and one["NodeID"] != node.node_id)
        full = placement_group([{"CPU": 2}], _soft_target_node_id=first, strategy="STRICT_PACK")
        ray.get(full.ready(), timeout=60)
    seen: list[tuple[float, int]] = []
    times: dict[str, float] = {}
    begun = threading.Event()

    def watch(record: dict[str, Any]) -> None:
        if record["kind"] == "log":
            seen.append((time.monotonic(), record["step"]))
            if record["step"] >= DRAINED_AT:
                begun.set()

    def take_away() -> None:
        begun.wait(600)
        if full is not None:
            remove_placement_group(full)
        times["told"] = time.monotonic()
        drain(node, cluster.address, deadline)
        while any(one["NodeID"] == node.node_id and one["Alive"] for one in ray.nodes()):
            time.sleep(0.2)
        times["gone"] = time.monotonic()

    thread = threading.Thread(target=take_away, daemon=True)
    thread.start()
    with heard() as text:
        launch(pretrain, prepare(recipe), recipe.scaling, watch=watch)
    thread.join(deadline + 60)
    cluster.remove_node(node)  # what is left of it, or the next case waits for it
    said = text.getvalue()
    saved, resumed = (re.search(rf"{words} step (\d+)", said) for words in ("saved at", "resuming at"))
    back = int(resumed[1]) if resumed else 0
    # The run stood still between two records for longer than between any others.
    pauses = [after[0] - before[0] for before, after in itertools.pairwise(seen)]
    last = pauses.index(max(pauses))
    reached = max(seen[last][1], int(saved[1]) + 1 if saved else 0)
    return {
        "saved at step": int(saved[1]) if saved else "-",
        "went on from step": back,
        "steps lost": reached - back,
        "stood still, s": pauses[last],
        "from the command to the node's end, s": times["gone"] - times["told"] if "gone" in times else "-",
        "said": [line for line in said.splitlines() if "taken away" in line or "resuming" in line or " on cpu" in line],
    }


def tensors(recipe: Recipe) -> dict[str, torch.Tensor]:
    return load(f"{recipe.run.storage}/{recipe.name}/artifact")[0].state_dict()


def different(one: Recipe, other: Recipe) -> tuple[int, int]:
    """How many trained tensors' bits differ, and how many statistics', which are sums over workers."""
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    names = [name for name in a if not torch.equal(a[name], b[name])]
    statistics = [name for name in names if "running" in name]
    return len(names) - len(statistics), len(statistics)


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--steps", type=int, default=1200, help="of each training")
    words.add_argument("--deadline", type=int, default=20, help="seconds from the notice until the node goes")
    words.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    words.add_argument("--ranks", type=int, nargs="*", default=[2], help="workers that look, to be timed")
    given = words.parse_args()
    torch.set_num_threads(1)
    head = {**NODE, "node_ip_address": "127.0.0.2", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, shutdown_at_exit=False, head_node_args=head)
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        with tempfile.TemporaryDirectory(prefix="rb", ignore_cleanup_errors=True) as storage:
            total = {"schedule.total": given.steps}
            whole = make_recipe(storage, "whole", **total)
            launch(pretrain, prepare(whole), whole.scaling)
            rows = []
            for case in given.cases:
                recipe = make_recipe(storage, re.sub(r"\W+", "-", case), **total, **CASES[case])
                found = disturbed(recipe, cluster, given.deadline)
                trained, statistics = different(whole, recipe)
                rows.append({"case": case, **found, "trained tensors that differ": trained, "statistics": statistics})
                save(given.output, rows)
            costs = [cost(Path(storage), ranks) for ranks in given.ranks]
        write(given.output, rows, looks=costs)
    finally:
        ray.shutdown()
        cluster.shutdown()


def cost(folder: Path, ranks: int) -> dict[str, Any]:
    """What a look takes with so many ranks, ms."""
    (folder / "run.json").touch()
    scaling = Scaling(num_workers=ranks, max_failures=0)
    found: dict[str, list[float]] = launch(looks, Payload(str(folder)), scaling)
    row: dict[str, Any] = {"ranks": ranks}
    for name, seconds in found.items():
        median, low, high = spread([1e3 * one for one in seconds])
        row |= {f"{name}, ms": median, f"{name}, quartiles": f"{low:.2f} to {high:.2f}"}
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
