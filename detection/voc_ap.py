"""Pascal VOC average precision at IoU 0.5, after the devkit's VOCevaldet.m and VOCap.m."""

from typing import Any

import numpy as np

from detection.coco_format import as_table, check, mended, overlaps
from detection.data.contract import Categories

MIN_OVERLAP = 0.5


def score_voc(ground_truth: dict[str, Any], results: list[dict[str, Any]], categories: Categories) -> dict[str, Any]:
    """`{"mAP", "mAP07", "per_class": {name: {"AP", "AP07"}}}`, fractions: area under the curve (VOC10 and later), and
    the mean of 11 points (VOC07). A class without objects that count has None and is left out of the means.

    The rules are those of `voc_matches`.

    Raises:
        UserError: see `detection.coco_format.check`.
    """
    found = voc_matches(ground_truth, results, categories)
    order = np.argsort(-found["score"], kind="stable")
    per_class: dict[str, dict[str, float | None]] = {}
    for label, name in enumerate(categories.names, start=1):
        positives = int(np.count_nonzero(found["gt_label"] == label))
        if not positives:
            per_class[name] = {"AP": None, "AP07": None}
            continue
        rows = order[found["label"][order] == label]
        right, neither = found["tp"][rows, 0], found["ignored"][rows, 0]
        tp, fp = np.cumsum(right), np.cumsum(~right & ~neither)
        per_class[name] = {"AP": area_ap(tp, fp, positives), "AP07": eleven_point_ap(tp, fp, positives)}
    return {
        "mAP": _mean([scores["AP"] for scores in per_class.values()]),
        "mAP07": _mean([scores["AP07"] for scores in per_class.values()]),
        "per_class": per_class,
    }


def voc_matches(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], categories: Categories
) -> dict[str, np.ndarray]:
    """Matching by the devkit's rules, as flat arrays of D detections, sorted by image, and G objects not difficult.

        image int32 [D]    index into image_ids          gt_image int32 [G]
        label int16 [D]    1..K                          gt_label int16 [G]
        score float64 [D]                                image_ids int64 [N]  ascending
        tp bool [D, 1]     at IoU .50
        ignored bool [D, 1] on a difficult object: neither right nor wrong

    The devkit's rules: in order of score, a detection belongs to the object of its class it overlaps most, is right if
    that is IoU 0.5 or more and the first time, wrong otherwise, and neither if the object is difficult (`difficult` 1
    or `iscrowd` 1). All detections count, however many an image has.

    The devkit's boxes are inclusive pixels, counted from 1: x1 = x + 1, x2 = x + w, and its x2 - x1 + 1 is our w, the
    same of intersections. So the IoU of continuous boxes is the devkit's.

    Raises:
        UserError: see `detection.coco_format.check`.
    """
    check(ground_truth, results, categories)
    table = as_table(mended(ground_truth), results, categories)
    best, target = np.zeros(len(table.score)), np.zeros(len(table.score), np.int64)
    for rows, truth, iou in overlaps(table, np.zeros(len(table.gt_label), bool)):
        own = np.where(table.label[rows, None] == table.gt_label[None, truth], iou, -1.0)
        best[rows] = own.max(1)
        target[rows] = truth.start + own.argmax(1)  # of equals the first, as the devkit's `ov > ovmax`
    order = np.argsort(-table.score, kind="stable")
    hits = order[best[order] >= MIN_OVERLAP]
    right, neither = np.zeros(len(best), bool), np.zeros(len(best), bool)
    neither[hits] = table.gt_difficult[target[hits]]
    right[hits[np.unique(target[hits], return_index=True)[1]]] = True
    counted = ~table.gt_difficult
    return {
        "image": table.image.astype(np.int32),
        "label": table.label.astype(np.int16),
        "score": table.score,
        "tp": (right & ~neither)[:, None],
        "ignored": neither[:, None],
        "gt_image": table.gt_image[counted].astype(np.int32),
        "gt_label": table.gt_label[counted].astype(np.int16),
        "image_ids": table.image_ids,
    }


def area_ap(tp: np.ndarray, fp: np.ndarray, positives: int) -> float:
    """Area under the precision envelope, from true and false positives so far (int [D]) in order of score."""
    recall = np.concatenate([[0.0], tp / positives])
    return float(np.sum(np.diff(recall) * _envelope(tp, fp)))


def eleven_point_ap(tp: np.ndarray, fp: np.ndarray, positives: int) -> float:
    """Mean over recall r = 0, 0.1, ..., 1 of the highest precision at recall r or above, 0 where it is never reached.

    Deviates from the devkit: recall is compared in whole numbers. Its `0:0.1:1` holds 0.30000000000000004, which a
    recall of 3 in 10 misses.
    """
    at = np.searchsorted(10 * tp, np.arange(11) * positives)
    return float(np.append(_envelope(tp, fp), 0.0)[at].mean())


def _envelope(tp: np.ndarray, fp: np.ndarray) -> np.ndarray:
    precision = tp / np.maximum(tp + fp, 1)  # 0 while all so far lie on difficult objects
    return np.maximum.accumulate(precision[::-1])[::-1]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
