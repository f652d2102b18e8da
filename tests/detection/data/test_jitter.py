"""Large-scale jitter: scales drawn evenly, nothing beyond the canvas, boxes and masks where the picture shows them."""

import cv2
import numpy as np
import pytest

from backbone.data.stream import mix
from detection.data.augment import SCALE, evaluation_view, jittered, training_view
from detection.data.options import DetectionAugment
from tests.detection.data.making import of_planes


@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 427), (37, 91), (1, 300)])
def test_scales_are_drawn_evenly_and_nothing_is_beyond_the_canvas(height: int, width: int):
    """Scale and size as detectron2's ResizeScale and FixedSizeCrop, the part of the image to the nearest pixel."""
    fit, factors = min(256 / height, 256 / width), []
    for key in range(400):
        (left, top, right, bottom), seen = jittered(256, (0.1, 2.0), height, width, mix(key))
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        draw = np.random.Generator(np.random.Philox(key=mix(key))).random()
        factors.append(0.1 + 1.9 * draw)
        scale = fit * factors[-1]
        for side, part, shown in zip((height, width), (bottom - top, right - left), seen, strict=True):
            assert shown == min(max(round(side * scale), 1), 256)
            assert abs(part * scale - shown) <= max(scale, 1)
    assert np.mean(factors) == pytest.approx(1.05, abs=5 * 1.9 / 12**0.5 / 400**0.5)


def test_boxes_and_masks_are_where_the_picture_shows_them():
    """Each rectangle has a colour of its own, so the view itself says where it is."""
    view = of_planes(training_view(DetectionAugment(flip=0, canvas=96), (96,), 2000))
    image, boxes = np.zeros((120, 160, 3), np.uint8), []
    for number, (left, top) in enumerate([(4, 6), (60, 10), (110, 20), (20, 70), (90, 60)]):
        image[top : top + 40, left : left + 45] = 0
        image[top : top + 40, left : left + 45, number % 3] = 100 + 150 * (number // 3)
        boxes.append([left, top, left + 45, top + 40])
    given = np.array(boxes, np.float64)
    masks = [np.zeros((120, 160), np.uint8) for _ in boxes]
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    sides, kept = set(), 0
    for key in range(40):
        found = view(image, given, masks, key)
        (left, top, right, bottom), (height, width) = jittered(96, (0.1, 2.0), 120, 160, mix(key, SCALE))
        assert found.image.shape == (height, width, 3)
        sides.add(max(height, width))
        cut = np.clip(given, [left, top, left, top], [right, bottom, right, bottom]) - [left, top, left, top]
        scale = np.array([width / (right - left), height / (bottom - top)] * 2)
        expected = (cut * scale)[found.rows]
        assert np.abs(found.boxes - expected).max(initial=0) <= 1  # those cut are drawn anew around their masks
        inside = ((given[:, :2] >= [left, top]) & (given[:, 2:] <= [right, bottom])).all(1)[found.rows]
        assert np.allclose(found.boxes[inside], expected[inside], atol=1e-3)
        kept += len(found.rows)
        for row, box, mask in zip(found.rows, found.boxes, found.masks, strict=True):
            x, y, across, down = cv2.boundingRect(mask)
            assert np.abs(box - [x, y, x + across, y + down]).max() <= 1
            inner = found.image[y + 1 : y + down - 1, x + 1 : x + across - 1, row % 3]
            covered = found.image[y + 1 : y + down - 1, x + 1 : x + across - 1].sum(2)
            if inner.size:
                assert (covered > 0).all()  # the middle of an object is not the black around it
    assert kept > 60
    assert min(sides) < 40
    assert max(sides) == 96


def test_without_a_canvas_nothing_is_jittered():
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    plain = training_view(DetectionAugment(flip=0), (48,), 2000)(image, np.zeros((0, 4)), [], 3)
    assert np.array_equal(plain.image, evaluation_view(image, 48, 2000))
