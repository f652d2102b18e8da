"""Pixels by class, counted image by image: IoU and accuracy, of these images or of others drawn from them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pixels:
    """Pixels of N images by C classes, the background first; those that are ignored are nowhere."""

    image_ids: np.ndarray  # int64 [N], ascending
    right: np.ndarray  # int64 [N, C], found where they are
    truth: np.ndarray  # int64 [N, C]
    found: np.ndarray  # int64 [N, C]

    @staticmethod
    def of(arrays: Mapping[str, np.ndarray]) -> "Pixels":
        """From what matches.npz holds; KeyError where an array is missing."""
        shape = len(arrays["image_ids"]), int(arrays["classes"])
        image, truth, found, pixels = (arrays[name] for name in ("image", "truth", "found", "pixels"))

        def summed(rows: np.ndarray, label: np.ndarray) -> np.ndarray:
            counts = np.zeros(shape, np.int64)
            np.add.at(counts, (image[rows], label[rows]), pixels[rows])
            return counts

        every = np.ones(len(image), bool)
        return Pixels(arrays["image_ids"], summed(truth == found, truth), summed(every, truth), summed(every, found))

    @property
    def judged_on(self) -> tuple[np.ndarray, np.ndarray]:
        """What is the same for all that are judged on the same images and label maps."""
        return self.image_ids, self.truth


def class_iou(pixels: Pixels, weights: np.ndarray) -> np.ndarray:
    """Of each class, float64 [C, B], each image counted `weights` [N, B] times; NaN of classes that no image has."""
    right, truth, found = (part.T.astype(np.float64) @ weights for part in (pixels.right, pixels.truth, pixels.found))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(truth > 0, right / (truth + found - right), np.nan)


def mean_iou(pixels: Pixels, weights: np.ndarray) -> np.ndarray:
    """mIoU and the part of all pixels that are right, float64 [2, B]; NaN where no pixel is judged.

    The mean is over the classes that the label maps have, the background among them, as over the classes that have
    objects in AP: a class found where no image has it costs the classes it is found on.
    """
    iou = class_iou(pixels, weights)
    present = ~np.isnan(iou)
    right, truth = (part.sum(1).astype(np.float64) @ weights for part in (pixels.right, pixels.truth))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([np.where(present, iou, 0).sum(0) / present.sum(0), right / truth])
