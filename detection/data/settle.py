"""What readers and doctor decide alike: marks in words, areas that cannot be, objects and classes given twice."""

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle

from backbone.data.findings import EXAMPLES, Findings, Severity
from backbone.data.index import Arrays
from detection.data.segments import encode

# -1, "Unspecified" and the like: nobody has looked, as where the mark is missing.
NO = frozenset("0 -1 false f no n off none null nan n/a unspecified unknown undefined".split()) | {""}
YES = frozenset("1 true t yes y on".split())

LEAST_OF_MASK, LEAST_OF_BOX = 0.1, 0.01  # of their areas: an object's own area is no smaller
MOST_OF_MASK = 2.0  # times its area

ALIKE = (
    "classes whose names differ in case, blanks, hyphens or Unicode form alone",
    "each is a class of its own: give them one name, if they are one",
)
TWICE = ("objects given twice", "kept, as pycocotools does, and one of each two counts as missed in scoring: remove it")


def flag(value: Any) -> bool | None:
    """Whether a mark such as `iscrowd` or `difficult` is set, in numbers or words; None: it says neither yes nor no."""
    if isinstance(value, str):
        text = value.strip().casefold()
        if text in NO or text in YES:
            return text in YES
        try:
            value = float(text)
        except ValueError:
            return None
    if value is None or value != value:  # NaN is what pandas writes where there was none
        return False
    return {0: False, -1: False, 1: True}.get(value) if isinstance(value, int | float) else None


def settle_areas(
    written: np.ndarray, boxes: np.ndarray, sizes: np.ndarray, masks: np.ndarray, segments: Arrays
) -> tuple[np.ndarray, np.ndarray]:
    """Areas in pixels, and which of those written are not taken because they cannot be the objects'.

    An area is taken where it is above 0 and can be that of the object: about its mask's, and no more than fits into its
    box. Where more than half cannot be, all are in other units. The others are the mask's area, or else the box's.

    Args:
        written: float64 [A]; NaN: none, or no number.
        boxes: float64 [A, 4], x y width height.
        sizes: [A, 2], height and width of their images.
        masks: float64 [A], areas of the segmentations, about; 0 without one.
        segments: by `segments.flatten`.

    Returns:
        float64 [A], finite where boxes are, and bool [A].
    """
    sides = np.maximum(boxes[:, 2:], 0)
    with np.errstate(invalid="ignore", over="ignore"):
        of_box = sides.prod(1)
        most = np.maximum((sides + 1).prod(1), MOST_OF_MASK * masks)  # a mask counts each pixel that it touches
    least = np.where(masks > 0, LEAST_OF_MASK * masks, LEAST_OF_BOX * of_box)
    positive = np.isfinite(written) & (written > 0)
    impossible = positive & ((written > most) | (written < least))
    if 2 * impossible.sum() > positive.sum():
        impossible = positive
    areas = np.where(positive & ~impossible, written, of_box)
    for j in np.flatnonzero(~positive | impossible):
        encoded = encode(segments, int(j), *map(int, sizes[j]))
        areas[j] = (float(rle.area(encoded)) if encoded else 0.0) or of_box[j]
    return areas, impossible


def given_twice(image: np.ndarray, labels: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Pairs of rows of one image, class and box, int64 [P, 2]: each row after the first with the one before it."""
    rows = np.concatenate([image[:, None], labels[:, None], boxes], 1)
    order = np.lexsort(rows.T)
    same = (rows[order[1:]] == rows[order[:-1]]).all(1)
    return np.stack([order[:-1][same], order[1:][same]], 1)


def alike(name: str) -> str:
    """One for all names that look the same: in another case or Unicode form, with other blanks or with marks that
    nobody sees, such as U+FEFF and U+200B.
    """
    seen = "".join(one for one in unicodedata.normalize("NFKC", name) if unicodedata.category(one) != "Cf")
    return " ".join(seen.casefold().replace("_", " ").replace("-", " ").split())


def add_alike(findings: Findings, names: Sequence[str]) -> None:
    """Name classes that nobody could tell apart. Where upper and lower case are classes, as in reading text, they are
    right: so it is no error.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(alike(name), []).append(name)
    for group in groups.values():
        if len(group) > 1:
            findings.add("warning", *ALIKE, " and ".join(map(repr, group)))


def add_rows(
    findings: Findings,
    severity: Severity,
    kind: tuple[str, str],
    rows: np.ndarray,
    example: Callable[[int], object],
) -> None:
    """Count the rows that are set in bool [A], under `kind` (what, remedy), naming the first few."""
    where = np.flatnonzero(rows).tolist()
    for j in where[:EXAMPLES]:
        findings.add(severity, *kind, example(j))
    if len(where) > EXAMPLES:
        findings.add(severity, *kind, count=len(where) - EXAMPLES)
