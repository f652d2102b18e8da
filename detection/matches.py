"""Which detection found which object: what resampling, curves, the split of errors and error pictures start from."""

from typing import Any, Literal

import numpy as np

from detection.coco_format import Table, as_table, check, mended, overlaps
from detection.data.contract import Categories
from detection.voc_ap import voc_matches

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # pycocotools' own floats
MAX_DETECTIONS = 100  # for each image and class
MAX_AREA = 1e5**2
ROWS = ("image", "label", "score", "tp", "ignored", "gt_image", "gt_label", "image_ids")
OVERLAPS = ("iou", "near", "iou_other", "near_other", "found")


def all_matches(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], categories: Categories, masks: bool = False
) -> dict[str, np.ndarray]:
    """All that `matches.npz` holds: `matches` of boxes; with `masks` of masks, where `segm_` stands before the names of
    what differs; and `voc_` before what `detection.voc_ap.voc_matches` gives.

    Raises:
        UserError: see `detection.coco_format.check`.
    """
    found = matches(ground_truth, results, categories)
    if masks:
        segm = matches(ground_truth, results, categories, "segm")
        found |= {f"segm_{name}": segm[name] for name in ("tp", "ignored", *OVERLAPS)}
    voc = voc_matches(ground_truth, results, categories)
    return found | {f"voc_{name}": array for name, array in voc.items() if name != "image_ids"}


def matches(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    categories: Categories,
    kind: Literal["bbox", "segm"] = "bbox",
) -> dict[str, np.ndarray]:
    """Matching by the rules of pycocotools' `evaluateImg` (area all, maxDets 100), as flat arrays.

    The D detections come sorted by image, label and falling score; those beyond 100 of an image and class are left out.
    AP is accumulated over the rows of a label, sorted once more by score (stable), without those ignored. Objects are
    G, crowds left out; "the object" is a row of `gt_*`, -1 where there is none.

        image int32 [D]      index into image_ids         gt_image int32 [G]
        label int16 [D]      1..K                         gt_label int16 [G]
        score float64 [D]                                 image_ids int64 [N]  ascending
        tp bool [D, 10]      at IoU .50:.05:.95
        ignored bool [D, 10] on a crowd: neither right nor wrong
        iou float64 [D]      the highest with an object of its class, 0 where there is none
        near int32 [D]       that object
        iou_other, near_other                             likewise, of another class
        found int32 [D]      the object it is matched to at IoU .50

    Raises:
        UserError: see `detection.coco_format.check`.
    """
    masks = kind == "segm"
    check(ground_truth, results, categories, masks)
    table = _ranked(as_table(mended(ground_truth), results, categories, masks))
    crowd = table.gt_crowd
    gt_ignored = crowd | (table.gt_area < 0) | (table.gt_area > MAX_AREA)
    nearest = {name: (np.zeros(len(table.score)), np.full(len(table.score), -1)) for name in ("", "_other")}
    empty = np.zeros(0, np.int64)
    pairs: list[tuple[np.ndarray, ...]] = [(empty, empty, empty.astype(float))]
    for rows, truth, iou in overlaps(table, crowd):
        same = table.label[rows, None] == table.gt_label[None, truth]
        for name, of in (("", same), ("_other", ~same)):
            counted = np.where(of & ~gt_ignored[truth], iou, 0.0)
            at, (best, which) = counted.argmax(1), nearest[name]
            best[rows] = counted.max(1)
            which[rows] = np.where(best[rows] > 0, truth.start + at, -1)
        d, g = np.nonzero(same & (iou >= THRESHOLDS[0]))
        pairs.append((rows.start + d, truth.start + g, iou[d, g]))
    d, g, iou = (np.concatenate(column) for column in zip(*pairs, strict=True))
    # A detection takes, of the objects still free, one that counts before one that is ignored, then the highest IoU,
    # then the last: what pycocotools' loop comes down to. All thresholds go at once, a bit each.
    order = np.lexsort((-g, -iou, gt_ignored[g], d))
    reached = (1 << np.searchsorted(THRESHOLDS, iou[order], side="right")) - 1
    tp, ignored, taken = [0] * len(table.score), [0] * len(table.score), [0] * len(crowd)
    found = np.full(len(table.score), -1)
    is_ignored, is_crowd = gt_ignored.tolist(), crowd.tolist()
    for row, truth, bits in zip(d[order].tolist(), g[order].tolist(), reached.tolist(), strict=True):
        bits &= ~(tp[row] | ignored[row] | taken[truth])
        (ignored if is_ignored[truth] else tp)[row] |= bits
        if bits & 1 and not is_ignored[truth]:
            found[row] = truth
        if not is_crowd[truth]:  # a crowd takes in any number
            taken[truth] |= bits
    right, neither = (np.array(x, np.int64)[:, None] >> np.arange(10) & 1 == 1 for x in (tp, ignored))
    outside = table.box[:, 2] * table.box[:, 3] > MAX_AREA
    place = np.append(np.cumsum(~gt_ignored) - 1, -1)  # of an object among those that count
    return {
        "image": table.image.astype(np.int32),
        "label": table.label.astype(np.int16),
        "score": table.score,
        "tp": right,
        "ignored": neither | (outside[:, None] & ~right),
        "iou": nearest[""][0],
        "near": place[nearest[""][1]].astype(np.int32),
        "iou_other": nearest["_other"][0],
        "near_other": place[nearest["_other"][1]].astype(np.int32),
        "found": place[found].astype(np.int32),
        "gt_image": table.gt_image[~gt_ignored].astype(np.int32),
        "gt_label": table.gt_label[~gt_ignored].astype(np.int16),
        "image_ids": table.image_ids,
    }


def _ranked(table: Table) -> Table:
    """Detections by image, label and falling score, those beyond 100 of an image and class left out."""
    order = np.lexsort((-table.score, table.label, table.image))
    new = np.diff(table.image[order], prepend=-1).astype(bool) | np.diff(table.label[order], prepend=-1).astype(bool)
    rank = np.arange(len(new)) - np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))
    return table.select(order[rank < MAX_DETECTIONS])
