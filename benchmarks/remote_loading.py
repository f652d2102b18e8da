"""Batches made by another node's CPUs (data.remote_cpus) against as many loader processes here.

Two Ray nodes on this one machine: one that trains, with a GPU in name only, and one that makes batches; they pass them
on as nodes do, but for the network, which is left out. 224 pixels, from an ImageFolder as it is and from shards of raw
pixels. Both ways go on loading the same stream, turn by turn; what is ready when a turn begins is taken before
the clock starts. CPU times: of the processes that make batches, and of this process and its node's raylet beside them.
"""

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {"NO_ALBUMENTATIONS_UPDATE": "1", "OMP_NUM_THREADS": "1"}
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"}

import psutil
import ray
import torch
from input_pipeline import SHORTER, SIDE, repack
from pydantic import TypeAdapter
from ray.cluster_utils import Cluster
from results import parser, spread, write

from backbone.data.batches import TrainSet
from backbone.data.index import IndexedSource
from backbone.data.loader import train_loader
from backbone.data.options import Data
from backbone.data.raw import encode_raw
from backbone.data.remote import AHEAD, PORTION
from backbone.data.sources import open_source
from backbone.data.stream import MicroBatches

WAYS = {"loader processes": "workers", "other nodes": "remote_cpus"}


def stream_of(kind: str, root: str, cache: str, batch: int, how: str, cpus: int) -> Iterator[Any]:
    """More training batches than are asked for, made by so many CPUs."""
    places = {"source": kind, "train": root, "val": root, "cache": cache}
    options = TypeAdapter(Data).validate_python({**places, "size": SIDE, "workers": 0, how: cpus})
    train_set = TrainSet(open_source(kind, root, cache), options, 0, (0, 0, 0))
    return iter(train_loader(train_set, MicroBatches(batch, batch, 0, 1, 0, 20_000)))


def cpu_seconds(cluster: Any) -> tuple[float, float]:
    """CPU seconds so far of the processes that make batches, and of what the training node does beside them."""
    making, beside = 0.0, time.process_time()
    here = {process.process.pid for process in cluster.head_node.all_processes["raylet"]}
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
            command = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        used = times.user + times.system
        making += used if "ray::Maker" in command or "forkserver" in command else 0
        beside += used if process.pid in here else 0
    return making, beside


def measure(
    cluster: Any, data: tuple[str, str, str], cpus: int, cache: str, given: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each way."""
    kind, root, name = data
    streams = {way: stream_of(kind, root, cache, given.batch, how, cpus) for way, how in WAYS.items()}
    ready = PORTION * (AHEAD * cpus + 1)  # more than either way keeps
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    making: dict[str, list[float]] = {way: [] for way in WAYS}
    beside: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(given.turns + 1):  # the first is warm-up
        for way, stream in streams.items():
            take(stream, ready // given.batch)
            before, began = cpu_seconds(cluster), time.perf_counter()
            images = take(stream, given.images_a_turn // given.batch)
            seconds, after = time.perf_counter() - began, cpu_seconds(cluster)
            if turn:
                rates[way].append(images / seconds)
                making[way].append(1000 * (after[0] - before[0]) / images)
                beside[way].append(1000 * (after[1] - before[1]) / images)
    rows = []
    for way in WAYS:
        ratio, low, high = spread([own / here for own, here in zip(rates[way], rates["loader processes"], strict=True)])
        rows.append(
            {
                "from": name,
                "CPUs": cpus,
                "made by": way,
                "images/s": spread(rates[way])[0],
                "x loader processes": ratio,
                "quartiles": f"{low:.2f} to {high:.2f}",
                "turns": given.turns,
                "CPU ms an image, making": spread(making[way])[0],
                "CPU ms an image, training node": spread(beside[way])[0],
                "MB/s to the training node": spread(rates[way])[0] * 3 * SIDE**2 / 1e6 if way == "other nodes" else 0.0,
            }
        )
    return rows


def take(stream: Iterator[Any], batches: int) -> int:
    """Load so many batches; how many images they held."""
    return sum(len(next(stream)["labels"]) for _ in range(batches))


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--images", type=Path, required=True, help="an ImageFolder: <class>/*.jpg")
    words.add_argument("--cpus", type=int, nargs="+", default=[1, 2])
    words.add_argument("--turns", type=int, default=7, help="turns of each way")
    words.add_argument("--batch", type=int, default=128, help="images of a micro-batch")
    words.add_argument("--images-a-turn", type=int, default=1280, help="images of a turn")
    given = words.parse_args()
    torch.set_num_threads(1)
    memory: dict[str, Any] = {"object_store_memory": 800 * 2**20}
    head: dict[str, Any] = {
        "node_ip_address": "127.0.0.2",
        "num_cpus": 1,
        "num_gpus": 1,
        "include_dashboard": False,
        **memory,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(node_ip_address="127.0.0.3", num_cpus=max(given.cpus), **memory)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        with tempfile.TemporaryDirectory() as name:
            cache = f"{name}/cache"
            source = open_source("imagefolder", str(given.images), cache)
            assert isinstance(source, IndexedSource)
            raw = repack(source, Path(name) / "raw", "rgb.npy", encode_raw)
            sets = [
                ("imagefolder", str(given.images), "original files"),
                ("webdataset", raw, f"shards, {SHORTER} px raw"),
            ]
            rows = [row for data in sets for cpus in given.cpus for row in measure(cluster, data, cpus, cache, given)]
        write(given.output, rows)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
