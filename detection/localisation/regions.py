"""Proposals of a per-class proposal network, and what the R-CNN step sees of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou, nms

from backbone.data.augment import TrainingView, to_planes
from backbone.data.batches import TrainSet
from backbone.data.stream import mix
from detection.localisation.judge import Views, into_files, normal_parts
from detection.localisation.net import Localiser, decode
from detection.localisation.recipe import RegionOptions
from detection.localisation.sources import LocatedSource

CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))  # Fast R-CNN's normalisation of what is regressed
DRAW, MIRROR = 11, 12  # what a view's key is mixed with
SMALLEST = 1.0  # pixels: what is narrower shows nothing
PRE_NMS = 5  # of each view so many times `proposals` at most go into NMS

Colour = tuple[int, int, int]


@torch.no_grad()
def propose(localiser: Localiser, asked: Tensor, views: Views, options: RegionOptions) -> list[list[np.ndarray]]:
    """The highest scored proposals of the classes `asked` of each image, over all of its views.

    Arguments as of `judge.boxes_of`, and `options`: how many, and their `nms`.

    Returns:
        [N][J] float64 [P, 4], pixels of the file, the best first; P is 1 or more for images with a view, else 0.
    """
    scores: list[list[Tensor]] = [[] for _ in views.sides]
    boxes: list[list[Tensor]] = [[] for _ in views.sides]
    for rows, normal in normal_parts(views, asked.device):
        logits, deltas = localiser(normal, asked[rows.to(asked.device)])
        height, width = (int(side) for side in normal.shape[-2:])
        found = decode(deltas, localiser.anchors(height, width))
        found = torch.minimum(found.clamp(min=0), found.new_tensor([width, height] * 2))
        wide = (found[..., 2:] - found[..., :2] >= SMALLEST).all(-1)
        value, at = logits.masked_fill(~wide, -torch.inf).topk(min(PRE_NMS * options.proposals, logits.shape[2]))
        found = found.gather(2, at[..., None].expand(-1, -1, -1, 4)).double().cpu()
        moved = into_files(found.flatten(1, 2).numpy(), (height, width), views.sides[rows.numpy()], views.view)
        for row, some, mine in zip(rows.tolist(), value.cpu(), torch.from_numpy(moved), strict=True):
            scores[row].append(some)
            boxes[row].append(mine.view(found.shape[1:]))
    count = asked.shape[1]
    return [
        [_best(torch.cat([s[j] for s in some]), torch.cat([b[j] for b in mine]), options) for j in range(count)]
        if some
        else [np.zeros((0, 4))] * count
        for some, mine in zip(scores, boxes, strict=True)
    ]


def _best(scores: Tensor, boxes: Tensor, options: RegionOptions) -> np.ndarray:
    order = scores.argsort(descending=True, stable=True)
    sound = order[scores[order] > -torch.inf]
    order = sound if len(sound) else order[:1]
    boxes, scores = boxes[order], scores[order]
    if options.nms < 1:
        boxes = boxes[nms(boxes, scores.double(), options.nms)]
    return boxes[: options.proposals].numpy()


def warp(image: np.ndarray, box: np.ndarray, size: int, padding: int, colour: Colour) -> np.ndarray:
    """What lies in a box, stretched to a square, uint8 [size, size, 3].

    Args:
        image: uint8 [H, W, 3].
        box: float64 [4], x1 y1 x2 y2 in its pixels.
        size: of the square.
        padding: pixels of the square on each side that show what is around the box.
        colour: of what is beyond the image.
    """
    whole = surroundings(box, size, padding)
    x1, y1 = np.floor(whole[:2]).astype(int).tolist()
    x2, y2 = np.ceil(whole[2:]).astype(int).tolist()
    height, width = image.shape[:2]
    part = np.empty((y2 - y1, x2 - x1, 3), np.uint8)
    part[:] = colour
    top, left, bottom, right = max(y1, 0), max(x1, 0), min(y2, height), min(x2, width)
    if bottom > top and right > left:
        part[top - y1 : bottom - y1, left - x1 : right - x1] = image[top:bottom, left:right]
    a, b, c, d = (whole - [x1, y1, x1, y1]).tolist()
    inside = (max(a, 0.0), max(b, 0.0), min(c, float(x2 - x1)), min(d, float(y2 - y1)))
    return np.asarray(Image.fromarray(part).resize((size, size), Image.Resampling.BILINEAR, box=inside))


def surroundings(box: np.ndarray, size: int, padding: int) -> np.ndarray:
    """The box that fills the whole square where `box` leaves `padding` pixels of it free on each side; sides of a pixel
    at least."""
    middle = (box[:2] + box[2:]) / 2
    half = np.maximum(box[2:] - box[:2], SMALLEST) / 2 * (size / (size - 2 * padding))
    return np.concatenate([middle - half, middle + half])


class Boxes:
    """Proposals of N images as a folder of memory-mapped arrays, which is pickled as its path: `boxes` float32 [M, 4]
    and `starts` int64 [N + 1]."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._boxes, self._starts = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("boxes", "starts"))

    def __reduce__(self) -> tuple[Any, ...]:
        return Boxes, (self._folder,)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def of(self, i: int) -> np.ndarray:
        """Of image i: float64 [P, 4], the best first; P is 0 where the image could not be read."""
        return self._boxes[self._starts[i] : self._starts[i + 1]].astype(np.float64)


class Drawn(NamedTuple):
    """What is seen of a training image, and what is to be said of it."""

    box: np.ndarray  # float64 [4], pixels of the file
    positive: bool
    deltas: np.ndarray  # float32 [4], from the box as it is seen to its object; 0 of negatives
    mirrored: bool


def draw(proposals: np.ndarray, truth: np.ndarray, key: int, options: RegionOptions) -> Drawn:
    """One of an image's proposals, float64 [P, 4], its objects being `truth` [K, 4]: a function of the view's key.

    A positive one with probability `positive`, where the image has both kinds.
    """
    iou = box_iou(torch.from_numpy(proposals), torch.from_numpy(truth)).numpy()
    is_positive = iou.max(1) >= options.fg_iou
    dice = Random(mix(key, DRAW))
    wanted = dice.random() < options.positive
    some = np.flatnonzero(is_positive == wanted)
    some = some if len(some) else np.arange(len(proposals))
    row = int(some[dice.randrange(len(some))])
    box, positive = proposals[row], bool(is_positive[row])
    mirrored = Random(mix(key, MIRROR)).random() < 0.5
    deltas = np.zeros(4, np.float32)
    if positive:
        target = torch.from_numpy(truth[iou[row].argmax()][None])
        deltas = CODER.encode_single(target, torch.from_numpy(box[None]))[0].float().numpy()
        deltas = deltas * np.array([-1 if mirrored else 1, 1, 1, 1], np.float32)
    return Drawn(box, positive, deltas, mirrored)


@dataclass(kw_only=True)
class RegionSet(TrainSet):
    """Positions -> warped proposals, each of another image: RoI-centric, as R-CNN."""

    source: LocatedSource  # ty: ignore[incompatible-mutable-override]
    boxes: Boxes
    regions: RegionOptions

    def drawn(self, epoch: int, sample: int) -> Drawn:
        """What is seen of a training image in an epoch."""
        height, width = self.source.sides[sample].tolist()
        proposals = self.boxes.of(sample)
        if not len(proposals):  # it could not be read when they were made
            proposals = np.array([[0.0, 0, width, height]])
        return draw(proposals, self.source.boxes(sample), mix(self.seed, epoch, sample), self.regions)

    @cached_property
    def padding(self) -> int:
        """Pixels of the net's input."""
        return self.regions.padding * self.options.size // 224

    def _look(self, view: TrainingView, epoch: int, sample: int, planes: np.ndarray, on_host: bool) -> None:
        one = self.drawn(epoch, sample)
        seen = warp(self.source.image(sample), one.box, view.size, self.padding, self.fill)
        to_planes(np.ascontiguousarray(seen[:, ::-1]) if one.mirrored else seen, planes)

    def located(self, samples: Sequence[int], position: int) -> dict[str, Tensor]:
        """`positive` bool [N] and `deltas` float32 [N, 4] of training images of these numbers, the first of which is at
        `position` of the stream."""
        every = [self.drawn((position + k) // len(self.source), sample) for k, sample in enumerate(samples)]
        return {
            "positive": torch.tensor([one.positive for one in every]),
            "deltas": torch.from_numpy(np.stack([one.deltas for one in every])),
        }
