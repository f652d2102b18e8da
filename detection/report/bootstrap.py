"""Average precision, COCO's and VOC's, over resampled images, many resamples at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from backbone.errors import UserError
from detection.pixels import Pixels
from detection.report.stored import Matches

RECALLS = np.linspace(0.0, 1.0, 101)  # pycocotools' recThrs
IOUS = np.arange(50, 100, 5) / 100
AT50, AT75 = 0, 5
BLOCK = 4_000_000  # numbers held at once for a class, 32 MB an array

Area = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""From a class's envelope and objects found so far, both [hits, B], and its objects, [B], to its AP, [B]."""


def precision_recall(matches: Matches, iou: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Interpolated precision at recall 0, .01, ... 1, as pycocotools' `eval["precision"]`.

    Returns:
        `(recall [101], precision [K, 101])`, float64; rows of classes without ground truth are NaN.

    Raises:
        ValueError: `iou` is not one of .50:.05:.95.
    """
    at = np.flatnonzero(np.isclose(IOUS, iou))
    if not len(at):
        raise ValueError(f"iou {iou} is not one of {IOUS.tolist()}")
    precision = np.full((matches.num_classes, len(RECALLS)), np.nan)
    weights = np.ones((len(matches.image_ids), 1))
    objects = np.bincount(matches.gt_label, minlength=matches.num_classes + 1)
    for label, rows in _by_class(matches):
        if objects[label]:
            envelope, found = _envelopes(matches, rows, int(at[0]), weights)
            answered = _answered(found, objects[label : label + 1])
            line = np.repeat(envelope[:, 0], np.diff(answered, axis=0, prepend=0)[:, 0])
            precision[label - 1] = np.pad(line, (0, len(RECALLS) - len(line)))
    return RECALLS, precision


def coco(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """AP, AP50 and AP75 as `COCOeval.accumulate` computes them, float64 [3, B]; NaN without ground truth.

    Each image is counted `weights` times, [N, B], not negative, in the order of `image_ids`: what pycocotools gives for
    a data set that holds it so often.
    """
    return _summarised(class_ap(matches, weights))


def voc_area(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """VOC's mAP since 2010, the area under the envelope, float64 [1, B]; otherwise as `coco`."""
    return mean(class_ap(matches, weights, _whole_area)[:, 0])[None]


def voc_eleven(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """VOC's mAP of 2007, at 11 points of recall, float64 [1, B]; otherwise as `coco`."""
    return mean(class_ap(matches, weights, _eleven_points)[:, 0])[None]


def paired_draws(
    rows: Mapping[str, Sequence[Matches | Pixels]],
    resamples: int = 1000,
    seed: int = 0,
    of: Callable[[Any, np.ndarray], np.ndarray] = coco,
) -> dict[str, np.ndarray]:
    """AP of every training of every row on all images, and on resamples of them. A `Matches` for each training, or
    `Pixels` where `of` measures these.

    Images are drawn with replacement, as many as there are, and every training is judged on the same draw, so that hard
    images weigh on both sides of a difference.

    Args:
        of: what is measured, float64 [metrics, B] of image weights [N, B].

    Returns:
        By row float64 [metric, training, 1 + resamples], by default AP, AP50 and AP75, column 0 all images; NaN in
        resamples without ground truth.

    Raises:
        UserError: a row has no training, or rows were not judged on the same images and objects.
    """
    ids = _same_images(rows)
    counts = np.random.default_rng(seed).multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=resamples).T
    weights = np.concatenate([np.ones((len(ids), 1)), counts], axis=1)
    return {
        label: np.stack([of(m, weights[np.searchsorted(ids, m.image_ids)]) for m in trainings], axis=1)
        for label, trainings in rows.items()
    }


def _same_images(rows: Mapping[str, Sequence[Matches | Pixels]]) -> np.ndarray:
    """The sorted image ids all rows share."""
    reference: tuple[np.ndarray, np.ndarray] | None = None
    for label, trainings in rows.items():
        if not trainings:
            raise UserError(f"row {label!r} has no training: give it one result at least")
        for matches in trainings:
            found = matches.judged_on
            reference = reference or found
            if not all(map(np.array_equal, reference, found)):
                raise UserError(
                    f"row {label!r} was judged on other images or objects: evaluate all rows on the same data"
                )
    if reference is None or not len(reference[0]):
        raise UserError("the rows were judged on no images: evaluate them on one at least")
    return reference[0]


def _summarised(per_class: np.ndarray) -> np.ndarray:
    """[K, 10, B] -> AP, AP50, AP75 [3, B]."""
    return np.stack([mean(per_class.mean(1)), mean(per_class[:, AT50]), mean(per_class[:, AT75])])


def mean(per_class: np.ndarray) -> np.ndarray:
    """[K, B] -> [B]: over classes that have ground truth, which are not NaN."""
    present = ~np.isnan(per_class)
    with np.errstate(invalid="ignore"):
        return np.where(present, per_class, 0).sum(0) / present.sum(0)


def _by_class(matches: Matches) -> list[tuple[int, np.ndarray]]:
    """`(label, its detections best first)` for each label; equal scores in pycocotools' order, by image id."""
    order = np.lexsort((matches.image_ids[matches.image], -matches.score, matches.label))
    labels = np.arange(1, matches.num_classes + 1)
    ends = np.searchsorted(matches.label[order], labels, side="right")
    starts = np.searchsorted(matches.label[order], labels, side="left")
    return [(int(k), order[a:b]) for k, a, b in zip(labels, starts, ends, strict=True)]


def _answered(found: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """How many of COCO's 101 points of recall are reached: [H, B] of objects found, of `objects` [B]."""
    return np.searchsorted(RECALLS, found / np.maximum(objects, np.spacing(1)), side="right")


def _at_points(envelope: np.ndarray, found: np.ndarray, objects: np.ndarray) -> np.ndarray:
    return (envelope * np.diff(_answered(found, objects), axis=0, prepend=0)).sum(0) / len(RECALLS)


def _whole_area(envelope: np.ndarray, found: np.ndarray, objects: np.ndarray) -> np.ndarray:
    return (envelope * np.diff(found, axis=0, prepend=0)).sum(0) / np.maximum(objects, 1)


def _eleven_points(envelope: np.ndarray, found: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """In whole numbers, as `detection.voc_ap.eleven_point_ap`."""
    answered = 10 * found // np.maximum(objects, 1) + 1
    return (envelope * np.diff(answered, axis=0, prepend=0)).sum(0) / 11


def class_ap(matches: Matches, weights: np.ndarray, area: Area = _at_points) -> np.ndarray:
    """AP of each class at each IoU under each column of image weights: [N, B] -> [K, T, B], NaN without objects."""
    per_class = np.full((matches.num_classes, matches.tp.shape[1], weights.shape[1]), np.nan)
    for label, rows in _by_class(matches):
        images = matches.gt_image[matches.gt_label == label]
        if not len(images):
            continue
        width = max(1, BLOCK // max(1, len(rows), len(images)))
        for start in range(0, weights.shape[1], width):
            block = weights[:, start : start + width]
            objects = block[images].sum(0)
            total = np.cumsum(block[matches.image[rows]], axis=0)
            for t in range(matches.tp.shape[1]):
                ap = area(*_envelopes(matches, rows, t, block, total), objects)
                per_class[label - 1, t, start : start + width] = np.where(objects > 0, ap, np.nan)
    return per_class


def _envelopes(
    matches: Matches, rows: np.ndarray, t: int, weights: np.ndarray, total: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A class's precision made monotone, at each of its H hits, and how many objects are found by then, both [H, B].

    Only hits matter: between them precision falls and recall stands.
    """
    if total is None:
        total = np.cumsum(weights[matches.image[rows]], axis=0)
    ignored = matches.ignored[rows, t]
    hits = np.flatnonzero(matches.tp[rows, t] & ~ignored)
    found = np.cumsum(weights[matches.image[rows[hits]]], axis=0)
    seen = total[hits]
    if ignored.any():
        skipped = np.flatnonzero(ignored)
        passed = np.cumsum(weights[matches.image[rows[skipped]]], axis=0)
        before = np.searchsorted(skipped, hits)
        seen = seen - np.where(before[:, None] > 0, passed[before - 1], 0)
    # pycocotools adds the same spacing(1) to the divisor
    precision = found / (seen + np.spacing(1))
    return np.maximum.accumulate(precision[::-1], axis=0)[::-1], found
