"""The processes that train together: torch.distributed where there are several, nothing where there is one."""

import inspect
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from backbone.compute import Scaling
from backbone.errors import UserError

Report = Callable[[dict[str, Any]], None]
"""How a worker tells the driver: {"kind": "log" | "evaluation" | "say", "step": ..., ...}."""


@dataclass(frozen=True)
class Payload:
    """What every worker of a job is given, picklable; each job adds what it needs."""

    url: str
    """The run's folder."""

    seen: tuple[str, ...] = field(default=(), kw_only=True)
    """Fingerprints of the data where the job began, which all workers must find."""


def _no_notice() -> str:
    return ""


TIMEOUT_S = 600
"""How long a rank waits in a collective for one that hangs: 30 minutes, torch's own, cost too much. What one rank does
alone, such as scoring, must take less."""


@dataclass(frozen=True)
class World:
    """This process's place. Collectives must be called by all ranks, in the same order."""

    rank: int
    size: int
    device: torch.device
    notice: Callable[[], str] = _no_notice
    """Why this process should leave soon, its node being taken away or the job stopped; empty: it need not. A
    collective, as `Lookout` calls it."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def min(self, values: Tensor) -> Tensor:
        """Minimum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MIN)
        return values

    def gather(self, value: Any) -> list[Any]:
        """A picklable value of each rank, on every rank."""
        values: list[Any] = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value)
        return values

    def share_buffers(self, module: nn.Module) -> None:
        """Give every rank the mean of all ranks' buffers, in place; of whole numbers (counters) the first one's.

        They are moving averages of batch statistics, which each rank keeps of its own micro-batches alone. In float64
        the mean of equal values is that value, so sharing twice, or what is frozen, changes nothing.
        """
        if self.size == 1:
            return
        floats = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        counters = [buffer for buffer in module.buffers() if not buffer.is_floating_point()]
        if floats:
            mean = self.sum(torch.cat([buffer.double().flatten() for buffer in floats])) / self.size
            for buffer, part in zip(floats, mean.split([buffer.numel() for buffer in floats]), strict=True):
                buffer.copy_(part.view_as(buffer))
        if counters:
            first = torch.cat([buffer.long().flatten() for buffer in counters])
            dist.broadcast(first, 0)
            for buffer, part in zip(counters, first.split([buffer.numel() for buffer in counters]), strict=True):
                buffer.copy_(part.view_as(buffer))


def in_parallel(module: nn.Module, world: World) -> nn.Module:
    """A module whose gradients are averaged over all ranks, each of which keeps its own buffers: batch statistics,
    which are shared when they are read. The module itself where there is one rank.
    """
    if world.size == 1:
        return module
    # torch 2.15 renamed the option.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    options: Any = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    if world.size > 2:
        # Where three or more add up, the order of a sum follows from where a gradient lies in its bucket. DDP lays
        # buckets out anew after its first step, unless it looks for unused parameters, of which there are none: a run
        # that is resumed would add in another order than one that goes on.
        # (Each process then says once, from C++, that it found none and that this costs time. It is meant.)
        options["find_unused_parameters"] = True
    device_ids = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=device_ids, gradient_as_bucket_view=True, **options)


def is_first_process(scaling: Scaling) -> bool:
    """Whether this process speaks for its run: on Ray the driver, without it the first of those torchrun started."""
    return scaling.num_workers > 0 or os.environ.get("RANK", "0") == "0"


@contextmanager
def local_world(use_gpu: bool, threads: int, notice: Callable[[], str] = _no_notice) -> Generator[World]:
    """The world without Ray Train: this process alone, or the ones torchrun started; `notice` as `World.notice`.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    if use_gpu and not torch.cuda.is_available():
        raise UserError(
            "scaling.use_gpu: torch sees no GPU on this machine; look at nvidia-smi, or train on CPUs: "
            "--scaling.use_gpu false"
        )
    size = int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if use_gpu else torch.device("cpu")
    torch.set_num_threads(threads)  # as Ray does for its workers
    if use_gpu:
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group("nccl" if use_gpu else "gloo", timeout=timedelta(seconds=TIMEOUT_S))
    try:
        yield World(int(os.environ.get("RANK", "0")), size, device, notice)
    finally:
        if size > 1:
            dist.destroy_process_group()
