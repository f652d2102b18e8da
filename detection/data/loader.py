"""Sources, order and augmentation put together into batches: uint8, padded, normalised later, on the device.

Images are padded with zeros here, before they are normalised. Who normalises must then set the padding (what is right
of and below `sizes`) to zero again, or a net sees a dark border where torchvision's detectors show it the mean colour.

Objects are flat: those of image 0, then those of image 1; `counts` says where to cut, `targets` cuts. Masks travel as
patches, a tenth of the bytes of their planes, which `targets` makes where the batch is by then.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from backbone.data.ahead import read_ahead
from backbone.data.augment import to_planes
from backbone.data.batches import CPU, Loader, make_loader
from backbone.data.slots import shared, within
from backbone.data.stream import MicroBatches, mix
from backbone.errors import BadImage
from detection.data.augment import OTHER, PASTE, View, evaluation_view, training_view
from detection.data.contract import DetectionSource
from detection.data.label_map import IGNORED
from detection.data.options import DetectionData
from detection.data.paste import Scene, paste
from detection.data.patches import Patch, patched
from detection.data.stream import DetectionStream

MANY = 4  # batches a step, from which on those of like shape are apart
DIVISOR = 32  # of padded sides: the coarsest stride of a backbone


class Patches(TypedDict):
    """Masks of a batch, M or, not asked for, none."""

    patches: list[tuple[int, int, int, int]]  # top, left, height, width of each; on the host
    pixels: Tensor  # uint8, 0 or 1: of all, one after the other, row by row


class Batch(Patches):
    """A micro-batch. N images, M objects in all, padded sides H, W."""

    images: Tensor  # uint8 [N, 3, H, W], RGB, zeros right of and below the image
    sizes: Tensor  # int64 [N, 2], height and width without the padding
    sides: list[tuple[int, int]]  # the same, to stay on the host: to read them on a GPU is to wait for it
    boxes: Tensor  # float32 [M, 4], x1 y1 x2 y2 in pixels of the padded image
    labels: Tensor  # int64 [M], 1..number of categories
    counts: list[int]  # objects of each image, N of them; they sum to M. On the host likewise
    position: int  # of the first sample
    bad: list[str]  # names of images that could not be read, each with the reason
    dropped: int  # see View.dropped


class SemanticBatch(TypedDict):
    """A micro-batch of kind semantic; what it shares with `Batch` is as there."""

    images: Tensor
    sizes: Tensor
    sides: list[tuple[int, int]]
    classes: Tensor  # uint8 [N, H, W], 0 background, 255 ignored, as the padding is
    position: int
    bad: list[str]
    dropped: int  # 0: a label map loses nothing


class EvalBatch(TypedDict):
    """Images to be judged, in order."""

    images: Tensor  # uint8 [N, 3, H, W], as in Batch
    sizes: Tensor  # int64 [N, 2], likewise
    originals: Tensor  # int64 [N, 2], height and width of the files: detections are scaled by originals / sizes
    readable: Tensor  # bool [N]; an unreadable image is black, and gets no detections whatever the net says
    indices: list[int]  # into the source
    bad: list[str]  # names of the unreadable ones, each with the reason


@dataclass
class TrainSet:
    """Position -> sample, an index into the source. A `Filler`: asked for whole micro-batches at a time.

    Args:
        source: annotated images.
        data: how they are chosen, varied and sized.
        seed: of the run.
        batch: samples a step.
        micro_batch: samples of like shape that go through the net together.
        masks: whether to give masks. They are large, so only for who trains on them.
        fill: colour of what is beyond an image that another one, pasted on it, reaches further than.
    """

    source: DetectionSource
    data: DetectionData
    seed: int
    batch: int
    micro_batch: int
    masks: bool
    fill: tuple[int, int, int] = (0, 0, 0)
    stream: DetectionStream = field(init=False)

    def __post_init__(self) -> None:
        sizes = self.source.sizes
        self.stream = DetectionStream(self.seed, self.batch, self.micro_batch, sizes[:, 1] / sizes[:, 0])
        self._view: Any = None

    def fill_in(self, positions: Sequence[int], memory: Tensor) -> Batch:
        """The micro-batch of consecutive positions, its images as `pad` puts them into `memory`."""
        views: list[Scene] = []
        bad: list[str] = []
        dropped = 0
        for image, sample, key in self._images(positions, bad):
            view, lost = self._seen(image, sample, key)
            if self.data.augment.paste:
                view, lost = self._pasted(view, lost, key, bad)
            views.append(view)
            dropped += lost
        images, sizes = pad([view.image for view in views], memory)
        masks = [mask for view in views for mask in view.masks if self.masks]
        return Batch(
            images=images,
            sizes=sizes,
            sides=[view.image.shape[:2] for view in views],
            boxes=torch.from_numpy(np.concatenate([view.boxes for view in views])),
            labels=torch.from_numpy(np.concatenate([view.labels for view in views]).astype(np.int64)),
            counts=[len(view.labels) for view in views],
            **joined(masks),
            position=positions[0],
            bad=bad,
            dropped=dropped,
        )

    def make(self, positions: Sequence[int]) -> Any:
        """`fill_in` with memory of its own."""
        return self.fill_in(positions, torch.empty((len(positions), self.room), dtype=torch.uint8))

    @property
    def room(self) -> int:
        """Bytes of an image in its batch. Upright and wide ones are seldom together where a step has several batches.

        Batches in which they are, or that copy-paste made larger, have memory of their own.
        """
        canvas = self.data.augment.canvas
        shorter, longer = (canvas, canvas) if canvas else (max(self.data.shorter_side), self.data.longer_side)
        if self.batch < MANY * self.micro_batch:
            shorter = longer
        return 3 * padded(min(shorter, longer)) * padded(longer)

    def _images(self, positions: Sequence[int], bad: list[str]) -> Iterator[tuple[np.ndarray, int, int]]:
        """Images in order, which each is, and the key by which it is varied."""
        if self._view is None:  # built where it is used: transforms do not travel to loader processes
            self._view = training_view(self.data.augment, self.data.shorter_side, self.data.longer_side)
        places = [self.stream[position] for position in positions]
        read_ahead(self.source, (sample for _, sample in places))
        for epoch, sample in places:
            image, read = self._read(sample, bad)
            yield image, read, mix(self.seed, epoch, read)

    def _seen(self, image: np.ndarray, sample: int, key: int) -> tuple[Scene, int]:
        """A training image as it is varied, and `View.dropped`; with masks where they are given or pasted by."""
        with_masks = self.masks or self.data.augment.paste > 0
        objects, masks = patched(self.source, sample) if with_masks else (self.source.objects(sample), [])
        view = self._view(image, objects.boxes, masks, key)
        return Scene(view.image, view.boxes, objects.labels[view.rows], view.masks), view.dropped

    def _pasted(self, view: Scene, lost: int, key: int, bad: list[str]) -> tuple[Scene, int]:
        """With objects of another training image in front, if that is drawn; a function of the view's key."""
        draws = np.random.Generator(np.random.Philox(key=mix(key, PASTE)))
        if draws.random() >= self.data.augment.paste:
            return view, lost
        image, other = self._read(int(draws.integers(len(self.source))), bad)
        over, more = self._seen(image, other, mix(key, OTHER))
        return paste(view, over, draws.random(len(over.labels)) < 0.5, self.fill), lost + more

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_view": None}

    def _read(self, sample: int, bad: list[str]) -> tuple[np.ndarray, int]:
        """The image, or with on_bad skip the next readable one: still a function of the position and the data."""
        for _ in range(self.data.max_bad + 1):
            try:
                return self.source.image(sample), sample
            except BadImage as error:
                if self.data.on_bad == "stop":
                    raise BadImage(f"{error}; mend or remove it, or set data.on_bad: skip") from error
                bad.append(str(error))
                sample = (sample + 1) % len(self.source)
        raise BadImage(f"more than data.max_bad {self.data.max_bad} unreadable images in a row: {bad[-1]}")


@dataclass
class SemanticTrainSet(TrainSet):
    """`TrainSet` with label maps in place of objects."""

    def fill_in(self, positions: Sequence[int], memory: Tensor) -> SemanticBatch:  # ty: ignore[incompatible-method-override]
        """`TrainSet.fill_in`."""
        views: list[View] = []
        bad: list[str] = []
        for image, sample, key in self._images(positions, bad):
            classes = self.source.label_map(sample)
            views.append(self._view(image, np.zeros((0, 4)), [], key, classes=classes))
        images, sizes = pad([view.image for view in views], memory)
        classes = np.full((len(views), *images.shape[-2:]), IGNORED, np.uint8)
        for view, place in zip(views, classes, strict=True):
            place[: view.image.shape[0], : view.image.shape[1]] = view.classes
        return SemanticBatch(
            images=images,
            sizes=sizes,
            sides=[view.image.shape[:2] for view in views],
            classes=torch.from_numpy(classes),
            position=positions[0],
            bad=bad,
            dropped=0,
        )


@dataclass
class EvalSet(Dataset):
    """Index into the source -> evaluation view. An unreadable image keeps its place, so counts stay honest."""

    source: DetectionSource
    data: DetectionData

    def __getitems__(self, indices: list[int]) -> EvalBatch:
        shorter, longer = self.data.shorter_side[-1], self.data.longer_side
        originals = self.source.sizes[indices]
        images, readable, bad = [], [], []
        read_ahead(self.source, indices)
        for index, (height, width) in zip(indices, originals.tolist(), strict=True):
            try:
                image = self.source.image(index)
                readable.append(True)
            except BadImage as error:
                if self.data.on_bad == "stop":
                    raise BadImage(f"{error}; mend or remove it, or set data.on_bad: skip") from error
                bad.append(str(error))
                image = np.zeros((height, width, 3), np.uint8)
                readable.append(False)
            images.append(evaluation_view(image, shorter, longer))
        together, sizes = pad(images)
        return EvalBatch(
            images=together,
            sizes=sizes,
            originals=torch.from_numpy(originals.astype(np.int64)),
            readable=torch.tensor(readable),
            indices=list(indices),
            bad=bad,
        )


def train_loader(train_set: TrainSet, micro_batches: MicroBatches, device: torch.device = CPU) -> Loader:
    """All micro-batches of one rank to the end of the run, on the device, by one set of loader processes.

    A batch stays as it is until the next but one is asked for. Its sizes are the train set's, or like shapes would come
    together within others than are trained.
    """
    assert (micro_batches.batch, micro_batches.micro_batch) == (train_set.batch, train_set.micro_batch)
    room = (train_set.room,)
    return Loader(train_set, micro_batches, train_set.micro_batch, room, train_set.data.workers, device)


def eval_loader(eval_set: EvalSet, indices: range, batch: int, pin_memory: bool = False) -> DataLoader:
    """The evaluation views of `indices` in order; may be iterated again and again."""
    return make_loader(eval_set, eval_set.data.workers, pin_memory, sampler=indices, batch_size=batch)


def targets(batch: Batch) -> list[dict[str, Tensor]]:
    """The objects of each image as torchvision's detectors want them; boxes and labels are views into the batch.

    Returns:
        N dicts of boxes float32 [K, 4], labels int64 [K] and, where the batch holds masks or no object at all, masks
        uint8 [K, H, W] with the padded sides; K may be 0.
    """
    counts = batch["counts"]
    parts = {"boxes": batch["boxes"].split(counts), "labels": batch["labels"].split(counts)}
    if len(batch["patches"]) == len(batch["boxes"]):
        parts["masks"] = planes(batch, batch["images"]).split(counts)
    return [{name: part[i] for name, part in parts.items()} for i in range(len(counts))]


def joined(masks: list[Patch]) -> Patches:
    """Masks, none of them empty, as they travel."""
    patches = [(one.top, one.left, *one.pixels.shape) for one in masks]
    if not masks:
        return Patches(patches=[], pixels=torch.zeros(0, dtype=torch.uint8))
    pixels = _empty((sum(one.pixels.size for one in masks),))
    np.concatenate([one.pixels.ravel() for one in masks], out=pixels.numpy())
    return Patches(patches=patches, pixels=pixels)


def planes(masks: Patches, images: Tensor) -> Tensor:
    """The masks of a batch, uint8 [M, H, W], 0 or 1, padded as its images [N, 3, H, W] are, on their device."""
    pixels, shape = masks["pixels"], (len(masks["patches"]), *images.shape[-2:])
    # numpy's zeros come from the system, which clears only what is touched; torch's are all written.
    made = torch.from_numpy(np.zeros(shape, np.uint8)) if pixels.device.type == "cpu" else pixels.new_zeros(shape)
    parts = pixels.split([height * width for _, _, height, width in masks["patches"]])
    for plane, part, (top, left, height, width) in zip(made.unbind(), parts, masks["patches"], strict=True):
        plane[top : top + height, left : left + width] = part.view(height, width)
    return made


def padded(side: int) -> int:
    """A multiple of `DIVISOR`, no less."""
    return -(-side // DIVISOR) * DIVISOR


def pad(images: list[np.ndarray], memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Images uint8 [h, w, 3] as one uint8 [N, 3, H, W] with zeros right and below, and their sizes int64 [N, 2].

    They lie in `memory`, uint8, if that is given and large enough.
    """
    sizes = np.array([image.shape[:2] for image in images], np.int64)
    shape = (len(images), 3, *map(padded, sizes.max(0).tolist()))
    fits = memory is not None and math.prod(shape) <= memory.numel()
    together = within(memory, shape) if fits else _empty(shape)
    for image, place in zip(images, together.numpy(), strict=True):
        h, w = image.shape[:2]
        to_planes(image, place[:, :h, :w])
        place[:, h:], place[:, :h, w:] = 0, 0
    return together, torch.from_numpy(sizes)


def _empty(shape: tuple[int, ...]) -> Tensor:
    """uint8, any values; in a loader process in shared memory, in which it travels: else it would be copied there."""
    process = get_worker_info()
    return torch.empty(shape, dtype=torch.uint8) if process is None else shared(torch.Size(shape), process.num_workers)
