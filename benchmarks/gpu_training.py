"""ResNet-50 on one GPU: our training beside the loops of torchvision's and timm's scripts, and where the time goes.

One process, no Ray. Each way has its model, optimizer and data; they train in turns. First from data that lies on the
device, where only the step counts: ours cuts and flips resident images (data.resident), the peers train on one prepared
batch. Then from files: the folder as it is, and for ours also packed as shards of shorter side 256. A turn from files
begins with as many steps as loaders load ahead, which do not count; loaders of other ways are closed by then.

- torchvision: references/classification/train.py `train_one_epoch` with --amp (float16, scaled), its transforms and
  DataLoader, metrics read every step, contiguous tensors: it has no flags for anything else.
- timm: train.py `train_one_epoch` with --amp --amp-dtype bfloat16 --channels-last, with and without --torchcompile, its
  model, loader and prefetcher. Colour jitter and label smoothing are off, as in all others.

`x better peer` is against the faster of the peers' medians with the data at the same place: on the device, or in the
original files. `data wait`: share of the time in which the loop waits for a batch. `peak` is what a turn needs beyond
what all ways keep.
"""

import argparse
import gc
import importlib
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import torch
from gpu_peers import Step, Timed, timm_loop, torchvision_loop
from input_pipeline import encode_jpeg, repack
from results import parser, save, write

from backbone.data.index import IndexedSource
from backbone.data.raw import encode_raw
from backbone.data.sources import open_source
from backbone.data.stream import MicroBatches
from backbone.errors import UserError
from backbone.inputs import InputConvention
from backbone.training import engine
from backbone.training.meter import Meter
from backbone.training.pretrain import Classification
from backbone.training.recipe import Recipe
from backbone.training.world import World

AHEAD = 3  # batches a loader process may hold ready, at most, in any of the ways
Loop = Callable[[], Generator[Step]]


@dataclass
class Way:
    """One way to train. `loop` begins to load and does a step each time it is asked."""

    name: str
    data: str
    make: Callable[[], Loop]
    from_files: bool
    is_peer: bool = False
    loop: Loop | None = None
    seconds: list[float] = field(default_factory=list)  # a step's, one value a turn
    waited: list[float] = field(default_factory=list)  # share
    peak: float = 0.0
    absent: str = ""


def ours(given: argparse.Namespace, kind: str, root: str, cache: str, data: dict[str, Any], compile: str) -> Loop:
    """`engine.Trainer` as `jobs/pretrain.py` runs it, its records every turn."""
    small = {"net": "resnet", "depth": 18 if given.tiny else 50}
    on_gpu = given.device.type == "cuda"
    if data.get("decode") == "nvjpeg" and not on_gpu:
        raise UserError("nvJPEG decodes on GPUs")
    recipe = Recipe.model_validate(
        {
            "model": small,
            "data": {"source": kind, "train": root, "val": root, "size": given.size, "workers": given.workers, **data},
            "optim": {"batch": given.batch, "micro_batch": given.batch},
            "compute": {"precision": "bf16", "channels_last": True, "compile": compile},
            "scaling": {"num_workers": 0, "use_gpu": on_gpu},
        }
    )
    source = open_source(kind, root, cache)
    task = Classification(recipe, InputConvention(size=given.size), source, source, World(0, 1, given.device))
    trainer = engine.Trainer(task, recipe.optim, recipe.compute, 0, task.world)
    done = 0

    def loop() -> Generator[Step]:
        nonlocal done
        micro_batches = MicroBatches(given.batch, given.batch, 0, 1, done, 1 << 40)
        batches = Timed(task.batches(micro_batches))
        meter = Meter(task.world, given.batch)
        while True:
            trainer.step(batches, micro_batches, 0.1, done, meter)
            done += 1
            yield Step(batches.waited)

    return loop


def all_ways(given: argparse.Namespace, folder: Path) -> list[Way]:
    """Those on the device first: they must not be missing where time runs out."""
    root, cache = str(given.images), str(folder / "cache")
    resident = {"resident": True, "augment": {"kind": "cifar"}}

    def our(name: str, place: str, kind: str, where: str, data: dict[str, Any], compile: str) -> Way:
        return Way(name, place, lambda: ours(given, kind, where, cache, data, compile), "resident" not in data)

    def peer(name: str, place: str, make: Callable[[], Loop]) -> Way:
        return Way(name, place, make, place != "device", is_peer=True)

    best = given.compile
    return [
        our("raybone", "device", "imagefolder", root, resident, "none"),
        *(our(f"raybone, compile {mode}", "device", "imagefolder", root, resident, mode) for mode in best),
        peer("torchvision", "device", lambda: torchvision_loop(given, None)),
        peer("timm", "device", lambda: timm_loop(given, None, False)),
        *(peer("timm, torchcompile", "device", lambda: timm_loop(given, None, True)) for _ in best[:1]),
        peer("torchvision", "original files", lambda: torchvision_loop(given, root)),
        peer("timm", "original files", lambda: timm_loop(given, root, False)),
        our("raybone", "original files", "imagefolder", root, {}, "none"),
        our("raybone, nvjpeg", "original files", "imagefolder", root, {"decode": "nvjpeg"}, "none"),
        our("raybone", "shards, 256 px JPEG", "webdataset", str(folder / "jpeg"), {}, "none"),
        our("raybone", "shards, 256 px raw", "webdataset", str(folder / "raw"), {}, "none"),
        *(
            our(f"raybone, compile {mode}", "shards, 256 px raw", "webdataset", str(folder / "raw"), {}, mode)
            for mode in best[:1]
        ),
    ]


def now(device: torch.device) -> float:
    """Seconds, once the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def turn(way: Way, given: argparse.Namespace, first: bool) -> None:
    """One turn of one way; the first one also makes it, and compiles."""
    if way.loop is None:
        way.loop = way.make()
    ahead = AHEAD * given.workers if way.from_files else 0
    steps = way.loop()
    try:
        for _ in range(ahead + (given.warm_up if first else 2)):
            next(steps)
        before = torch.cuda.memory_allocated() if given.device.type == "cuda" else 0
        if given.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began, waited = now(given.device), 0.0
        for _ in range(given.steps):
            waited += next(steps).waited
        seconds = now(given.device) - began
    finally:
        steps.close()
        gc.collect()  # loader processes end with their loader
    way.seconds.append(seconds / given.steps)
    way.waited.append(waited / seconds)
    if given.device.type == "cuda":
        way.peak = max(way.peak, (torch.cuda.max_memory_allocated() - before) / 2**30)


def measure(ways: list[Way], given: argparse.Namespace, deadline: float) -> None:
    """Turns of all ways on the device, then of all from files. What fails or finds no time says so in its row."""
    for from_files, turns in ((False, given.turns), (True, given.file_turns)):
        for number in range(turns):
            for way in (way for way in ways if way.from_files == from_files and not way.absent):
                if time.monotonic() > deadline:
                    way.absent = "" if way.seconds else "no time was left"
                    continue
                began = time.monotonic()
                try:
                    turn(way, given, first=not number)
                except (UserError, RuntimeError, ImportError, TypeError, ValueError) as error:
                    way.absent, way.loop = f"{type(error).__name__}: {error}".splitlines()[0][:200], None
                rate = f"{given.batch / way.seconds[-1]:,.0f} images/s" if way.seconds else way.absent
                took = time.monotonic() - began
                print(f"{way.name}, {way.data}, turn {number + 1}: {rate} ({took:.0f} s in all)", flush=True)
                save(given.output, rows_of(ways, given.batch))  # a run that is broken off leaves what it has


def profile(way: Way, given: argparse.Namespace, steps: int = 5) -> dict[str, Any]:
    """Where a step's time goes: milliseconds of kernels in forward, backward and optimizer, and the longest kernels.

    On a CPU, of operators.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as Profile

    assert way.loop
    on_gpu = given.device.type == "cuda"
    loop = way.loop()
    for _ in range(3):
        next(loop)
    now(given.device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with Profile(activities=activities) as record:
        for _ in range(steps):
            next(loop)
        now(given.device)
    found = list(record.key_averages())
    whole = "device_time_total" if on_gpu else "cpu_time_total"
    own = f"self_{whole}"

    def under(prefix: str) -> float:
        host = [e for e in found if e.device_type == DeviceType.CPU and e.key.startswith(prefix)]
        return sum(getattr(e, whole) for e in host) / steps / 1000

    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    spans = {e.key for e in found if e.device_type == DeviceType.CPU} if on_gpu else ()  # of kernels, named by the host
    kernels = [e for e in found if e.device_type == wanted and e.key not in spans]
    busy = sum(getattr(e, own) for e in kernels) / steps / 1000
    backward, optimizer = under("autograd::engine::evaluate_function"), under("Optimizer.step")
    kernels.sort(key=lambda e: getattr(e, own), reverse=True)
    return {
        "way": f"{way.name}, {way.data}",
        "step, ms": 1000 * statistics.median(way.seconds),
        "kernels, ms": busy,
        "backward, ms": backward,
        "optimizer, ms": optimizer,
        "forward and the rest, ms": busy - backward - optimizer,
        "longest": [
            {"name": e.key[:120], "ms a step": getattr(e, own) / steps / 1000, "calls a step": e.count / steps}
            for e in kernels[:15]
        ],
    }


def rows_of(ways: list[Way], batch: int) -> list[dict[str, Any]]:
    """A row each, absent ones with the reason."""
    best = {
        from_files: min(
            (statistics.median(w.seconds) for w in ways if w.is_peer and w.from_files == from_files and w.seconds),
            default=0.0,
        )
        for from_files in (False, True)
    }
    rows = []
    for way in ways:
        row: dict[str, Any] = dict.fromkeys(
            ("loop", "data", "images/s", "x better peer", "lowest to highest", "turns", "data wait", "peak, GiB"), ""
        )
        row |= {"loop": way.name, "data": way.data}
        if way.seconds:
            rates = sorted(batch / seconds for seconds in way.seconds)
            row |= {"images/s": batch / statistics.median(way.seconds), "turns": len(rates), "peak, GiB": way.peak}
            row["lowest to highest"] = f"{rates[0]:.0f} to {rates[-1]:.0f}"
            row["data wait"] = statistics.median(way.waited)
            if best[way.from_files]:
                row["x better peer"] = best[way.from_files] / statistics.median(way.seconds)
        else:
            row["data"] += f"; absent: {way.absent}"
        rows.append(row)
    return rows


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--images", type=Path, required=True, help="an ImageFolder: <class>/*.jpg")
    words.add_argument("--batch", type=int, default=256)
    words.add_argument("--size", type=int, default=224)
    words.add_argument("--steps", type=int, default=20, help="steps of a turn that count")
    words.add_argument("--turns", type=int, default=5, help="turns of each way on the device")
    words.add_argument("--file-turns", type=int, default=2, help="turns of each way from files")
    words.add_argument("--warm-up", type=int, default=10, help="steps before the first turn of each way")
    words.add_argument("--workers", type=int, default=min(16, torch.multiprocessing.cpu_count()))
    words.add_argument("--compile", nargs="*", default=["default"], choices=("default", "reduce-overhead"))
    words.add_argument("--minutes", type=float, default=8.5, help="no turn begins later")
    words.add_argument("--places", nargs="+", choices=("device", "files"), default=["device", "files"])
    words.add_argument("--tiny", action="store_true", help="ResNet-18, small images, on the CPU: shows that it runs")
    given = words.parse_args()
    deadline = time.monotonic() + 60 * given.minutes
    given.device = torch.device("cpu" if given.tiny else "cuda", *(() if given.tiny else (0,)))
    if given.tiny:
        given.batch, given.size, given.steps, given.turns, given.file_turns = 8, 32, 2, 2, 1
        given.warm_up, given.workers, given.compile = 1, min(1, given.workers), []
    elif not torch.cuda.is_available():
        raise SystemExit("error: torch sees no GPU here; --tiny runs all of it on the CPU, small, to see that it runs")
    else:
        torch.backends.cudnn.benchmark = True  # both peers' scripts set it, as our job does
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = open_source("imagefolder", str(given.images), name + "/cache")
        assert isinstance(source, IndexedSource)
        given.classes = len(source.classes)
        repack(source, folder / "jpeg", "jpg", encode_jpeg)
        repack(source, folder / "raw", "rgb.npy", encode_raw)
        ways = [way for way in all_ways(given, folder) if ("files" if way.from_files else "device") in given.places]
        measure(ways, given, deadline)
        profiles = [
            profile(way, given)
            for way in ways
            if way.seconds and way.loop and not way.from_files and (given.tiny or time.monotonic() < deadline + 20)
        ]
    gpu = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    if importlib.util.find_spec("timm"):
        gpu["timm"] = importlib.import_module("timm").__version__
    write(given.output, rows_of(ways, given.batch), profiles=profiles, **gpu)


if __name__ == "__main__":
    main()
