"""Which detection found which object at ten thresholds: what resampling, curves and error pictures start from."""

from typing import Any

import numpy as np

from detection.coco_format import as_table, check, mended, overlaps
from detection.data.contract import Categories

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # pycocotools' own floats
MAX_DETECTIONS = 100  # for each image and class
MAX_AREA = 1e5**2


def matches(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], categories: Categories
) -> dict[str, np.ndarray]:
    """Box matching by the rules of pycocotools' `evaluateImg` (area all, maxDets 100), as flat arrays.

    The D detections come sorted by image, label and falling score; those beyond 100 of an image and class are left out.
    AP is accumulated over the rows of a label, sorted once more by score (stable), without those ignored.

        image int32 [D]      index into image_ids         gt_image int32 [G]   only ground truth that counts
        label int16 [D]      1..K                         gt_label int16 [G]
        score float64 [D]                                 image_ids int64 [N]  ascending
        tp bool [D, 10]      at IoU .50:.05:.95           iou float32 [D]      the highest with an object of its class
        ignored bool [D, 10] on a crowd: neither right nor wrong               that is no crowd; 0 where there is none

    Raises:
        UserError: see `detection.coco_format.check`.
    """
    check(ground_truth, results, categories)
    table = as_table(mended(ground_truth), results, categories)
    order = np.lexsort((-table.score, table.label, table.image))
    table = table._replace(
        image=table.image[order], label=table.label[order], box=table.box[order], score=table.score[order]
    )
    new = np.diff(table.image, prepend=-1).astype(bool) | np.diff(table.label, prepend=-1).astype(bool)
    rank = np.arange(len(new)) - np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))
    keep = rank < MAX_DETECTIONS
    table = table._replace(
        image=table.image[keep], label=table.label[keep], box=table.box[keep], score=table.score[keep]
    )

    crowd = table.gt_crowd
    gt_ignored = crowd | (table.gt_area < 0) | (table.gt_area > MAX_AREA)
    best = np.zeros(len(table.score), np.float32)
    empty = np.zeros(0, np.int64)
    pairs: list[tuple[np.ndarray, ...]] = [(empty, empty, empty.astype(float))]
    for rows, truth, iou in overlaps(table, crowd):
        best[rows] = np.max(iou, axis=1, initial=0.0, where=~crowd[truth])
        d, g = np.nonzero(iou >= THRESHOLDS[0])
        pairs.append((rows.start + d, truth.start + g, iou[d, g]))
    d, g, iou = (np.concatenate(column) for column in zip(*pairs, strict=True))
    # A detection takes, of the objects still free, one that counts before one that is ignored, then the highest IoU,
    # then the last: what pycocotools' loop comes down to. All thresholds go at once, a bit each.
    order = np.lexsort((-g, -iou, gt_ignored[g], d))
    reached = (1 << np.searchsorted(THRESHOLDS, iou[order], side="right")) - 1
    tp, ignored, taken = [0] * len(table.score), [0] * len(table.score), [0] * len(crowd)
    is_ignored, is_crowd = gt_ignored.tolist(), crowd.tolist()
    for row, truth, bits in zip(d[order].tolist(), g[order].tolist(), reached.tolist(), strict=True):
        bits &= ~(tp[row] | ignored[row] | taken[truth])
        (ignored if is_ignored[truth] else tp)[row] |= bits
        if not is_crowd[truth]:  # a crowd takes in any number
            taken[truth] |= bits
    right, neither = (np.array(x, np.int64)[:, None] >> np.arange(10) & 1 == 1 for x in (tp, ignored))
    outside = table.box[:, 2] * table.box[:, 3] > MAX_AREA
    return {
        "image": table.image.astype(np.int32),
        "label": table.label.astype(np.int16),
        "score": table.score,
        "tp": right,
        "ignored": neither | (outside[:, None] & ~right),
        "iou": best,
        "gt_image": table.gt_image[~gt_ignored].astype(np.int32),
        "gt_label": table.gt_label[~gt_ignored].astype(np.int16),
        "image_ids": table.image_ids,
    }
