"""Whether each path that only a GPU takes works there at all, and gives what the plain one gives.

A row a path. What is compared is said in its row; what fails says so, and the others go on. `--device cpu` runs what a
CPU has too, to see that the script runs.
"""

import argparse
import copy
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pydantic import TypeAdapter
from results import parser, save, write
from torch import Tensor, nn

from backbone.artifact import load
from backbone.data import pinned
from backbone.data.batches import TrainSet
from backbone.data.loader import train_loader
from backbone.data.options import Data
from backbone.data.sources import open_source
from backbone.data.stream import MicroBatches
from backbone.nets import build
from backbone.options import NetOptions
from backbone.training.engine import Trainer, autocast
from backbone.training.meter import Meter
from backbone.training.optimizer import build_optimizer
from backbone.training.pretrain import Classification, open_data, prepare, pretrain
from backbone.training.recipe import Recipe
from backbone.training.run import run_url
from backbone.training.world import World, local_world
from detection import finetune
from detection.recipe import Finetune

STEPS = 60  # with a CPU, a tenth of them
DATA: TypeAdapter[Data] = TypeAdapter(Data)
SMALL = NetOptions(depth=18, width=0.25)


class Broken(Exception):
    """Ends a run at a record, as a kill would."""


def recipe(folder: Path, name: str, on_gpu: bool, **changes: dict[str, Any]) -> Recipe:
    """60 steps of a narrow ResNet-18 on rendered scenes that lie on the device; `changes` replaces fields."""
    steps = STEPS if on_gpu else STEPS // 10
    tree: dict[str, Any] = {
        "name": name,
        "model": {"depth": 18, "width": 0.25, "zero_init_residual": True},
        "data": {
            **{"source": "synthetic", "resident": True, "workers": 0},
            **{"train_images": 1024 if on_gpu else 64, "val_images": 128, "size": 64, "crop_pct": 1.0},
            "augment": {"kind": "cifar"},
        },
        "optim": {"batch": 32, "micro_batch": 32, "lr": 0.05, "lr_batch": 32},
        "schedule": {"kind": "cosine", "unit": "iterations", "total": steps},
        "compute": {"precision": "fp32"},
        "scaling": {"num_workers": 0, "use_gpu": on_gpu},
        "run": {"storage": str(folder), "log_every": steps // 3, "checkpoint_every": steps // 3, "precise_bn": 0},
    }
    for section, fields in changes.items():
        tree[section] = tree[section] | fields
    return Recipe.model_validate(tree)


def train(wanted: Recipe, breaks: bool = False) -> tuple[list[float], dict[str, Tensor], float]:
    """Losses of its records, the weights it ends in, seconds; broken off at two thirds and taken up again."""
    losses: dict[int, float] = {}

    def report(record: dict[str, Any]) -> None:
        if record["kind"] == "log":
            losses[record["step"]] = record["loss"]
            if breaks and record["step"] == 2 * wanted.run.log_every and not broken:
                broken.append(True)
                raise Broken

    broken: list[bool] = []
    began = time.perf_counter()
    with local_world(wanted.scaling.use_gpu, torch.get_num_threads()) as world:
        try:
            pretrain(prepare(wanted, lambda _: None), world, report)
        except Broken:
            pretrain(prepare(wanted, lambda _: None), world, report)
    net, _, _ = load(run_url(wanted) + "/artifact")
    torch.compiler.reset()
    return list(losses.values()), net.state_dict(), time.perf_counter() - began


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of two nets' weights."""
    return max((one[name].float() - other[name].float()).abs().max().item() for name in one)


def paths(given: argparse.Namespace, folder: Path) -> dict[str, Callable[[], str]]:
    """Name -> what tries it and says what it saw, or raises."""
    on_gpu, device = given.device.type == "cuda", given.device
    plain: list[Any] = []

    def trains(name: str, **changes: dict[str, Any]) -> Callable[[], str]:
        def attempt() -> str:
            losses, weights, seconds = train(recipe(folder, name.replace(" ", "-"), on_gpu, **changes))
            if not plain:
                plain.extend((losses, weights))
            said = ", ".join(f"{loss:.3f}" for loss in losses)
            return f"losses {said} (fp32, not compiled: {plain[0][-1]:.3f} at the end); {seconds:.1f} s"

        return attempt

    def resume() -> str:
        torch.use_deterministic_algorithms(True, warn_only=True)  # cuDNN's too; only for its own process
        torch.backends.cudnn.deterministic = True
        first, again = (train(recipe(folder, name, on_gpu))[1] for name in ("first", "again"))
        resumed = train(recipe(folder, "resumed", on_gpu), breaks=True)[1]
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
        return (
            f"with deterministic kernels, weights after a break at two thirds are {apart(resumed, first):.2g} from an "
            f"undisturbed run's; a second undisturbed run's: {apart(again, first):.2g}"
        )

    tries: dict[str, Callable[[], str]] = {
        "training, fp32": trains("fp32"),
        "training, bf16": trains("bf16", compute={"precision": "bf16"}),
        "training, fp16": trains("fp16", compute={"precision": "fp16"}),
        "moving average": trains("ema", optim={"ema": 0.99}),
        "micro-batches": trains("micro", optim={"micro_batch": 8}),
        "break and resume": resume,
        "torch.compile": trains("compile", compute={"compile": "default"}),
        "CUDA graphs": trains("graphs", compute={"compile": "reduce-overhead"}),
        "CUDA graphs, micro-batches": trains(
            "graphs micro", compute={"compile": "reduce-overhead"}, optim={"micro_batch": 8}
        ),
        "loader processes, page-locked": trains("ring", data={"resident": False, "workers": 2}),
        "fused SGD": lambda: fused_sgd(device),
        "fp16 overflow": lambda: overflow(device),
        "page-lock": lambda: page_lock(device),
        "two ranks on one device, gloo": lambda: two_ranks(folder, on_gpu),
        "NCCL, one rank": lambda: nccl(device),
        "detector with masks": lambda: detector(folder, on_gpu),
    }
    if given.images:
        tries["nvJPEG"] = lambda: nvjpeg(given.images, folder, device)
    return tries


def fused_sgd(device: torch.device) -> str:
    """Three steps with the recipe's optimizer beside SGD's plain loop, from the same weights and gradients."""
    torch.manual_seed(0)
    ours = build(SMALL, 10).to(device)
    theirs = copy.deepcopy(ours)
    optim = recipe(Path(), "x", False).optim
    first = build_optimizer(ours, optim)
    rate, momentum, decay = optim.peak_lr, optim.momentum, optim.weight_decay
    second = torch.optim.SGD(theirs.parameters(), rate, momentum, weight_decay=decay, foreach=False)
    for _ in range(3):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        first.step()
        second.step()
    is_fused = any(group["fused"] for group in first.param_groups)
    return f"fused: {is_fused}; weights differ by {apart(ours.state_dict(), theirs.state_dict()):.2g} after 3 steps"


def overflow(device: torch.device) -> str:
    """The loss scaler skips a step: its momentum is still nothing, its weights are as before."""
    net = nn.Linear(256, 256).to(device)
    optimizer = build_optimizer(net, recipe(Path(), "x", False).optim)
    scaler = torch.amp.GradScaler(device.type)
    before = net.weight.clone()
    scaler.scale(net(torch.full((4, 256), 1e38, device=device)).sum() * 1e10).backward()
    scaler.step(optimizer)
    scaler.update()
    momentum = max(state["momentum_buffer"].abs().max().item() for state in optimizer.state.values())
    if momentum or not torch.equal(before, net.weight):
        raise AssertionError(f"momentum {momentum:.2g} after the step that was to be skipped")
    return f"momentum 0 after a skipped step; scale {scaler.get_scale():.0f}"


def page_lock(device: torch.device) -> str:
    """Memory asked for page-locked, and shared memory locked afterwards."""
    asked = pinned.empty((1 << 20,), torch.uint8, True)
    shared = torch.zeros(1 << 20, dtype=torch.uint8).share_memory_()
    locked = pinned.lock(shared, device)
    if locked:
        pinned.unlock(shared.data_ptr())
    if not (asked.is_pinned() and locked):
        raise AssertionError(f"allocated: {asked.is_pinned()}, shared memory: {locked}")
    return "allocated and shared memory are locked"


def rank_steps(rank: int, size: int, place: str, on_gpu: bool, port: int, out: str) -> None:
    """One rank's ten steps of training, gradients averaged over gloo; the first writes its weights."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    wanted = recipe(Path(place), f"ranks{size}-{rank}", on_gpu, optim={"micro_batch": 16})
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    if size > 1:
        dist.init_process_group("gloo", rank=rank, world_size=size)
    world = World(rank, size, device)
    payload = prepare(wanted, lambda _: None) if rank == 0 else None
    inputs = world.gather(payload.inputs if payload else None)[0]
    task = Classification(wanted, inputs, *open_data(wanted.data, wanted.seed), world)
    trainer = Trainer(task, wanted.optim, wanted.compute, 0, world)
    micro_batches = MicroBatches(32, 16, rank, size, 0, 10)
    batches, meter = iter(task.batches(micro_batches)), Meter(world, 32)
    for step in range(10):
        trainer.step(batches, micro_batches, 0.05, step, meter)
    if rank == 0:
        parameters = {name: value.detach().cpu() for name, value in task.model.named_parameters()}
        torch.save(parameters, out)
    if size > 1:
        dist.destroy_process_group()


def two_ranks(folder: Path, on_gpu: bool) -> str:
    """DDP's weights after ten steps beside those of one process with the same micro-batches."""
    found = []
    for size in (1, 2):
        out = str(folder / f"ranks{size}.pt")
        mp.spawn(rank_steps, (size, str(folder), on_gpu, 29500 + os.getpid() % 1000 + size, out), nprocs=size)
        found.append(torch.load(out))
    return f"weights differ by {apart(*found):.2g} from one process's after 10 steps"


def nccl(device: torch.device) -> str:
    """NCCL starts and sums; with one GPU there is nobody to sum with."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(28500 + os.getpid() % 1000)}
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=0, world_size=1)
    try:
        value = torch.ones(4, device=device)
        dist.all_reduce(value)
        return f"all-reduce of ones over one rank: {value.tolist()}"
    finally:
        dist.destroy_process_group()


def detector(folder: Path, on_gpu: bool) -> str:
    """Mask R-CNN on rendered scenes, 40 steps and an evaluation, from a net trained before."""
    wanted = recipe(folder, "backbone", on_gpu)
    train(wanted)
    tree = {
        "name": "detector",
        "backbone": run_url(wanted) + "/artifact",
        "detector": {"norm": "trainable", "freeze_at": 0, "channels": 64, "hidden": 256, "masks": True},
        "data": {
            **{"source": "synthetic", "train_images": 64, "val_images": 16, "render": 128, "objects": [1, 3]},
            **{"shorter_side": [128], "longer_side": 128, "workers": 2},
        },
        "optim": {"batch": 8, "micro_batch": 8, "lr": 0.01, "lr_batch": 8, "clip": 5.0},
        "schedule": {"kind": "cosine", "unit": "iterations", "total": 40 if on_gpu else 4},
        "compute": {"precision": "bf16" if on_gpu else "fp32"},
        "scaling": {"num_workers": 0, "use_gpu": on_gpu},
        "run": {"storage": str(folder), "log_every": 10 if on_gpu else 2},
    }
    records: list[dict[str, Any]] = []
    with local_world(on_gpu, torch.get_num_threads()) as world:
        task = Finetune.model_validate(tree)
        finetune.finetune(finetune.prepare(task, lambda _: None), world, records.append)
    losses = ", ".join(f"{record['loss']:.2f}" for record in records if record["kind"] == "log")
    judged = [record for record in records if record["kind"] == "evaluation"][-1]
    return f"losses {losses}; AP {judged['val_AP']:.2f}, of masks {judged['val_AP_masks']:.2f}"


def nvjpeg(images: Path, folder: Path, device: torch.device) -> str:
    """Views of photographs by nvJPEG, while a net trains on the same GPU, beside those of libjpeg."""
    views: list[list[Tensor]] = []
    net = build(NetOptions(depth=50), 10).to(device).to(memory_format=torch.channels_last)
    compute = recipe(Path(), "x", False, compute={"precision": "bf16"}).compute
    for how in ("exact", "nvjpeg" if device.type == "cuda" else "scaled"):
        tree = {"source": "imagefolder", "train": str(images), "val": str(images), "size": 224, "workers": 4}
        data = DATA.validate_python(tree | {"augment": {"kind": "modern"}, "decode": how})
        source = open_source("imagefolder", str(images), str(folder / "cache"))
        train_set = TrainSet(source, data, 0, (124, 116, 104))
        found = []
        for batch in train_loader(train_set, MicroBatches(32, 32, 0, 1, 0, 4 * len(source) // 32), device):
            found.append(batch["images"].cpu().clone())
            if how == "nvjpeg":  # queued, not waited for: what the decoder must not overwrite
                with autocast(compute, device):
                    net.classify(batch["images"].to(device).float() / 255).sum().backward()
        views.append(found)
    errors = np.concatenate(
        [(a.int() - b.int()).abs().float().mean((1, 2, 3)).numpy() for a, b in zip(*views, strict=True)]
    )
    wrong = int((errors > 8).sum())
    if wrong:
        raise AssertionError(f"{wrong} of {len(errors)} views differ by more than 8 grey levels in the mean")
    return f"{len(errors)} views, mean difference {errors.mean():.2f} grey levels, largest of a view {errors.max():.2f}"


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--images", type=Path, help="photographs for nvJPEG: <class>/*.jpg")
    words.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    words.add_argument("--only", nargs="+", help="paths to try, instead of all")
    given = words.parse_args()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic products need
    if given.device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: torch sees no GPU here; --device cpu shows that the script runs")
    gpu: dict[str, Any] = {"gpu": torch.cuda.get_device_name()} if given.device.type == "cuda" else {}
    gpu |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for path, attempt in paths(given, Path(name)).items():
            if given.only and path not in given.only:
                continue
            began = time.perf_counter()
            try:
                works, saw = "yes", attempt()
            except Exception as error:  # whatever it is, it is this path's result
                works, saw = "no", " ".join(f"{type(error).__name__}: {error}".split())[:600]
            rows.append({"path": path, "works": works, "saw": saw, "seconds": round(time.perf_counter() - began, 1)})
            print(" | ".join(map(str, rows[-1].values())), flush=True)
            save(given.output, rows, **gpu)
    write(given.output, rows, **gpu)


if __name__ == "__main__":
    main()
