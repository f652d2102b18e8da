"""Sources, order and augmentation put together into batches: uint8, normalised later, on the device."""

import multiprocessing
from dataclasses import dataclass, field
from typing import Any, TypedDict

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from backbone.data.augment import Draws, evaluation_view, training_view
from backbone.data.options import Data
from backbone.data.sources import Source
from backbone.data.stream import MicroBatches, Stream, mix
from backbone.errors import BadImage


class Batch(TypedDict):
    """What a loader hands over. N samples, side S."""

    images: Tensor  # uint8 [N, 3, S, S], RGB
    labels: Tensor  # int64 [N]; -1 where an evaluation image could not be read
    shift: Tensor  # float32 [N, 3], see Draws.shift
    blending: Tensor  # float32 [N, 5], see Draws.blending
    position: int  # of the first sample
    bad: list[str]  # names of images that could not be read, each with the reason


@dataclass
class TrainSet(Dataset):
    """Position -> sample. Asked for whole micro-batches at a time."""

    source: Source
    options: Data
    seed: int
    fill: tuple[int, int, int]
    stream: Stream = field(init=False)

    def __post_init__(self) -> None:
        self.stream = Stream(self.seed, len(self.source))
        self._view: Any = None

    def __getitems__(self, positions: range) -> Batch:
        if self._view is None:  # built where it is used: transforms do not travel to loader processes
            augment = self.options.augment
            self._view = training_view(augment, self.options.size, self.options.crop_pct, self.fill)
        draws = Draws(self.options.augment, self.seed)
        images, labels, shifts, bad = [], [], [], []
        for position in positions:
            epoch, sample = self.stream[position]
            image, sample = self._read(sample, bad)
            images.append(self._view(image, mix(self.seed, epoch, sample)))
            labels.append(self.source.labels[sample])
            shifts.append(draws.shift(epoch, sample))
        blending = [draws.blending(position) for position in positions]
        return _batch(images, labels, shifts, blending, positions[0], bad)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__(range(index, index + 1))

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_view": None}

    def _read(self, sample: int, bad: list[str]) -> tuple[np.ndarray, int]:
        """The image, or with on_bad skip the next readable one: still a function of the position and the data."""
        for _ in range(self.options.max_bad + 1):
            try:
                return self.source.image(sample), sample
            except BadImage as error:
                if self.options.on_bad == "stop":
                    raise BadImage(f"{error}; mend or remove it, or set data.on_bad: skip") from error
                bad.append(str(error))
                sample = (sample + 1) % len(self.source)
        raise BadImage(f"more than data.max_bad {self.options.max_bad} unreadable images in a row: {bad[-1]}")


@dataclass
class ValSet(Dataset):
    """Sample id -> evaluation view. An unreadable image keeps its place with label -1, so counts stay honest."""

    source: Source
    options: Data

    def __getitems__(self, ids: list[int]) -> Batch:
        images, labels, bad = [], [], []
        size = self.options.size
        for sample in ids:
            try:
                images.append(evaluation_view(self.source.image(sample), size, self.options.crop_pct))
                labels.append(self.source.labels[sample])
            except BadImage as error:
                if self.options.on_bad == "stop":
                    raise BadImage(f"{error}; mend or remove it, or set data.on_bad: skip") from error
                bad.append(str(error))
                images.append(np.zeros((size, size, 3), np.uint8))
                labels.append(-1)
        none = np.zeros((len(ids), 8), np.float32)
        return _batch(images, labels, none[:, :3], none[:, 3:], ids[0], bad)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])


def train_loader(train_set: TrainSet, batches: MicroBatches, pin_memory: bool = False) -> DataLoader:
    """All micro-batches of one rank to the end of the run; one set of loader processes serves every epoch."""
    return make_loader(train_set, train_set.options.workers, pin_memory, batch_sampler=batches)


def val_loader(val_set: ValSet, ids: range, batch: int, pin_memory: bool = False) -> DataLoader:
    """The evaluation views of `ids` in order; may be iterated again and again."""
    return make_loader(val_set, val_set.options.workers, pin_memory, sampler=ids, batch_size=batch)


def make_loader(data: Dataset, workers: int, pin_memory: bool, **how: Any) -> DataLoader:
    """A DataLoader of a set that gives whole batches; `how` says in which order (sampler, batch_sampler...)."""
    if workers:
        # forkserver: forking a process that runs Ray's or torch's threads can deadlock. Its server imports once.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([type(data).__module__])
        how |= {"multiprocessing_context": context, "persistent_workers": True}
    else:
        _one_thread()
    return DataLoader(
        data, num_workers=workers, pin_memory=pin_memory, collate_fn=_as_is, worker_init_fn=_one_thread, **how
    )


def _one_thread(worker: int = 0) -> None:
    cv2.setNumThreads(0)  # one process a core already; OpenCV's own threads would fight over them


def _as_is(batch: Any) -> Any:
    return batch


def _batch(images: list, labels: list, shifts: Any, blending: Any, position: int, bad: list[str]) -> Batch:
    return Batch(
        images=torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy()),
        labels=torch.from_numpy(np.asarray(labels, np.int64)),
        shift=torch.from_numpy(np.asarray(shifts, np.float32)),
        blending=torch.from_numpy(np.asarray(blending, np.float32)),
        position=position,
        bad=bad,
    )
