"""Why AP is lost: each false detection and missed object by what is wrong with it, and the AP that each kind costs.

TIDE (Bolya et al., arXiv:2008.08115, section 2), from matches alone. At IoU 0.5 a detection that is neither right nor
on a crowd is, the first that holds,

    localisation     on an object of its class, IoU 0.1 or more but below 0.5
    classification   on an object of another class, IoU 0.5 or more
    duplicate        on an object of its class, IoU 0.5 or more, that a surer one has found
    background       on no object, IoU 0.1 or less
    both             what is left: badly placed, and of another class

and an object is missed where neither a right detection nor one of the first two kinds is on it. What a kind costs is
the AP50 that is won by mending all of its kind and nothing else: a detection of the first two kinds becomes right,
if it is the surest of both on an object that nothing has found, and else is taken away, as are the other kinds;
objects missed are no longer asked for. Costs do not add up: what is mended together is worth more, or less.

The order and the choice of the surest are those of the authors' code (tidecv 1.0.1). Ours departs from it where COCO's
rules do: 100 detections of an image and class, not of an image; classes without objects count in no mean; detections on
crowds are no errors; and IoU 0.5 exactly, of a detection on an object that is taken, is a duplicate.
"""

from dataclasses import dataclass, replace

import numpy as np

from detection.report.bootstrap import class_ap, mean
from detection.report.stored import Matches

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
HIT, BACKGROUND = 0.5, 0.1
RIGHT = -1
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUNDS = range(5)


@dataclass(frozen=True)
class Split:
    """What is wrong with D detections and G objects."""

    kind: np.ndarray
    """int8 [D], index into KINDS; RIGHT: nothing, or on a crowd."""

    target: np.ndarray
    """int [D], the object that mending it would find; -1: it would be taken away."""

    missed: np.ndarray
    """bool [G]"""


def split(matches: Matches) -> Split:
    """What is wrong, by the module's rules. `matches` are COCO's, of boxes or masks."""
    on = matches.overlaps
    if on is None:
        raise ValueError("matches by VOC's rules do not tell how detections overlap")
    wrong = ~matches.tp[:, 0] & ~matches.ignored[:, 0]
    kind = np.select(
        [
            ~wrong,
            (on.iou >= BACKGROUND) & (on.iou < HIT),
            on.iou_other >= HIT,
            on.iou >= HIT,
            np.maximum(on.iou, on.iou_other) <= BACKGROUND,
        ],
        [RIGHT, LOCALISATION, CLASSIFICATION, DUPLICATE, BACKGROUNDS],
        BOTH,
    ).astype(np.int8)
    found = np.zeros(len(matches.gt_image), bool)
    found[on.found[on.found >= 0]] = True
    target = np.where(kind == LOCALISATION, on.near, np.where(kind == CLASSIFICATION, on.near_other, -1))
    target[target >= 0] = np.where(found[target[target >= 0]], -1, target[target >= 0])
    aimed = np.flatnonzero(target >= 0)
    aimed = aimed[np.argsort(-matches.score[aimed], kind="stable")]
    surest = aimed[np.unique(target[aimed], return_index=True)[1]]
    mendable = np.full(len(target), -1)
    mendable[surest] = target[surest]
    reached = np.zeros(len(found), bool)
    reached[target[surest]] = True
    return Split(kind, mendable, ~found & ~reached)


def mended(matches: Matches, errors: Split, kind: str) -> Matches:
    """The matches at IoU 0.5 as they were if one kind of errors were mended."""
    tp, ignored = matches.tp[:, :1].copy(), matches.ignored[:, :1].copy()
    if kind == "missed":
        kept = ~errors.missed
        return replace(
            matches, tp=tp, ignored=ignored, gt_image=matches.gt_image[kept], gt_label=matches.gt_label[kept]
        )
    rows = errors.kind == KINDS.index(kind)
    becomes = rows & (errors.target >= 0)
    tp[becomes] = True
    ignored[rows & ~becomes] = True
    label = matches.label.copy()
    label[becomes] = matches.gt_label[errors.target[becomes]]
    return replace(matches, tp=tp, ignored=ignored, label=label)


def costs(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """AP50 that each of KINDS costs, float64 [6, B], with each image counted `weights` [N, B] times."""
    errors = split(matches)
    plain = replace(matches, tp=matches.tp[:, :1], ignored=matches.ignored[:, :1])
    before = class_ap(plain, weights)[:, 0]
    won = []
    for kind in KINDS:
        after = class_ap(mended(matches, errors, kind), weights)[:, 0]
        rest = np.full((len(before) - len(after), before.shape[1]), np.nan)
        after = np.concatenate([after, rest])  # classes all of whose objects are missed, and which find nothing
        # None is asked for any more, and none was found: 0 as before, as in tidecv.
        after = np.where(np.isnan(after) & ~np.isnan(before), 0.0, after)
        won.append(mean(after) - mean(before))
    return np.stack(won)
