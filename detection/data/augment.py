"""How annotated images are varied: pure functions of image, objects and 64-bit key.

Boxes, masks and row numbers are seen here; labels and whatever else belongs to an object stay outside and are
re-indexed by the rows that come back, so that they cannot part from it.

What comes out is, to the last bit, what albumentations 2.0.8 makes of Crop, HorizontalFlip, ColorJitter and Resize with
`BboxParams("pascal_voc", clip=True, filter_invalid_bboxes=True)`, each step with a seed of its own. It is written out
here: putting together and checking such a pipeline took longer than its pixels do, and planes of masks longer still.
The only module of detection that knows albumentations, whose colour jitter it is.
"""

import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network

from backbone.data.stream import mix
from detection.data.options import DetectionAugment
from detection.data.patches import Patch

SMALLEST = 1.0  # pixels: a box narrower or lower than this, once clipped to its image, is degenerate
KEPT = 0.5  # part of every object it touches that a crop leaves, at least
AREA = (0.3, 1.0)  # of a crop, as a part of the image's
STRETCH = (3 / 4, 4 / 3)  # of a crop's aspect ratio, relative to the image's
TRIES = 20
NO_AREA = 1e-7  # square pixels: albumentations lets go of boxes below
CROP, FLIP, COLOUR, SCALE, PASTE, OTHER = range(6)  # the draws for one image


class View(NamedTuple):
    """An image as the detector sees it. K objects go in, k are left."""

    image: np.ndarray  # uint8 [h, w, 3], RGB
    boxes: np.ndarray  # float32 [k, 4], x1 y1 x2 y2 in pixels of this image; width and height above 0
    rows: np.ndarray  # int64 [k], ascending: which of the K these are
    masks: list[Patch]  # k, none of them empty; none if none were given
    dropped: int  # degenerate boxes, and objects of whose mask no pixel is left. Not: objects outside of a crop
    classes: np.ndarray | None = None  # uint8 [h, w], the label map, where one was given


def target_size(height: int, width: int, shorter: int, longer: int) -> tuple[int, int]:
    """(height, width) with the shorter side at `shorter`, or less where the longer side would be above `longer`.

    torchvision's GeneralizedRCNNTransform's rule and rounding: down, in float64, so 800 may come out as 799.
    """
    scale = min(shorter / min(height, width), longer / max(height, width))
    return max(math.floor(height * scale), 1), max(math.floor(width * scale), 1)  # torchvision fails below 1


def evaluation_view(image: np.ndarray, shorter: int, longer: int) -> np.ndarray:
    """Resize uint8 [H, W, 3] to its target size; the pixels that a training view gives without any augmentation."""
    height, width = target_size(*image.shape[:2], shorter, longer)
    return _resized(image, (height, width))


def _resized(image: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    height, width = target
    if target == image.shape[:2]:
        return image
    # torchvision's detectors do not antialias; a shrunk image is averaged here, as in every view of the backbone.
    shrinks = height < image.shape[0] or width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def training_view(options: DetectionAugment, shorter_side: tuple[int, ...], longer: int) -> Callable[..., View]:
    """A function (image uint8 [H, W, 3], boxes float64 [K, 4], masks: K or none, key) -> View; with `classes`, a label
    map uint8 [H, W], that goes along.

    In this order: crop, flip, colour, resize to one of `shorter_side`, with `longer` as the bound of the longer side;
    or with `canvas` the crop and the size that `jittered` says, boxes that it cuts drawn anew around their masks.
    """
    jitter = _colour_jitter(options.colour) if options.colour else None

    def view(
        image: np.ndarray, boxes: np.ndarray, masks: list[Patch], key: int, classes: np.ndarray | None = None
    ) -> View:
        assert not masks or len(masks) == len(boxes)
        height, width = image.shape[:2]
        boxes, rows = clip(boxes, height, width)
        degenerate = len(boxes) - len(rows)
        size = None
        if options.canvas:
            window, size = jittered(options.canvas, options.scales, height, width, mix(key, SCALE))
        else:
            window = _window(options.crop, boxes[rows], height, width, mix(key, CROP))
        if window is not None:
            # Decided here: albumentations' own rounding would leave slivers of boxes that end at the window's edge.
            rows = rows[_overlap(boxes[rows], window) > 0]
        seen = _Seen(image, _parts(boxes[rows], height, width), rows, classes)
        if window is not None:
            seen.crop(window)
        mirrored = _drawn(options.flip, mix(key, FLIP))
        seen.flip(mirrored)
        if jitter is not None:
            jitter.set_random_seed(mix(key, COLOUR))
            seen.image = jitter(image=seen.image)["image"]
            seen.settle()
        cut, shorter = seen.image.shape[:2], shorter_side[mix(key, SCALE) % len(shorter_side)]
        target = size or target_size(*cut, shorter, longer)
        seen.resize(target)
        seen.settle()
        patches = []
        for row in seen.rows if masks else ():
            patch = masks[row] if window is None else masks[row].cut(window)
            patches.append((patch.mirrored(cut[1]) if mirrored else patch).resized(cut, target))
        found = _checked(seen, len(rows), patches if masks else None, degenerate)
        if options.canvas and masks and window:
            # Half a disc fills its half of the box nowhere near: as detectron2's recipes.
            sides = boxes[found.rows, 2:] - boxes[found.rows, :2]
            for place in np.flatnonzero(_overlap(boxes[found.rows], window) < sides.prod(1)):
                found.boxes[place] = found.masks[place].around()
        return found

    return view


def _colour_jitter(strength: float) -> Any:
    import albumentations as A  # takes seconds, so nobody else pays for it

    return A.ColorJitter(brightness=strength, contrast=strength, saturation=strength, hue=0, p=1)


def _drawn(probability: float, key: int) -> bool:
    """Whether albumentations applies a step of this probability and seed."""
    return probability >= 1 or (probability > 0 and random.Random(key).random() < probability)


@dataclass
class _Seen:
    """What becomes of an image and its boxes, step by step; numbers and their order are albumentations'."""

    image: np.ndarray
    boxes: np.ndarray  # [k, 4], parts of the image's sides; float64 once they are settled
    rows: np.ndarray
    classes: np.ndarray | None

    def __post_init__(self) -> None:
        self.settle()

    def settle(self) -> None:
        """Cut boxes off at the borders, let go of those without an area: at first, after each step, and at last."""
        height, width = self.image.shape[:2]
        sides = np.array([width, height, width, height], np.float64)
        areas = (self.boxes[:, 2] - self.boxes[:, 0]) * width * ((self.boxes[:, 3] - self.boxes[:, 1]) * height)
        self.boxes = np.minimum(np.maximum(self.boxes * sides, 0), sides) / sides
        kept = areas >= NO_AREA
        if not kept.all():
            self.boxes, self.rows = self.boxes[kept], self.rows[kept]

    def crop(self, window: tuple[int, int, int, int]) -> None:
        height, width = self.image.shape[:2]
        left, top, right, bottom = window
        pixels = self.boxes.astype(np.float32) * np.array([width, height, width, height], np.float64)
        sides = np.array([right - left, bottom - top] * 2, np.float64)
        self.boxes = (pixels - np.array([left, top, left, top])) / sides
        self.image = self.image[top:bottom, left:right]
        self.classes = None if self.classes is None else self.classes[top:bottom, left:right]
        self.settle()

    def flip(self, mirrored: bool) -> None:
        if mirrored:
            self.image = cv2.flip(self.image, 1)
            self.classes = None if self.classes is None else cv2.flip(self.classes, 1)
            self.boxes[:, [0, 2]] = 1 - self.boxes[:, [2, 0]]
        self.settle()

    def resize(self, target: tuple[int, int]) -> None:
        self.image = _resized(self.image, target)
        if self.classes is not None and self.classes.shape != target:
            # The plain nearest takes the upper left pixel: half a pixel off.
            self.classes = cv2.resize(self.classes, target[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        self.settle()


def _parts(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes float64 [k, 4] in pixels as parts of the image's sides, in albumentations' rounding, float32 [k, 4]."""
    parts = boxes.astype(np.float32) / np.array([width, height, width, height], np.float64)
    return parts.astype(np.float32).clip(0, 1)


def jittered(
    canvas: int, scales: tuple[float, float], height: int, width: int, key: int
) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """Large-scale jitter (arXiv:2012.07177): the part of an image [height, width] that is seen, (left, top, right,
    bottom), and how large, (height, width), no side above `canvas`.

    As detectron2's ResizeScale and FixedSizeCrop, but for the order: what is cut out first need not be resized. So the
    part is of whole pixels, and its scale that of the image to within one of them.
    """
    draws = np.random.Generator(np.random.Philox(key=key)).random
    factor = scales[0] + draws() * (scales[1] - scales[0])
    scale = min(canvas / height, canvas / width) * factor
    whole = height, width
    seen = [min(max(round(side * scale), 1), canvas) for side in whole]
    part = [min(max(round(shown / scale), 1), side) for shown, side in zip(seen, whole, strict=True)]
    top, left = (int(draws() * (side - cut + 1)) for side, cut in zip(whole, part, strict=True))
    return (left, top, left + part[1], top + part[0]), (seen[0], seen[1])


def clip(boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [K, 4] clipped to the image, float64 [K, 4], and the rows of those that are not degenerate, int64 [k]."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    boxes = np.clip(boxes, 0, [width, height, width, height])
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes, np.flatnonzero((sides >= SMALLEST).all(1))  # NaN is not


def _checked(seen: _Seen, given: int, masks: list[Patch] | None, degenerate: int) -> View:
    """What is seen as a View, after a last look: nothing in it is empty.

    Args:
        seen: with k boxes.
        given: how many there were at first.
        masks: k, or None where there are none.
        degenerate: how many were let go before.
    """
    height, width = seen.image.shape[:2]
    boxes = (seen.boxes * np.array([width, height, width, height], np.float64)).astype(np.float32)
    sound = (boxes[:, 2:] > boxes[:, :2]).all(1)
    if masks is not None:
        sound &= np.array([mask.pixels.any() for mask in masks], bool)
    kept = np.flatnonzero(sound)
    left = [] if masks is None else [masks[place] for place in kept]
    return View(seen.image, boxes[kept], seen.rows[kept], left, degenerate + given - len(kept), seen.classes)


def _window(
    probability: float, boxes: np.ndarray, height: int, width: int, key: int
) -> tuple[int, int, int, int] | None:
    """A crop (left, top, right, bottom) that leaves KEPT of every box it touches; None: no crop, or none was found.

    Drawn here, as albumentations has none like it: BBoxSafeRandomCrop holds all boxes, AtLeastOneBBoxRandomCrop one,
    and the others cut as they please.
    """
    draws = np.random.Generator(np.random.Philox(key=key)).random
    if draws() >= probability:
        return None
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for _ in range(TRIES):
        area, shape, x, y = draws(4)
        side = math.sqrt(AREA[0] + area * (AREA[1] - AREA[0]))
        stretch = math.sqrt(STRETCH[0] * (STRETCH[1] / STRETCH[0]) ** shape)
        w = min(max(round(width * side * stretch), 1), width)
        h = min(max(round(height * side / stretch), 1), height)
        left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
        window = (left, top, left + w, top + h)
        inside = _overlap(boxes, window)
        if ((inside == 0) | (inside >= KEPT * areas)).all():
            return window
    return None


def _overlap(boxes: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """Area that each box [K, 4] shares with the window, float64 [K]."""
    sides = np.minimum(boxes[:, 2:], window[2:]) - np.maximum(boxes[:, :2], window[:2])
    return sides.clip(0).prod(1)
