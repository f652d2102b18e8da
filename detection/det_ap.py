"""ImageNet DET's average precision, after the devkit's eval_detection.m."""

from typing import Any

import numpy as np

from detection.coco_format import as_table, check, mended, overlaps
from detection.data.contract import Categories
from detection.voc_ap import area_ap

LAYOUT = "ilsvrc-det"
"""`info.layout` of a ground truth that is judged so."""

OVERLAP = 0.5
TOLERANCE = 10  # pixels by which an annotation may be off in width and height


def is_det(ground_truth: dict[str, Any]) -> bool:
    """Whether a ground truth is of ImageNet DET."""
    return ground_truth.get("info", {}).get("layout") == LAYOUT


def thresholds(boxes: np.ndarray) -> np.ndarray:
    """The IoU that each object asks for, of boxes x y width height [G, 4]: min(0.5, wh / ((w + 10) (h + 10))), so that
    of small ones no more is asked than annotators can give."""
    width, height = boxes[:, 2], boxes[:, 3]
    return np.minimum(OVERLAP, width * height / ((width + TOLERANCE) * (height + TOLERANCE)))


def score_det(ground_truth: dict[str, Any], results: list[dict[str, Any]], categories: Categories) -> dict[str, Any]:
    """`{"mAP", "per_class": {name: {"AP"}}}`, fractions; None for classes without objects, which count in no mean.

    In order of score, a detection takes of the objects of its class in its image, those still free whose own threshold
    it reaches, the one it overlaps most; otherwise it is wrong. All detections count, however many an image has.
    Classes that an image's `blacklisted` names are neither found nor missed in it. AP is the area under the curve.

    The devkit's boxes are inclusive pixels: its x2 - x1 + 1 is our w, and its overlaps are ours.

    Raises:
        UserError: see `detection.coco_format.check`.
    """
    check(ground_truth, results, categories)
    table = as_table(mended(ground_truth), results, categories)
    label_of = {category: label for label, category in enumerate(categories.ids, start=1)}
    place = {image: i for i, image in enumerate(table.image_ids.tolist())}
    black = {
        (place[image["id"]], label_of[category])
        for image in ground_truth["images"]
        for category in image.get("blacklisted", ())
    }
    asked = thresholds(table.gt_box)
    right = np.zeros(len(table.score), bool)
    for rows, truth, iou in overlaps(table, np.zeros(len(table.gt_label), bool)):
        free = np.ones(truth.stop - truth.start, bool)
        same = table.label[rows, None] == table.gt_label[None, truth]
        fits = same & (iou >= asked[None, truth])
        for row in np.argsort(-table.score[rows], kind="stable"):
            overlap = np.where(fits[row] & free, iou[row], -1.0)
            if len(overlap) and overlap.max() > 0:
                free[overlap.argmax()] = False
                right[rows.start + row] = True
    counted = _counted(table.image, table.label, black)
    objects = _counted(table.gt_image, table.gt_label, black)
    order = np.argsort(-table.score, kind="stable")
    per_class: dict[str, dict[str, float | None]] = {}
    for label, name in enumerate(categories.names, start=1):
        positives = int(np.count_nonzero(objects & (table.gt_label == label)))
        rows = order[(table.label[order] == label) & counted[order]]
        tp, fp = np.cumsum(right[rows]), np.cumsum(~right[rows])
        per_class[name] = {"AP": area_ap(tp, fp, positives) if positives else None}
    known = [scores["AP"] for scores in per_class.values() if scores["AP"] is not None]
    return {"mAP": float(np.mean(known)) if known else None, "per_class": per_class}


def _counted(images: np.ndarray, labels: np.ndarray, black: set[tuple[int, int]]) -> np.ndarray:
    """Rows whose image and label are not on the blacklist, bool."""
    pairs = zip(images.tolist(), labels.tolist(), strict=True)
    return np.array([pair not in black for pair in pairs], bool) if black else np.ones(len(images), bool)
