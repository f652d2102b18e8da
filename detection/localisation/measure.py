"""Localisation error as ILSVRC's devkit counts it (eval_clsloc.m)."""

from collections.abc import Sequence

import numpy as np
import torch
from torchvision.ops import box_iou

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
    every = box_iou(torch.from_numpy(boxes[right]), torch.from_numpy(truth))
    return bool((every >= OVERLAP).any())
