"""How long training stands still for a checkpoint, and how long until it is durable.

`Checkpointer` copies the state and writes it from a thread; against it `torch.save` in the loop, with and without
fsync. ResNet-50, weights and momentum. Since the thread takes time from the steps it runs beside, the loss of a stretch
of training with one checkpoint against the same stretch without is given too: that is what a checkpoint costs in all.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from results import parser, spread, write
from torch.nn import functional as F

from backbone.compute import Compute
from backbone.nets import build
from backbone.options import NetOptions
from backbone.training import engine
from backbone.training.recipe import Optim
from backbone.training.state import Checkpointer, Progress, Store
from backbone.training.world import World

Save = Callable[[dict[str, Any], int], float]
"""Saves a state as that of a step; returns the seconds after which it was safe, as far as the way to save knows."""


def sync_save(folder: Path, fsync: bool) -> Save:
    def save(state: dict[str, Any], step: int) -> float:
        began = time.perf_counter()
        with (folder / f"{step % 2}-{fsync}.pt").open("wb") as file:
            torch.save(state, file)
            if fsync:
                file.flush()
                os.fsync(file.fileno())
        return time.perf_counter() - began

    return save


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--repeats", type=int, default=7)
    words.add_argument("--steps", type=int, default=8, help="steps of a stretch of training; longer than a write")
    words.add_argument("--folder", help="where to write; a temporary folder by default")
    words.add_argument("--threads", type=int, default=1)
    words.add_argument("--gpu", action="store_true")
    given = words.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device("cuda" if given.gpu else "cpu")
    net = build(NetOptions(depth=50), 1000)
    # All that the trainer asks of a task before its first step.
    task = cast(engine.Task, SimpleNamespace(model=net, loss=None))
    trainer = engine.Trainer(task, Optim(micro_batch=256), Compute(precision="fp32"), 0, World(0, 1, device))
    images = torch.randn(16, 3, 96, 96, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(16, device=device)

    def now() -> float:
        if given.gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def train() -> None:
        for _ in range(given.steps):
            F.cross_entropy(net.classify(images), labels).backward()
            trainer.optimizer.step()
            trainer.optimizer.zero_grad(set_to_none=True)

    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        checkpointer = Checkpointer(Store(folder + "/checkpoints"), keep=2)

        def copy_and_thread(state: dict[str, Any], step: int) -> float:
            checkpointer.hold(state, Progress(step=step), {})
            checkpointer.commit()
            return float("nan")

        ways: dict[str, Save] = {
            "Checkpointer": copy_and_thread,
            "torch.save": sync_save(Path(folder), False),
            "torch.save + fsync": sync_save(Path(folder), True),
        }
        stalls: dict[str, list[float]] = {way: [] for way in ways}
        durable: dict[str, list[float]] = {way: [] for way in ways}
        losses: dict[str, list[float]] = {way: [] for way in ways}
        train()
        for step in range(1, given.repeats + 2):
            for way, save in ways.items():
                began = now()
                save(trainer.state(), 2 * step)
                stalls[way].append(now() - began)
                checkpointer.wait()
                durable[way].append(time.perf_counter() - began)

                began = now()
                train()
                without = now() - began
                began = now()
                save(trainer.state(), 2 * step + 1)
                train()
                losses[way].append(now() - began - without)
                checkpointer.wait()
        size = sum(file.stat().st_size for file in Path(folder).glob("checkpoints/step-*/state.pt")) / 2

    rows = []
    for way in ways:
        # The first of each is warm-up: the copy's buffers are allocated once a run.
        ratio = spread([a / b for a, b in zip(stalls["torch.save + fsync"][1:], stalls[way][1:], strict=True)])
        loss, low, high = spread(losses[way][1:])
        rows.append(
            {
                "way": way,
                "state, MB": size / 1e6,
                "stall, ms": 1e3 * spread(stalls[way][1:])[0],
                "first stall, ms": 1e3 * stalls[way][0],
                "shorter than with fsync": f"{ratio[0]:.1f}x ({ratio[1]:.1f} to {ratio[2]:.1f})",
                "durable after, ms": "unknown" if way == "torch.save" else 1e3 * spread(durable[way][1:])[0],
                "lost in all, ms": 1e3 * loss,
                "quartiles, ms": f"{1e3 * low:.0f} to {1e3 * high:.0f}",
                "repeats": given.repeats,
            }
        )
    write(given.output, rows)


if __name__ == "__main__":
    main()
