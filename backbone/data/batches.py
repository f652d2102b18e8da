"""Sources, order and augmentation put together into batches: uint8, normalised later, on the device.

The ground that the other ways to make batches stand on; `backbone.data.loader` chooses among them.
"""

import itertools
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NotRequired, TypedDict

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from backbone.data import pinned
from backbone.data.ahead import read_ahead
from backbone.data.augment import Draws, TrainingView, evaluation_view, to_planes
from backbone.data.decode import decode, decode_down_to
from backbone.data.headers import jpeg_header
from backbone.data.index import IndexedSource
from backbone.data.options import Data, ModernAugment
from backbone.data.raw import read_box
from backbone.data.slots import AHEAD, KEPT, Filled, Filler, FromRing, InTurn, Ring, to_device, within
from backbone.data.sources import Source
from backbone.data.stream import Stream, mix
from backbone.errors import BadImage

CPU = torch.device("cpu")
APART = "backbone.data.apart"
"""What a server of loader processes is to import first."""


class Batch(TypedDict):
    """What a loader hands over. N samples, side S."""

    images: Tensor  # uint8 [N, 3, S, S], RGB
    labels: Tensor  # int64 [N]; -1 where an evaluation image could not be read
    shift: Tensor  # float32 [N, 3], see Draws.shift
    blending: Tensor  # float32 [N, 5], see Draws.blending
    position: int  # of the first sample
    samples: list[int]  # which images these are; on the host, so that asking waits for no device
    bad: list[str]  # names of images that could not be read, each with the reason
    undecoded: NotRequired[list["Undecoded"]]  # decode nvjpeg, on the way to the GPU: views that `images` lacks


class Undecoded(NamedTuple):
    """A training image whose bytes travel to the GPU."""

    place: int  # in the batch
    epoch: int
    sample: int
    key: int
    data: bytes


@dataclass
class TrainSet:
    """Positions -> micro-batch. A `Filler`, as is `ValSet`."""

    source: Source
    options: Data
    seed: int
    fill: tuple[int, int, int]
    apart: int = 2
    """Positions between copies of an image, where there are any: a micro-batch."""
    stream: Stream = field(init=False)
    view: TrainingView = field(init=False)

    def __post_init__(self) -> None:
        options = self.options
        repeats = options.augment.repeats if isinstance(options.augment, ModernAugment) else 1
        self.stream = Stream(self.seed, len(self.source), repeats, self.apart)
        self.view = self.view_at(options.size)

    def view_at(self, side: int) -> TrainingView:
        """What the net sees of an image where it is trained at this side, pixels."""
        return TrainingView(self.options.augment, side, self.options.crop_pct, self.fill)

    def side(self, position: int) -> int:
        """Of the views of the micro-batch that begins at a position, pixels: all of it has the size of the epoch in
        which it begins. That depends on no rank, as little as micro-batches do."""
        return self.options.trained_at(position // self.stream.num_samples)

    def fill_in(self, positions: Sequence[int], images: Tensor) -> Batch:
        """The micro-batch of consecutive positions, its views in `images`, uint8 [len(positions), 3, size, size], or
        where they are smaller in its first bytes."""
        side = self.side(positions[0])
        images, view = within(images, (len(positions), 3, side, side)), self.view_at(side)
        draws = Draws(self.options.augment, self.seed)
        planes = images.numpy()
        samples, shifts, undecoded, bad = [], [], [], []
        places = [self.stream[position] for position in positions]
        read_ahead(self.source, (sample for _, sample in places))
        for place, (epoch, sample) in enumerate(places):
            sample, data = self._read(view, epoch, sample, planes[place], bad)
            if data is not None:
                undecoded.append(Undecoded(place, epoch, sample, mix(self.seed, epoch, sample), data))
            samples.append(sample)
            shifts.append(draws.shift(epoch, sample))
        labels = [self.source.labels[sample] for sample in samples]
        of_pair = {position // 2: position for position in positions}
        drawn = {pair: draws.blending(position) for pair, position in of_pair.items()}
        blending = [drawn[position // 2] for position in positions]
        batch = _batch(images, labels, shifts, blending, positions[0], samples, bad)
        if self.options.decode == "nvjpeg":
            batch["undecoded"] = undecoded
        return batch

    def batch(self, positions: range) -> Batch:
        """`fill_in` with memory of its own."""
        return self.fill_in(positions, empty_images(len(positions), self.options.size))

    def decoded(self, one: Undecoded, side: int, bad: list[str]) -> tuple[Tensor, int]:
        """What was left to the GPU, decoded here after all: uint8 [3, side, side], and the sample it shows."""
        image = empty_images(1, side)[0]
        sample, _ = self._read(self.view_at(side), one.epoch, one.sample, image.numpy(), bad, on_host=True)
        return image, sample

    def _read(
        self, view: TrainingView, epoch: int, sample: int, planes: np.ndarray, bad: list[str], on_host: bool = False
    ) -> tuple[int, bytes | None]:
        """Fill in the view, or with on_bad skip the next readable one: still a function of the position and the data.

        Returns the sample it shows, and its bytes where only the GPU is to decode them.
        """
        for _ in range(self.options.max_bad + 1):
            try:
                return sample, self._look(view, epoch, sample, planes, on_host)
            except BadImage as error:
                if self.options.on_bad == "stop":
                    raise BadImage(f"{error}; mend or remove it, or set data.on_bad: skip") from error
                bad.append(str(error))
                sample = (sample + 1) % len(self.source)
        raise BadImage(f"more than data.max_bad {self.options.max_bad} unreadable images in a row: {bad[-1]}")

    def _look(self, view: TrainingView, epoch: int, sample: int, planes: np.ndarray, on_host: bool) -> bytes | None:
        key = mix(self.seed, epoch, sample)
        if not isinstance(self.source, IndexedSource):
            return view.fill(planes, self.source.image(sample), key)
        if self._fill_from_rows(view, sample, planes, key):
            return None
        data, name = self.source.data(sample), self.source.name(sample)
        header = jpeg_header(data)
        if header is None or not header.is_upright:  # what follows turns nothing
            return view.fill(planes, decode(data, name), key)
        if self.options.decode == "nvjpeg" and not on_host:
            return data
        whole = header.height, header.width
        shrink = view.shrink(*whole, key) if self.options.decode == "scaled" else 1
        if shrink > 1:
            return view.fill(planes, decode(data, name, shrink), key, whole)
        view.fill(planes, decode_down_to(data, name, header, view.bottom(*whole, key)), key, whole)

    def _fill_from_rows(self, view: TrainingView, sample: int, planes: np.ndarray, key: int) -> bool:
        """Fill in the view from the rows of raw pixels that it shows; False where the whole image has to be read."""
        source = self.source
        if not (isinstance(source, IndexedSource) and isinstance(view.options, ModernAugment)):
            return False
        place = source.place(sample, b".npy")
        if place is None:
            return False
        try:
            cut = read_box(*place, int(source.sizes[sample]), lambda height, width: view.box(height, width, key))
        except (BadImage, OSError):  # to be said by who reads the whole, and knows its name
            return False
        view.fill_cut(planes, cut, key)
        return True


@dataclass
class ValSet:
    """Sample id -> evaluation view. An unreadable image keeps its place with label -1, so counts stay honest."""

    source: Source
    options: Data
    size: int = 0
    """Of the view; 0: `data.size`."""

    @property
    def side(self) -> int:
        """Pixels."""
        return self.size or self.options.size

    def fill_in(self, ids: Sequence[int], images: Tensor) -> Batch:
        """The views of these samples, in `images`, uint8 [len(ids), 3, size, size]."""
        planes = images.numpy()
        labels, bad = [], []
        read_ahead(self.source, ids)
        for place, sample in enumerate(ids):
            try:
                to_planes(
                    evaluation_view(self.source.image(sample), images.shape[-1], self.options.crop_pct), planes[place]
                )
                labels.append(self.source.labels[sample])
            except BadImage as error:
                if self.options.on_bad == "stop":
                    raise BadImage(f"{error}; mend or remove it, or set data.on_bad: skip") from error
                bad.append(str(error))
                planes[place] = 0
                labels.append(-1)
        none = np.zeros((len(ids), 8), np.float32)
        return _batch(images, labels, none[:, :3], none[:, 3:], ids[0], list(ids), bad)

    def batch(self, ids: Sequence[int]) -> Batch:
        """`fill_in` with memory of its own."""
        return self.fill_in(ids, empty_images(len(ids), self.side))


def evaluation_batches(val_set: ValSet, ids: Sequence[int], batch: int, device: torch.device = CPU) -> "Loader":
    """The evaluation views of `ids` in order, on the device; may be iterated again and again.

    A batch stays as it is until the next but one is asked for.
    """
    options = val_set.options
    batches = [ids[first : first + batch] for first in range(0, len(ids), batch)]
    return Loader(val_set, batches, batch, (3, val_set.side, val_set.side), options.workers, device)


class Loader:
    """The batches of a data set, made in processes that live as long as this does, or with no `workers` in this one."""

    def __init__(
        self,
        data: Filler,
        ids: Iterable[Sequence[int]],
        batch: int,
        each: Sequence[int],
        workers: int,
        device: torch.device,
    ) -> None:
        """`each`: shape of an image's uint8 memory, at most `batch` of them together."""
        self.data, self.ids, self.shape, self.device = data, ids, (batch, *each), device
        self._filled = None
        if workers:
            ring = Ring(workers, batch, each, device)
            turns = InTurn(ids, len(ring.images))
            filled = Filled(data, ring.images)
            self._filled = FromRing(make_loader(filled, workers, batch_sampler=turns, prefetch_factor=AHEAD), ring)
        else:
            one_thread()

    def __iter__(self) -> Iterator[Any]:
        return to_device(self._here() if self._filled is None else self._filled, self.device)

    def _here(self) -> Iterator[Any]:
        # Filled in again and again, as a ring is: to ask for a batch's memory anew takes longer than to crop into it.
        slots = itertools.cycle([torch.empty(self.shape, dtype=torch.uint8) for _ in range(KEPT)])
        for ids, memory in zip(self.ids, slots, strict=False):
            yield self.data.fill_in(ids, memory[: len(ids)])


def make_loader(data: Dataset, workers: int, pin_memory: bool = False, **how: Any) -> DataLoader:
    """A DataLoader of a set that gives whole batches; `how` says in which order (sampler, batch_sampler...)."""
    if workers:
        # forkserver: forking a process that runs Ray's or torch's threads can deadlock. Its server imports once.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([APART, __name__, type(data).__module__])
        how |= {"multiprocessing_context": context, "persistent_workers": True}
    else:
        one_thread()
    pin_memory = pin_memory and pinned.is_granted()
    return DataLoader(data, num_workers=workers, pin_memory=pin_memory, collate_fn=_as_is, worker_init_fn=begin, **how)


def begin(worker: int) -> None:
    """A loader process, which ends when the job does, however that ends.

    torch's own loaders look for their parent, which here is the server that forked them, and that one waits for them.
    """
    one_thread()
    threading.Thread(target=_end_with_the_job, daemon=True, name="end with the job").start()


def _end_with_the_job() -> None:
    job = multiprocessing.parent_process()
    if job is not None:
        job.join()
        os._exit(1)


def one_thread() -> None:
    """For a process that loads."""
    cv2.setNumThreads(0)  # one process a core already; OpenCV's own threads would fight over them


def _as_is(batch: Any) -> Any:
    return batch


def empty_images(count: int, size: int) -> Tensor:
    """uint8 [count, 3, size, size], of any values."""
    return torch.empty((count, 3, size, size), dtype=torch.uint8)


def _batch(
    images: Tensor, labels: list, shifts: Any, blending: Any, position: int, samples: list[int], bad: list[str]
) -> Batch:
    return Batch(
        images=images,
        labels=torch.from_numpy(np.asarray(labels, np.int64)),
        shift=torch.from_numpy(np.asarray(shifts, np.float32)),
        blending=torch.from_numpy(np.asarray(blending, np.float32)),
        position=position,
        samples=samples,
        bad=bad,
    )
