"""Localisation error as ILSVRC's devkit counts it (eval_clsloc.m), and an interval for it."""

import math
from collections.abc import Sequence

import numpy as np

GUESSES = 5
OVERLAP = 0.5


def is_found(
    label: int, truth: np.ndarray, labels: Sequence[int] | np.ndarray, boxes: np.ndarray, guesses: int = GUESSES
) -> bool:
    """Whether one of the first `guesses` is of the image's class and has IoU 0.5 or more with any of its objects.

    Args:
        label: the image's class.
        truth: float64 [K, 4], objects of that class, x1 y1 x2 y2, x2 - x1 the width. The devkit's inclusive pixels give
            the same overlaps.
        labels: classes guessed, the surest first.
        boxes: float64 [len(labels), 4].
        guesses: how many count.
    """
    right = np.flatnonzero(np.asarray(labels)[:guesses] == label)
    return bool((iou(boxes[right], truth) >= OVERLAP).any())


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of every pair of boxes [A, 4] and [B, 4]: float64 [A, B]; 0 where both are empty."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    both = (high - low).clip(0).prod(-1)
    areas = [(b[:, 2:] - b[:, :2]).clip(0).prod(-1) for b in (boxes, others)]
    every = areas[0][:, None] + areas[1][None] - both
    return np.divide(both, every, out=np.zeros_like(both), where=every > 0)


def wilson(errors: int, images: int) -> tuple[float, float]:
    """95 % interval of an error, percent, over other images: Wilson's, which holds near 0 and 100 % too."""
    z = 1.959964
    share, extra = errors / images, z * z / images
    middle = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / images + extra / images / 4) / (1 + extra)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)
