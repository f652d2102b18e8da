"""Resizing in tensor operations gives OpenCV's pixels, all of them: `evaluation_view` is what detectors see."""

import cv2
import numpy as np
import pytest
import torch

from detection.data.augment import evaluation_view
from detection.interop.resize import resize, target_size

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 256, (120, 187, 3), np.uint8)
SMOOTH = cv2.resize(RANDOM.integers(0, 256, (9, 7, 3), np.uint8), (150, 211), interpolation=cv2.INTER_CUBIC)
EVEN = RANDOM.integers(0, 256, (96, 144, 3), np.uint8)


@pytest.mark.parametrize(
    ("shorter", "longer"),
    [
        (200, 999),
        (240, 999),
        (121, 999),
        (119, 999),
        (96, 400),
        (64, 96),
        (60, 999),
        (48, 999),
        (32, 999),
        (33, 70),
        (9, 9),
    ],
)
@pytest.mark.parametrize(
    "image", [NOISE, SMOOTH, EVEN, NOISE.transpose(1, 0, 2)], ids=["noise", "smooth", "even", "tall"]
)
def test_every_pixel_is_opencvs(image: np.ndarray, shorter: int, longer: int) -> None:
    image = np.ascontiguousarray(image)
    wanted = evaluation_view(image, shorter, longer)
    target = target_size(torch.tensor(image.shape[:2]), shorter, longer)
    assert tuple(target.long().tolist()) == wanted.shape[:2]
    found = resize(torch.from_numpy(image), target)
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), wanted)


def test_an_image_of_the_right_size_stays() -> None:
    target = target_size(torch.tensor(EVEN.shape[:2]), 96, 144)
    assert np.array_equal(resize(torch.from_numpy(EVEN), target).numpy(), EVEN)
