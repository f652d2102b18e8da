"""Boxes that are numbers, but not pixels, or not in the order the format has: what a whole data set says of them."""

import numpy as np

FRACTION = 1.01  # of the side: rounding may take a fraction a little above 1
FIT = 0.95  # IoU from which two boxes are one
READ_FIT, MISFIT = (
    0.9,
    0.5,
)  # below the first a box is not that of its mask as it is read, below the second nowhere near
MIN_SIDE = 4.0  # pixels of a mask whose box is compared: smaller ones are moved by rounding
OVERSHOOT = 0.1  # of a box's own side: further than boxes drawn by hand reach outside
MOST = 0.98  # of the boxes: a few are always slips

FRACTIONS = (
    "boxes given as fractions of the image",
    "multiply x and width by the image's width, y and height by its height",
)
POLYGON_FRACTIONS = (
    "polygons given as fractions of the image",
    "multiply x by the image's width and y by its height, or leave the segmentation out",
)
CORNERS = (
    "boxes given as corners x1, y1, x2, y2",
    "write x1, y1, x2 - x1, y2 - y1; if they are x, y, width, height, cut them off at the image's border",
)
OTHER_UNITS = (
    "boxes in other units than their segmentation",
    "give both in pixels of the image, or leave the segmentation out",
)
MISFITS = (
    "boxes that do not fit their segmentation",
    "boxes and masks are trained on as they are: correct one of them",
)
VOC_FRACTIONS = ("boxes given as fractions of the image", "multiply x by the image's width and y by its height, plus 1")
SIDES = (
    "boxes given as x, y, width, height",
    "write xmin, ymin, xmax = xmin + width - 1, ymax = ymin + height - 1",
)


def in_fractions(boxes: np.ndarray) -> np.ndarray:
    """Which boxes, any four numbers each, float64 [A, 4], lie between 0 and 1; bool [A]."""
    return np.all((boxes >= 0) & (boxes <= FRACTION), 1)


def corners_given(boxes: np.ndarray, sizes: np.ndarray, extents: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Which boxes are x1 y1 x2 y2 where x y width height should be; bool [A], none or most of them.

    There are three witnesses. Segmentations: most boxes are theirs if read as corners, and not if read as they should
    be. Areas, for who has no segmentation: likewise. The borders: all boxes are within the image as corners, and a
    quarter of them, two at least, reach far outside if read as they should be.

    Args:
        boxes: float64 [A, 4], as written.
        sizes: [A, 2], height and width of their images.
        extents: float64 [A, 4], x1 y1 x2 y2 of their masks; NaN without one.
        areas: float64 [A], as written; NaN without one.
    """
    x, y, third, fourth = np.where(np.isfinite(boxes), boxes, 0).T
    valid = np.isfinite(boxes).all(1) & (third > x) & (fourth > y)
    read = np.stack([x, y, x + third, y + fourth], 1)
    masked = np.isfinite(extents).all(1)
    seen = valid & masked & (iou(boxes, extents) >= FIT) & (iou(read, extents) < READ_FIT)
    if masked.any() and 2 * seen.sum() > masked.sum():
        return seen
    if masked.all():
        return np.zeros(len(boxes), bool)
    found = np.zeros(len(boxes), bool)
    rest = ~masked  # those without a mask may be another tool's
    found[rest] = _corners_unmasked(boxes[rest], sizes[rest], areas[rest])
    alone = masked.any() and found.sum() == 1  # one area among sides may fit by chance
    return found & (not alone)


def _corners_unmasked(boxes: np.ndarray, sizes: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """`corners_given` by areas or else borders."""
    x, y, third, fourth = np.where(np.isfinite(boxes), boxes, 0).T
    valid = np.isfinite(boxes).all(1) & (third > x) & (fourth > y)
    read = np.stack([x, y, x + third, y + fourth], 1)
    with np.errstate(invalid="ignore", over="ignore"):
        as_corners, as_sides = (third - x) * (fourth - y), third * fourth
        telling = valid & (areas > 0) & (np.abs(as_corners - as_sides) > 0.05 * as_sides)
        near = telling & (np.abs(areas - as_corners) <= 0.01 * as_corners)
    if 2 * near.sum() > telling.sum():
        return near
    bounds = sizes[:, ::-1].astype(np.float64)
    inside = valid & (boxes[:, :2] >= -1).all(1) & (boxes[:, 2:] <= bounds * FRACTION + 1).all(1)
    outside = inside & (read[:, 2:] - bounds > OVERSHOOT * boxes[:, 2:]).any(1)
    return inside & _sure(inside, outside)


def sides_given(corners: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which boxes are x y width height where xmin ymin xmax ymax should be; bool [A], none or most of them.

    As for `corners_given`: within the image as sides, and a quarter of them, two at least, with a max below their min.
    """
    bounds = sizes[:, ::-1].astype(np.float64)
    room = bounds * FRACTION + 1 - (corners[:, :2] + corners[:, 2:])
    inside = np.all(np.concatenate([corners, room], 1) >= 0, 1)
    turned = inside & (corners[:, 2:] < corners[:, :2] - 1).any(1)
    return inside & _sure(inside, turned)


def _sure(possible: np.ndarray, impossible: np.ndarray) -> bool:
    """Whether nearly all boxes may be in another order, and many cannot be in the one they are read in."""
    return bool(possible.sum() >= MOST * len(possible) and impossible.sum() >= max(2, len(possible) / 4))


def misfits(boxes: np.ndarray, sizes: np.ndarray, extents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which boxes x y width height are nowhere near the extent of their mask, of which were compared; bool [A] each."""
    bounds = sizes[:, [1, 0, 1, 0]].astype(np.float64)
    read = np.clip(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1), 0, bounds)
    masks = np.clip(extents, 0, bounds)
    with np.errstate(invalid="ignore"):
        sides = np.maximum(masks[:, 2:] - masks[:, :2], (read[:, 2:] - read[:, :2]) / 4)  # a speck in a large box
        large, seen = extents[:, 2:] - extents[:, :2] >= MIN_SIDE, masks[:, 2:] > masks[:, :2]
        outside = large.all(1) & ~seen.all(1)
        compared = np.isfinite(boxes).all(1) & np.isfinite(extents).all(1) & ((sides >= MIN_SIDE).all(1) | outside)
    return compared & (iou(read, masks) < MISFIT), compared


def iou(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Of boxes x1 y1 x2 y2, float64 [A, 4] each, row by row; 0 where a number is missing or a box has no area."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        sides = np.minimum(one[:, 2:], two[:, 2:]) - np.maximum(one[:, :2], two[:, :2])
        both = np.maximum(sides, 0).prod(1)
        areas = [np.maximum(box[:, 2:] - box[:, :2], 0).prod(1) for box in (one, two)]
        return np.nan_to_num(both / (areas[0] + areas[1] - both), nan=0.0, posinf=0.0)
