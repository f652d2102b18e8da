"""How annotated images are varied: pure functions of image, objects and 64-bit key.

The only module of detection that knows albumentations. It sees boxes, masks and row numbers; labels and whatever else
belongs to an object stay outside and are re-indexed by the rows that come back, so that they cannot part from it.
"""

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network

from backbone.data.stream import mix
from detection.data.options import DetectionAugment

SMALLEST = 1.0  # pixels: a box narrower or lower than this, once clipped to its image, is degenerate
KEPT = 0.5  # part of every object it touches that a crop leaves, at least
AREA = (0.3, 1.0)  # of a crop, as a part of the image's
STRETCH = (3 / 4, 4 / 3)  # of a crop's aspect ratio, relative to the image's
TRIES = 20
CROP, FLIP, COLOUR, SCALE, PASTE, OTHER = range(6)  # the draws for one image


class View(NamedTuple):
    """An image as the detector sees it. K objects go in, k are left."""

    image: np.ndarray  # uint8 [h, w, 3], RGB
    boxes: np.ndarray  # float32 [k, 4], x1 y1 x2 y2 in pixels of this image; width and height above 0
    rows: np.ndarray  # int64 [k], ascending: which of the K these are
    masks: list[np.ndarray]  # k arrays uint8 [h, w], none of them empty; no arrays if none were given
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
    if (height, width) == image.shape[:2]:
        return image
    # torchvision's detectors do not antialias; a shrunk image is averaged here, as in every view of the backbone.
    shrinks = height < image.shape[0] or width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def training_view(options: DetectionAugment, shorter_side: tuple[int, ...], longer: int) -> Callable[..., View]:
    """A function (image uint8 [H, W, 3], boxes float64 [K, 4], masks K times uint8 [H, W] or [], key) -> View; with
    `classes`, a label map uint8 [H, W], that goes along.

    In this order: crop, flip, colour, resize to one of `shorter_side`, with `longer` as the bound of the longer side;
    or with `canvas` the crop and the size that `jittered` says, boxes that it cuts drawn anew around their masks.
    """
    import albumentations as A  # takes seconds, so nobody else pays for it

    def view(
        image: np.ndarray, boxes: np.ndarray, masks: list[np.ndarray], key: int, classes: np.ndarray | None = None
    ) -> View:
        assert not masks or len(masks) == len(boxes)
        height, width = image.shape[:2]
        boxes, rows = clip(boxes, height, width)
        degenerate = len(boxes) - len(rows)
        steps: dict[int, Any] = {}
        size = None
        if options.canvas:
            window, size = jittered(options.canvas, options.scales, height, width, mix(key, SCALE))
        else:
            window = _window(options.crop, boxes[rows], height, width, mix(key, CROP))
        if window is not None:
            left, top, right, bottom = window
            steps[CROP] = A.Crop(left, top, right, bottom)
            # Decided here: albumentations' own rounding would leave slivers of boxes that end at the window's edge.
            rows = rows[_overlap(boxes[rows], window) > 0]
            height, width = bottom - top, right - left
        steps[FLIP] = A.HorizontalFlip(p=options.flip)
        if options.colour:
            jitter = options.colour
            steps[COLOUR] = A.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter, hue=0, p=1)
        shorter = shorter_side[mix(key, SCALE) % len(shorter_side)]
        steps[SCALE] = A.Resize(
            *(size or target_size(height, width, shorter, longer)),
            interpolation=cv2.INTER_LINEAR,
            mask_interpolation=cv2.INTER_NEAREST_EXACT,  # the plain one takes the upper left pixel: half a pixel off
            area_for_downscale="image",
        )
        parameters = A.BboxParams("pascal_voc", label_fields=["rows"], clip=True, filter_invalid_bboxes=True)
        compose = A.Compose(list(steps.values()), bbox_params=parameters)
        # One by one, and after Compose, which would start all from one seed: see backbone.data.augment.
        for number, step in steps.items():
            step.set_random_seed(mix(key, number))
        given: dict[str, Any] = {"masks": [masks[row] for row in rows] if masks else []}
        if classes is not None:
            given["mask"] = classes
        found = compose(image=image, bboxes=boxes[rows], rows=rows, **given)
        seen = _checked(found, rows, bool(masks), dropped=degenerate)._replace(classes=found.get("mask"))
        if options.canvas and masks and window:
            # Half a disc fills its half of the box nowhere near: as detectron2's recipes.
            sides = boxes[seen.rows, 2:] - boxes[seen.rows, :2]
            for place in np.flatnonzero(_overlap(boxes[seen.rows], window) < sides.prod(1)):
                seen.boxes[place] = around(seen.masks[place])
        return seen

    return view


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


def around(mask: np.ndarray) -> np.ndarray:
    """The smallest box that holds every pixel of a mask that is not empty, float32 [4]."""
    x, y, width, height = cv2.boundingRect(mask)
    return np.array([x, y, x + width, y + height], np.float32)


def clip(boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [K, 4] clipped to the image, float64 [K, 4], and the rows of those that are not degenerate, int64 [k]."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    boxes = np.clip(boxes, 0, [width, height, width, height])
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes, np.flatnonzero((sides >= SMALLEST).all(1))  # NaN is not


def _checked(found: dict[str, Any], given: np.ndarray, with_masks: bool, dropped: int) -> View:
    """What albumentations gives as a View, after a last look: nothing in it is empty or has lost its row."""
    boxes = np.asarray(found["bboxes"], np.float32).reshape(-1, 4)
    rows = np.asarray(found["rows"], np.int64)
    masks = []
    if with_masks:  # albumentations filters boxes and rows, but not masks
        masks = [found["masks"][place] for place in np.searchsorted(given, rows)]
    seen = (boxes[:, 2:] > boxes[:, :2]).all(1)
    if with_masks:
        seen &= np.array([mask.any() for mask in masks], bool)
    kept = np.flatnonzero(seen)
    view = View(
        found["image"],
        boxes[kept],
        rows[kept],
        [masks[place] for place in kept] if with_masks else [],
        dropped + len(given) - len(kept),
    )
    assert len(view.boxes) == len(view.rows)
    assert len(view.masks) == (len(view.rows) if with_masks else 0)
    return view


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
