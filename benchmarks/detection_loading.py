"""From a COCO data set to batches that a detector takes: our loader against torchvision's reference.

One thread does all of it, and its processor time counts, which others on the machine do not take. Both flip half of
the images and resize to a shorter side of 800 (longer at most 1,333), boxes and masks with them. The reference is that
of pytorch/vision, references/detection, written anew: CocoDetection, polygons and run-lengths to masks by pycocotools,
flip, conversion; and what its detectors do before the net (GeneralizedRCNNTransform: normalise, resize, pad). Ours is
the training loader, which resizes and pads bytes, and what is done with them on the device (normalise, make planes of
masks). `loaders` compares what processes of loaders do, where the reference does not resize yet; `all` what is done
until the net can begin. In turns over the same images in the same pairs; a ratio is of neighbouring turns.
`handed over` is the same with one loader process, which gives batches to this one: the processor time of both.
`spent` says where our time goes: each part alone, over the same images, the fastest of the turns.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from pycocotools import mask as coco_mask
from results import parser, spread, write
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import CocoDetection
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.v2 import functional as F

from backbone.data.stream import MicroBatches
from backbone.inputs import IMAGENET_MEAN, IMAGENET_STD, InputConvention
from detection.data.augment import training_view
from detection.data.loader import TrainSet, joined, pad, planes, targets, train_loader
from detection.data.options import CocoData, DetectionAugment
from detection.data.patches import patched
from detection.data.sources import open_sources
from detection.forward import prepared

SHORTER, LONGER, BATCH = 800, 1333, 2
STARTING = 3  # batches


class Reference(CocoDetection):
    """The reference's data set: an image, float [3, H, W] of 0..1, and its objects in its own pixels."""

    def __init__(self, images: Path, annotations: Path, masks: bool) -> None:
        with contextlib.redirect_stdout(None):
            super().__init__(images, str(annotations))
        self.masks = masks
        self.ids = [one for one in self.ids if self.coco.getAnnIds(one, iscrowd=False)]

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, objects = super().__getitem__(index)
        width, height = image.size
        objects = [one for one in objects if not one["iscrowd"]]
        boxes = torch.as_tensor([one["bbox"] for one in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2].clamp_(min=0, max=width)
        boxes[:, 1::2].clamp_(min=0, max=height)
        target = {"boxes": boxes, "labels": torch.tensor([one["category_id"] for one in objects])}
        if self.masks:
            every = [self._mask(one["segmentation"], height, width) for one in objects]
            target["masks"] = torch.stack(every) if every else torch.zeros(0, height, width, dtype=torch.uint8)
        sound = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
        target = {name: values[sound] for name, values in target.items()}
        tensor = F.pil_to_tensor(image)
        if torch.rand(1) < 0.5:
            tensor = F.horizontal_flip(tensor)
            target["boxes"][:, [0, 2]] = width - target["boxes"][:, [2, 0]]
            if self.masks:
                target["masks"] = target["masks"].flip(-1)
        return F.to_dtype(tensor, scale=True), target

    @staticmethod
    def _mask(polygons: list[list[float]], height: int, width: int) -> Tensor:
        mask = torch.as_tensor(coco_mask.decode(coco_mask.frPyObjects(polygons, height, width)), dtype=torch.uint8)
        return mask.any(dim=2) if mask.dim() == 3 else mask


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--images", type=Path, required=True, help="folder of images, annotations where COCO has them")
    words.add_argument("--cache", type=Path, default=Path("cache"), help="folder for the annotations as arrays")
    words.add_argument("--turns", type=int, default=5)
    words.add_argument("--most", type=int, default=160, help="images a turn")
    given = words.parse_args()
    torch.set_num_threads(1)
    rows = [row(given, masks) for masks in (False, True)]
    write(given.output, rows, images=str(given.images.name), batch=BATCH, sides=[SHORTER, LONGER])


def row(given: Any, masks: bool) -> dict[str, Any]:
    """Milliseconds of a core an image, and ratios, medians of turns."""
    train = training_set(given, masks)
    count = min(given.most, len(train.source)) // BATCH * BATCH
    ways = {"torchvision": theirs(given, train, count), "ours": ours(train, count)}
    apart = {"torchvision": theirs(given, train, count, 1), "ours": ours(train, count, 1)}
    spent: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    for turn in range(given.turns + 1):  # the first reads files and plans for the first time
        for name, run in ways.items():
            loading, every = run()
            _, handed = apart[name]()
            if turn:
                spent[name].append((loading, every, handed))
    shown: dict[str, Any] = {"objects": "boxes and masks" if masks else "boxes", "images": count}
    for i, part in enumerate(("loaders", "all", "handed over")):
        mine, other = ([one[i] for one in spent[name]] for name in ("ours", "torchvision"))
        ratio, low, high = spread([b / a for a, b in zip(mine, other, strict=True)])
        shown[f"{part}: torchvision, ms"] = round(statistics.median(other), 2)
        shown[f"{part}: ours, ms"] = round(statistics.median(mine), 2)
        shown[f"{part}: times as fast"] = f"{ratio:.2f} ({low:.2f} to {high:.2f})"
    return shown | {"spent, ms": parts(train, count, given.turns)}


def training_set(given: Any, masks: bool) -> TrainSet:
    """Ours, the cache of annotations being there."""
    data = CocoData(
        train=str(given.images),
        val=str(given.images),
        cache=str(given.cache),
        shorter_side=(SHORTER,),
        longer_side=LONGER,
        keep_empty=False,
        workers=0,
        augment=DetectionAugment(flip=0.5),
    )
    return TrainSet(open_sources(data)[0], data, 0, BATCH, BATCH, masks)


def parts(train: TrainSet, count: int, turns: int) -> dict[str, float]:
    """Milliseconds of a core an image of each thing that ours does, one after the other."""
    source, inputs = train.source, InputConvention(size=SHORTER)
    view = training_view(train.data.augment, train.data.shorter_side, train.data.longer_side)
    pairs = [range(begin, begin + BATCH) for begin in range(0, count, BATCH)]
    fastest: dict[str, float] = {}
    for _ in range(turns):
        spent = dict.fromkeys(("decode", "objects", "flip and resize", "pad", "normalise", "planes of masks"), 0.0)
        for pair in pairs:
            clock = [time.process_time()]
            images = [source.image(train.stream[p][1]) for p in pair]
            clock.append(time.process_time())
            objects = [
                patched(source, train.stream[p][1]) if train.masks else (source.objects(train.stream[p][1]), [])
                for p in pair
            ]
            clock.append(time.process_time())
            views = [
                view(image, boxes.boxes, masks, p)
                for p, image, (boxes, masks) in zip(pair, images, objects, strict=True)
            ]
            clock.append(time.process_time())
            padded, sizes = pad([one.image for one in views])
            clock.append(time.process_time())
            ready = prepared(inputs, {"images": padded, "sizes": sizes})
            clock.append(time.process_time())
            del ready
            if train.masks:
                planes(joined([mask for one in views for mask in one.masks]), padded)
            clock.append(time.process_time())
            for name, (began, ended) in zip(spent, pairwise(clock), strict=True):
                spent[name] += 1000 * (ended - began) / count
        fastest = {name: min(value, fastest.get(name, value)) for name, value in spent.items()}
    return {name: round(value, 2) for name, value in fastest.items()}


def timed(batches: Iterator[Any], then: Callable[[Any], Any], images: int) -> tuple[float, float]:
    """Milliseconds of a core an image, in this process and its loader processes: of the batches alone, and with what is
    done with them. What was done for the first batches, while processes started, is not counted."""
    loading = doing = 0.0
    for _ in range(STARTING):
        then(next(batches))
    images -= STARTING * BATCH
    loaders = psutil.Process().children(recursive=True)

    def clock() -> float:
        return time.process_time() + sum(sum(one.cpu_times()[:2]) for one in loaders)

    for _ in range(images // BATCH):  # not to the end, at which loader processes go
        began = clock()
        batch = next(batches)
        loaded = clock()
        then(batch)
        loading += loaded - began
        doing += clock() - loaded
    return 1000 * loading / images, 1000 * (loading + doing) / images


def theirs(given: Any, train: TrainSet, count: int, workers: int = 0) -> Callable[[], tuple[float, float]]:
    """A turn of the reference, over the images of ours in their pairs."""
    annotations = given.images.parent / "annotations" / f"instances_{given.images.name}.json"
    data = Reference(given.images, annotations, train.masks)
    transform = GeneralizedRCNNTransform(SHORTER, LONGER, list(IMAGENET_MEAN), list(IMAGENET_STD)).train()
    data.ids = [int(train.source.image_ids[train.stream[position][1]]) for position in range(count)]
    pairs = [[*range(begin, begin + BATCH)] for begin in range(0, count, BATCH)]

    def run() -> tuple[float, float]:
        loader = DataLoader(data, batch_sampler=pairs, num_workers=workers, collate_fn=side_by_side)
        return timed(iter(loader), lambda batch: transform(*batch), count)

    return run


def side_by_side(batch: Any) -> list[list[Any]]:
    """The reference's batches: images, and targets."""
    return [list(part) for part in zip(*batch, strict=True)]


def ours(train: TrainSet, count: int, workers: int = 0) -> Callable[[], tuple[float, float]]:
    """A turn of ours."""
    inputs = InputConvention(size=SHORTER)
    train = replace(train, data=train.data.model_copy(update={"workers": workers}))

    def run() -> tuple[float, float]:
        batches = iter(train_loader(train, MicroBatches(BATCH, BATCH, 0, 1, 0, count // BATCH)))
        return timed(batches, lambda batch: (prepared(inputs, batch), targets(batch)), count)

    return run


if __name__ == "__main__":
    main()
