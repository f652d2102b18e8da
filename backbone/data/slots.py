"""Batches of images in a ring of shared memory, which loader processes fill in again and again.

torch's DataLoader maps fresh shared memory for each tensor of each batch, and hands it over through sockets: for raw
pixels that costs more than loading them. Here a process is told which slot to fill in and answers with small arrays.
"""

import itertools
import math
import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from backbone.data import pinned
from backbone.errors import UserError

AHEAD = 2  # batches a loader process may be asked for beyond the one it works on: DataLoader's prefetch_factor
SMALL = 2**16  # bytes of a tensor
KEPT = 2  # batches that stay as they are: the one handed over last and the one before
SHARED = "/dev/shm"


class Filler(Protocol):
    """A data set that makes whole batches in memory it is given."""

    def fill_in(self, ids: Sequence[int], memory: Tensor, /) -> Any:
        """The batch of these ids, a dict; its "images" lie in the first bytes of `memory`, uint8 [len(ids), ...], or,
        where they need more than that, in memory of their own."""
        ...


def within(memory: Tensor, shape: Sequence[int]) -> Tensor:
    """The first bytes of uint8 memory, contiguous, as a tensor of this shape, no larger."""
    return memory.flatten()[: math.prod(shape)].view(*shape)


class Ring:
    """Slots for `workers` loader processes: uint8 [slots, batch, *each]; `each`: shape of an image's memory."""

    def __init__(self, workers: int, batch: int, each: Sequence[int], device: torch.device) -> None:
        """Page-locked where batches go to a GPU and the system grants it, so that they are copied while it works.

        Raises:
            UserError: there is not enough shared memory.
        """
        shape = (workers * AHEAD + KEPT, batch, *each)
        self.images = shared(torch.Size(shape), workers)
        if device.type == "cuda" and pinned.lock(self.images, device):
            weakref.finalize(self, pinned.unlock, self.images.data_ptr())


def shared(shape: torch.Size, workers: int) -> Tensor:
    """uint8 in shared memory, any values.

    It is reserved at once: the kernel counts, over all training processes of the machine, which could not count for
    each other; a page that were missing later would end in a bus error.

    Raises:
        UserError: so much is not free. Names what to change.
    """
    try:
        storage = torch.UntypedStorage._new_shared(shape.numel())  # as DataLoader's own: `share_memory_` would copy
    except RuntimeError as error:
        if "unable to allocate shared memory" not in str(error):
            raise
        stat = os.statvfs(SHARED)
        raise UserError(
            f"data.workers {workers} need {shape.numel() / 2**20:.0f} MiB more of shared memory for batches, {SHARED} "
            f"has {stat.f_bavail * stat.f_frsize / 2**20:.0f} free; set data.workers or optim.micro_batch lower, or "
            "enlarge it (docker run --shm-size, Kubernetes: an emptyDir of medium Memory)"
        ) from error
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


class Filled(Dataset):
    """What runs in a loader process: (slot, ids) -> the batch without its images, which lie in the slot."""

    def __init__(self, data: Filler, images: Tensor) -> None:
        self.data, self.images = data, images

    def __getitems__(self, asked: tuple[int, Sequence[int]]) -> dict[str, Any]:
        slot, ids = asked
        batch = self.data.fill_in(ids, self.images[slot, : len(ids)])
        images, rest = batch["images"], {name: value for name, value in batch.items() if name != "images"}
        fits = images.untyped_storage().data_ptr() == self.images.untyped_storage().data_ptr()
        where = {"slot": slot, "shape": tuple(images.shape)} if fits else {"images": images}
        return where | {name: _travelling(value) for name, value in rest.items()}


def _travelling(value: Any) -> Any:
    """numpy's arrays travel in the message itself, tensors would each take a file and a socket."""
    return value.numpy() if isinstance(value, Tensor) and value.nbytes <= SMALL else value


class InTurn:
    """Gives each of `batches` a slot, in turn: a DataLoader's batch_sampler."""

    def __init__(self, batches: Iterable[Sequence[int]], slots: int) -> None:
        self.batches, self.slots = batches, slots

    def __iter__(self) -> Iterator[tuple[int, Sequence[int]]]:
        return zip(itertools.cycle(range(self.slots)), self.batches, strict=False)


class FromRing:
    """The batches of a loader of `Filled`. Each stays as it is until the next but one is asked for.

    When batch k is handed over, k + workers * AHEAD may be under way; so that with KEPT more slots, none is filled in
    that k - 1 or k lies in.
    """

    def __init__(self, loader: DataLoader, ring: Ring) -> None:
        self.loader, self.ring = loader, ring

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.loader:
            if "slot" in batch:
                batch["images"] = within(self.ring.images[batch.pop("slot")], batch.pop("shape"))
            yield {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in batch.items()}


def to_device(batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """Batches with their tensors on the device, copied beside its work; on a CPU as they are."""
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(stream):
            moved = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
        copied = stream.record_event()
        working = torch.cuda.current_stream(device)
        working.wait_event(copied)
        for value in moved.values():
            if isinstance(value, Tensor):
                value.record_stream(working)
        yield moved
        copied.synchronize()  # before its slot is filled in again; waits for no work of the net's
