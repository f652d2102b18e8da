"""COCO average precision over resampled images, many resamples at once."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from backbone.errors import UserError
from backbone.storage import filesystem

RECALLS = np.linspace(0.0, 1.0, 101)  # pycocotools' recThrs
IOUS = np.arange(50, 100, 5) / 100
METRICS = ("AP", "AP50", "AP75")
AT50, AT75 = 0, 5
BLOCK = 4_000_000  # numbers held at once for a class, 32 MB an array


@dataclass(frozen=True)
class Matches:
    """Which detections of an evaluation hit: D detections and G objects of N images, as pycocotools matched them.

    Area all, at most 100 detections an image and class. `image` and `gt_image` index `image_ids`; labels are 1..K.
    """

    image: np.ndarray  # int [D]
    label: np.ndarray  # int [D]
    score: np.ndarray  # float [D]
    tp: np.ndarray  # bool [D, 10], IoU .50:.05:.95
    ignored: np.ndarray  # bool [D, 10], matched to a crowd
    iou: np.ndarray  # float [D], best IoU with an object of the class
    gt_image: np.ndarray  # int [G], crowds left out
    gt_label: np.ndarray  # int [G]
    image_ids: np.ndarray  # int64 [N]

    @classmethod
    def load(cls, url: str) -> "Matches":
        """Read a `matches.npz`, local or remote.

        Raises:
            UserError: it is missing, damaged, or lacks an array.
        """
        fs, path = filesystem(url)
        try:
            with fs.open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{url}: cannot read the matches ({error}); evaluate the detector again") from error

    @property
    def num_classes(self) -> int:
        """K: the highest label seen."""
        return int(max(self.label.max(initial=0), self.gt_label.max(initial=0)))


@dataclass(frozen=True)
class Precision:
    """Average precision, fractions; NaN where there is no ground truth."""

    AP: float
    AP50: float
    AP75: float
    per_class: np.ndarray  # float64 [K, 10], at each IoU


def average_precision(matches: Matches, weights: np.ndarray | None = None) -> Precision:
    """COCO's AP as `COCOeval.accumulate` computes it, each image counted `weights` times.

    Args:
        weights: float or int [N], not negative, in the order of `image_ids`; None is 1 each.

    Returns:
        What pycocotools gives for a data set that holds image i `weights[i]` times. The mean is over the classes that
        have ground truth left.
    """
    if weights is None:
        weights = np.ones(len(matches.image_ids))
    per_class = _per_class(matches, np.asarray(weights, float)[:, None])
    AP, AP50, AP75 = _metrics(per_class)[:, 0]
    return Precision(float(AP), float(AP50), float(AP75), per_class[..., 0])


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
            envelope, steps = _envelope(matches, rows, int(at[0]), weights, objects[label : label + 1])
            line = np.repeat(envelope[:, 0], steps[:, 0])
            precision[label - 1] = np.pad(line, (0, len(RECALLS) - len(line)))
    return RECALLS, precision


def paired_draws(rows: Mapping[str, Sequence[Matches]], resamples: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
    """AP of every training of every row on all images, and on resamples of them. A `Matches` for each training.

    Images are drawn with replacement, as many as there are, and every training is judged on the same draw, so that hard
    images weigh on both sides of a difference.

    Returns:
        By row float64 [metric, training, 1 + resamples], metrics as in METRICS, column 0 all images; NaN in resamples
        without ground truth.

    Raises:
        UserError: a row has no training, or rows were not judged on the same images and objects.
    """
    ids = _same_images(rows)
    counts = np.random.default_rng(seed).multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=resamples).T
    weights = np.concatenate([np.ones((len(ids), 1)), counts], axis=1)
    return {
        label: np.stack(
            [_metrics(_per_class(m, weights[np.searchsorted(ids, m.image_ids)])) for m in trainings], axis=1
        )
        for label, trainings in rows.items()
    }


def _same_images(rows: Mapping[str, Sequence[Matches]]) -> np.ndarray:
    """The sorted image ids all rows share."""
    reference: tuple[np.ndarray, np.ndarray] | None = None
    for label, trainings in rows.items():
        if not trainings:
            raise UserError(f"row {label!r} has no training: give it one result at least")
        for matches in trainings:
            objects = np.stack([matches.image_ids[matches.gt_image], matches.gt_label.astype(np.int64)])
            found = (np.sort(matches.image_ids), objects[:, np.lexsort(objects)])
            reference = reference or found
            if not all(map(np.array_equal, reference, found)):
                raise UserError(
                    f"row {label!r} was judged on other images or objects: evaluate all rows on the same data"
                )
    if reference is None or not len(reference[0]):
        raise UserError("the rows were judged on no images: evaluate them on one at least")
    return reference[0]


def _metrics(per_class: np.ndarray) -> np.ndarray:
    """[K, 10, B] -> AP, AP50, AP75 [3, B]: means over classes that have ground truth."""
    at = np.stack([per_class.mean(1), per_class[:, AT50], per_class[:, AT75]])
    present = ~np.isnan(at)
    with np.errstate(invalid="ignore"):
        return np.where(present, at, 0).sum(1) / present.sum(1)


def _by_class(matches: Matches) -> list[tuple[int, np.ndarray]]:
    """`(label, its detections best first)` for each label; equal scores in pycocotools' order, by image id."""
    order = np.lexsort((matches.image_ids[matches.image], -matches.score, matches.label))
    labels = np.arange(1, matches.num_classes + 1)
    ends = np.searchsorted(matches.label[order], labels, side="right")
    starts = np.searchsorted(matches.label[order], labels, side="left")
    return [(int(k), order[a:b]) for k, a, b in zip(labels, starts, ends, strict=True)]


def _per_class(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """AP of each class at each IoU under each column of image weights: [N, B] -> [K, 10, B], NaN without objects."""
    per_class = np.full((matches.num_classes, len(IOUS), weights.shape[1]), np.nan)
    for label, rows in _by_class(matches):
        images = matches.gt_image[matches.gt_label == label]
        if not len(images):
            continue
        width = max(1, BLOCK // max(1, len(rows), len(images)))
        for start in range(0, weights.shape[1], width):
            block = weights[:, start : start + width]
            objects = block[images].sum(0)
            total = np.cumsum(block[matches.image[rows]], axis=0)
            for t in range(len(IOUS)):
                envelope, steps = _envelope(matches, rows, t, block, objects, total)
                ap = (envelope * steps).sum(0) / len(RECALLS)
                per_class[label - 1, t, start : start + width] = np.where(objects > 0, ap, np.nan)
    return per_class


def _envelope(
    matches: Matches,
    rows: np.ndarray,
    t: int,
    weights: np.ndarray,
    objects: np.ndarray,
    total: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A class's precision made monotone, at each of its H hits, and how many recall thresholds each hit answers.

    Only hits matter: between them precision falls and recall stands. Both are [H, B].
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
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    answered = np.searchsorted(RECALLS, found / np.maximum(objects, np.spacing(1)), side="right")
    return envelope, np.diff(answered, axis=0, prepend=0)
