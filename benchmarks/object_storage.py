"""Checkpoints into an object store while training goes on, and training images out of one, beside a local disk.

The store is moto's S3 server, one process of Python on this machine: it answers fewer requests a second than a real one
and takes its time from the cores that train, so its own processor time is told. Networks have latency and loopback has
none: `--latency` has a proxy, a process too, hold back each answer for so long. What is slow here need not be slow
elsewhere; how long the loop stands still, and what is read from the disk once it is kept, do not depend on the store.

Stretches of training with an upload and without take turns, and so do ways to read, 64 images at a time.
"""

import argparse
import io
import multiprocessing
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ |= {"NO_ALBUMENTATIONS_UPDATE": "1", "OMP_NUM_THREADS": "1"}

import psutil
import torch
from PIL import Image
from results import parser, save, spread, write
from torch.nn import functional as F

from backbone.compute import Compute
from backbone.data import ahead
from backbone.data.batches import TrainSet
from backbone.data.index import IndexedSource
from backbone.data.options import StoredData
from backbone.data.sources import open_source
from backbone.data.synthetic import SyntheticSource
from backbone.nets import build
from backbone.options import NetOptions
from backbone.storage import filesystem
from backbone.training import engine
from backbone.training.recipe import Optim
from backbone.training.state import Checkpointer, Progress, Store
from backbone.training.world import World
from tests.object_store import KEYS, Proxy, moto

BATCH = 64


def write_shards(folder: Path, images: int, side: int) -> None:
    """Rendered scenes as JPEG, 256 a shard."""
    source = SyntheticSource(0, images, side, "train")
    folder.mkdir()
    for first in range(0, images, 256):
        with tarfile.open(folder / f"{first:06d}.tar", "w") as tar:
            for i in range(first, min(first + 256, images)):
                data = io.BytesIO()
                Image.fromarray(source.image(i)).save(data, "JPEG", quality=90)
                label = str(source.labels[i]).encode()
                for name, content in ((f"{i:06d}.jpg", data.getvalue()), (f"{i:06d}.cls", label)):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))


def _hold_back(server: str, seconds: float, told: Any) -> None:
    proxy = Proxy(server)
    proxy.rule = lambda method, path: time.sleep(seconds) or ""
    told.send(proxy.url)
    told.recv()  # until the other end is closed


@contextmanager
def slowed(server: str, seconds: float) -> Generator[str]:
    """URL of a process that passes requests on to the server after so many seconds."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_hold_back, args=(server, seconds, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def cpu_seconds(command: str) -> float:
    """Processor time so far of the children of this process whose command line holds `command`."""
    used = 0.0
    for process in psutil.Process().children(recursive=True):
        if command in " ".join(process.cmdline()):
            times = process.cpu_times()
            used += times.user + times.system
    return used


class Reading:
    """One way to read: epochs of the same stream, 64 images at a time."""

    def __init__(self, source: IndexedSource, at_a_time: int, side: int) -> None:
        data = StoredData(source="webdataset", train="x", val="x", size=side, workers=0)
        self.train = TrainSet(source, data, 0, (0, 0, 0))
        self.at_a_time = at_a_time
        self.place = 0
        self.rates: dict[int, list[float]] = {}
        """Images/s of each batch, by the epoch."""

    def turn(self) -> None:
        """One batch."""
        ahead.AT_A_TIME = self.at_a_time
        ahead._pool.cache_clear()  # another way's may be wider
        began = time.perf_counter()
        self.train.batch(range(self.place, self.place + BATCH))
        rate = BATCH / (time.perf_counter() - began)
        self.rates.setdefault(self.place // len(self.train.source), []).append(rate)
        self.place += BATCH


def reading(folder: Path, fast: str, slow: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each way to read the shards: in `folder`, and in the bucket by two URLs."""
    half = sum(file.stat().st_size for file in folder.glob("shards/*.tar")) / 2e9
    late, wide = f"S3 + {1e3 * given.latency:.0f} ms", ahead.AT_A_TIME
    ways: dict[str, tuple[str, float, int]] = {
        "disk": (str(folder / "shards"), 0.0, wide),
        "S3, nothing kept": (fast, 0.0, wide),
        "S3, all kept": (fast, 10.0, wide),
        f"{late}, nothing kept, one request at a time": (slow, 0.0, 1),
        f"{late}, nothing kept": (slow, 0.0, wide),
        f"{late}, half kept": (slow, half, wide),
        f"{late}, all kept": (slow, 10.0, wide),
    }
    readings = {}
    for number, (way, (place, keep_gb, at_a_time)) in enumerate(ways.items()):
        source = open_source("webdataset", place, str(folder / f"cache{number}"), keep_gb)
        assert isinstance(source, IndexedSource)
        readings[way] = Reading(source, at_a_time, given.side)
    for _ in range(given.epochs * given.images // BATCH):
        for one in readings.values():
            one.turn()
    rows = []
    for way, one in readings.items():
        cold, (warm, disk) = one.rates[0], (_later(one), _later(readings["disk"]))
        ratio, low, high = spread([rate / beside for rate, beside in zip(warm, disk, strict=True)])
        row: dict[str, Any] = {"shards from": way, "first epoch, images/s": spread(cold)[0]}
        row |= {"later epochs, images/s": spread(warm)[0], "later, x disk": ratio}
        rows.append(row | {"quartiles": f"{low:.2f} to {high:.2f}", "turns": f"{len(cold)}, later {len(warm)}"})
    return rows


def _later(one: Reading) -> list[float]:
    return [rate for epoch, rates in one.rates.items() if epoch for rate in rates]


def uploading(places: dict[str, str], given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each place that ResNet-152 with its momentum is saved to while it is trained."""
    net = build(NetOptions(depth=152), 1000)
    # All that the trainer asks of a task before its first step.
    task = cast(engine.Task, SimpleNamespace(model=net, loss=None))
    trainer = engine.Trainer(
        task, Optim(micro_batch=256), Compute(precision="fp32"), 0, World(0, 1, torch.device("cpu"))
    )
    images = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(2)

    def steps_while(going: Callable[[], bool]) -> list[float]:
        took = []
        while going():
            began = time.perf_counter()
            F.cross_entropy(net.classify(images), labels).backward()
            trainer.optimizer.step()
            trainer.optimizer.zero_grad(set_to_none=True)
            took.append(1e3 * (time.perf_counter() - began))
        return took

    left = iter(range(3))
    steps_while(lambda: next(left, None) is not None)  # momentum exists from the first step on
    keepers = {way: Checkpointer(Store(url), keep=1) for way, url in places.items()}
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in places}
    for turn in range(given.turns + 1):  # the first allocates the copies
        for way, keeper in keepers.items():
            until = time.perf_counter() + given.alone
            alone = steps_while(lambda end=until: time.perf_counter() < end)
            before, began = cpu_seconds("moto"), time.perf_counter()
            keeper.hold(trainer.state(), Progress(step=turn), {})
            stall, began = time.perf_counter() - began, time.perf_counter()
            keeper.commit()
            writer = keeper._writer
            assert writer is not None
            during = steps_while(writer.is_alive)
            keeper.wait()
            one = {"alone": alone, "during": during, "stall": stall, "whole": time.perf_counter() - began}
            found[way].append(one | {"store": cpu_seconds("moto") - before})
            print(
                way, {name: value for name, value in one.items() if isinstance(value, float)}, len(during), flush=True
            )
    (state,) = (file for file in Path(places["disk"]).glob("step-*/state.pt"))
    rows = []
    for way, (first, *turns) in found.items():
        ratio, low, high = spread([spread(one["during"])[0] / spread(one["alone"])[0] for one in turns])
        row: dict[str, Any] = {"to": way, "state, MB": state.stat().st_size / 1e6}
        row |= {"stall, ms": 1e3 * spread([one["stall"] for one in turns])[0], "first stall, ms": 1e3 * first["stall"]}
        for when in ("alone", "during"):
            row[f"step {when}, ms"] = spread([took for one in turns for took in one[when]])[0]
        row |= {"slowest during, ms": max(max(one["during"]) for one in turns)}
        row |= {"during, x alone": ratio, "quartiles": f"{low:.2f} to {high:.2f}"}
        row |= {"complete after, s": spread([one["whole"] for one in turns])[0]}
        rows.append(
            row | {"processor time of the store, s": spread([one["store"] for one in turns])[0], "turns": len(turns)}
        )
    return rows


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--images", type=int, default=512, help="of the data set; a multiple of 64")
    words.add_argument("--side", type=int, default=224, help="of the images, pixels")
    words.add_argument("--epochs", type=int, default=3)
    words.add_argument("--latency", type=float, default=0.02, help="seconds that each answer takes longer")
    words.add_argument("--turns", type=int, default=3, help="checkpoints to each place, beside the first")
    words.add_argument("--alone", type=float, default=6, help="seconds of training before each checkpoint")
    given = words.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, moto() as server, slowed(server, given.latency) as late:
        os.environ |= {**KEYS, "AWS_ENDPOINT_URL": server}
        fs, _ = filesystem("s3://x")
        fs.mkdir("bucket")
        folder = Path(name)
        write_shards(folder / "shards", given.images, given.side)
        for file in sorted(folder.glob("shards/*.tar")):
            fs.put_file(str(file), f"bucket/shards/{file.name}")
        slow = f"s3://bucket/shards?scheme=http&endpoint_override={late.removeprefix('http://')}"
        rows = reading(folder, "s3://bucket/shards", slow, given)
        save(given.output, rows)
        uploads = uploading({"disk": str(folder / "checkpoints"), "S3": "s3://bucket/checkpoints"}, given)
    write(given.output, uploads, reading=rows)
    write(given.output, rows, uploads=uploads)


if __name__ == "__main__":
    main()
