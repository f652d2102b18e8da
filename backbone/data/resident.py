"""Images that stay on the training device: decoded once at the start, cut and flipped there ever after.

Loader processes only draw where each crop lies and whether it is flipped. The pixels are those of the ordinary loader,
bit for bit: augment kinds cifar and none move whole pixels of one view of an image.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from backbone.data import pinned
from backbone.data.augment import PADDING, Draws
from backbone.data.batches import Batch, TrainSet, ValSet, evaluation_batches, make_loader
from backbone.data.options import CifarAugment, NoAugment
from backbone.data.stream import MicroBatches, mix
from backbone.errors import BadImage, UserError

CHUNK = 8192
"""Samples whose draws travel together: a message and a copy for each small micro-batch would hold up the device."""


class Drawn(TypedDict):
    """The draws of some micro-batches, K samples in all."""

    cuts: np.ndarray  # int64 [K, 4], see `places`
    labels: np.ndarray  # int64 [K]
    shift: np.ndarray  # float32 [K, 3]
    blending: np.ndarray  # float32 [K, 5]
    ranges: list[range]  # positions of each micro-batch
    bad: list[list[str]]  # of each micro-batch


def places(cuts: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image [N], rows [N, size] and columns [N, size] of views, int64.

    `cuts`, int64 [N, 4]: the image, top and left of the square in it, and 1 where it is mirrored.
    """
    image, top, left, mirrored = cuts.T
    along = torch.arange(size, device=cuts.device)
    return image, top[:, None] + along, left[:, None] + torch.where(mirrored[:, None] > 0, size - 1 - along, along)


def cut(images: Tensor, image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Views uint8 [N, 3, size, size] of images uint8 [M, 3, H, W], see `places`."""
    channel = torch.arange(images.shape[1], device=images.device)
    return images[image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


@dataclass
class Draw(Dataset):
    """Positions -> draws. `bad` are the images that could not be read, each with the reason."""

    train_set: TrainSet
    bad: dict[int, str]

    def __getitems__(self, ranges: Sequence[range]) -> Drawn:
        train = self.train_set
        draws = Draws(train.options.augment, train.seed)
        cuts, shifts, blending = [], [], []
        bad: list[list[str]] = [[] for _ in ranges]
        for positions, names in zip(ranges, bad, strict=True):
            for position in positions:
                epoch, sample = train.stream[position]
                sample = self._readable(sample, names)
                cuts.append(self._cut(epoch, sample))
                shifts.append(draws.shift(epoch, sample))
                blending.append(draws.blending(position))
        found = np.array(cuts, np.int64)
        return Drawn(
            cuts=found,
            labels=np.asarray(train.source.labels, np.int64)[found[:, 0]],
            shift=np.asarray(shifts, np.float32),
            blending=np.asarray(blending, np.float32),
            ranges=list(ranges),
            bad=bad,
        )

    def _cut(self, epoch: int, sample: int) -> tuple[int, int, int, int]:
        view = self.train_set.view
        if isinstance(view.options, NoAugment):
            return sample, 0, 0, 0
        key = mix(self.train_set.seed, epoch, sample)
        box = view.padded_box(key)
        return sample, box.top, box.left, int(view.flips(key))

    def _readable(self, sample: int, names: list[str]) -> int:
        """As `TrainSet` replaces it, and says so each time."""
        options = self.train_set.options
        for _ in range(options.max_bad + 1):
            if sample not in self.bad:
                return sample
            names.append(self.bad[sample])
            sample = (sample + 1) % len(self.train_set.source)
        raise BadImage(f"more than data.max_bad {options.max_bad} unreadable images in a row: {names[-1]}")


@dataclass(frozen=True)
class Chunks:
    """Micro-batches by the handful: a DataLoader's batch sampler."""

    micro_batches: MicroBatches

    def __iter__(self) -> Iterator[list[range]]:
        ranges = iter(self.micro_batches)
        while chunk := list(islice(ranges, max(1, CHUNK // self.micro_batches.micro_batch))):
            yield chunk


class Resident:
    """The training images on a device."""

    def __init__(self, train_set: TrainSet, device: torch.device, others: int = 0, tells: bool = False) -> None:
        """Decode all of them, in `data.workers` processes. `others`: images that are to find room beside them.

        Raises:
            UserError: they do not fit on the device.
            BadImage: one cannot be read, with on_bad stop.
        """
        self.train_set, self.device = train_set, device
        options, count = train_set.options, len(train_set.source)
        padding = PADDING if isinstance(options.augment, CifarAugment) else 0
        side = options.size + 2 * padding
        needed = count * 3 * side**2 + others * 3 * options.size**2
        check_room(needed, count + others, device)
        colour = torch.tensor(train_set.fill, dtype=torch.uint8, device=device)
        self.images = colour[:, None, None].expand(count, 3, side, side).contiguous()
        inner = self.images[:, :, padding : padding + options.size, padding : padding + options.size]
        bad: dict[int, str] = {}
        done, began, told = 0, time.monotonic(), time.monotonic()
        for batch in evaluation_batches(ValSet(train_set.source, options), range(count), 256):
            labels = batch["labels"]
            inner[done : done + len(labels)].copy_(batch["images"])
            unread = [done + place for place in (labels < 0).nonzero()[:, 0].tolist()]
            bad |= zip(unread, batch["bad"], strict=True)
            done += len(labels)
            if tells and (done == count or time.monotonic() - told > 10):
                told = time.monotonic()
                print(
                    f"decoded {done:,} of {count:,} images to keep on {device}, {needed / 2**20:.0f} MiB, in "
                    f"{told - began:.0f} s",
                    flush=True,
                )
        self.draw = Draw(train_set, bad)

    def batches(self, micro_batches: MicroBatches) -> Iterator[Batch]:
        """All micro-batches of one rank, as `backbone.data.loader.train_loader` makes them, on the device."""
        size = self.train_set.options.size
        loader = make_loader(self.draw, self.train_set.options.workers, False, batch_sampler=Chunks(micro_batches))
        for drawn in loader:
            cuts, labels, shift, blending = (
                self._to_device(drawn[name]) for name in ("cuts", "labels", "shift", "blending")
            )
            image, rows, columns = places(cuts, size)
            first = 0
            for positions, bad in zip(drawn["ranges"], drawn["bad"], strict=True):
                mine = slice(first, first + len(positions))
                yield Batch(
                    images=cut(self.images, image[mine], rows[mine], columns[mine]),
                    labels=labels[mine],
                    shift=shift[mine],
                    blending=blending[mine],
                    position=positions[0],
                    samples=drawn["cuts"][mine, 0].tolist(),
                    bad=bad,
                )
                first += len(positions)

    def _to_device(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(values)
        # page-locked: a copy from ordinary memory would wait for all the work the device has before it
        return (
            pinned.empty_like(tensor, True).copy_(tensor).to(self.device, non_blocking=True)
            if self.device.type == "cuda"
            else tensor
        )


def check_room(needed: int, count: int, device: torch.device) -> None:
    """UserError where `needed` bytes of images are more than the device has free, or half of a host's memory."""
    if device.type == "cuda":
        room, what = torch.cuda.mem_get_info(device)[0], f"{device} has {{}} free"
    else:
        room, what = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2, "half of this host's memory is {}"
    if needed > room:
        has = what.format(f"{room / 2**30:.2f} GiB")
        raise UserError(
            f"data.resident: {count:,} images take {needed / 2**30:.2f} GiB and {has}; leave it off, or lower data.size"
        )
