"""Sizes against torchvision; geometry against images whose colours say where each pixel comes from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from torchvision.models.detection.transform import _resize_image_and_masks

import detection
from backbone.data.stream import mix
from backbone.data.synthetic import render
from detection.data.augment import CROP, View, _window, clip, evaluation_view, target_size, training_view
from detection.data.options import DetectionAugment
from tests.detection.data.making import of_planes

NOTHING = {"flip": 0.0}
ALL = {"flip": 0.5, "crop": 0.8, "colour": 0.4}


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def viewer(sides: tuple[int, ...] = (96,), longer: int = 2000, **options: Any) -> Callable[..., View]:
    return of_planes(training_view(DetectionAugment(**options), sides, longer))


class Picture(NamedTuple):
    """Red says the column, green the row; rectangles with their masks."""

    image: np.ndarray
    boxes: np.ndarray
    masks: list[np.ndarray]


def picture(height: int, width: int, num: int, seed: int) -> Picture:
    generator = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.arange(width)
    image[..., 1] = np.arange(height)[:, None]
    x = np.sort(generator.integers(0, width + 1, (num, 2)))
    y = np.sort(generator.integers(0, height + 1, (num, 2)))
    boxes = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1).astype(np.float64)
    masks = [np.zeros((height, width), np.uint8) for _ in range(num)]
    for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int), strict=True):
        mask[top:bottom, left:right] = 1
    return Picture(image, boxes, masks)


def tight(mask: np.ndarray) -> np.ndarray:
    x, y, width, height = cv2.boundingRect(mask)
    return np.array([x, y, x + width, y + height])


def clipped(boxes: np.ndarray, window: np.ndarray) -> np.ndarray:
    return np.concatenate([np.maximum(boxes[:, :2], window[:2]), np.minimum(boxes[:, 2:], window[2:])], 1)


def area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1)


@pytest.mark.parametrize(("shorter", "longer"), [(800, 1333), (600, 1000), (64, 100), (33, 47)])
def test_target_size_is_torchvisions(shorter: int, longer: int):
    generator = np.random.default_rng(shorter)
    sizes = [*generator.integers(30, 1400, (60, 2)).tolist(), [480, 640], [640, 427], [375, 500], [shorter, longer]]
    found = []
    for height, width in sizes:
        resized, _ = _resize_image_and_masks(torch.empty(1, height, width), shorter, longer)
        found.append(target_size(height, width, shorter, longer))
        assert found[-1] == resized.shape[1:]
    assert all(min(size) <= shorter and max(size) <= longer for size in found)


def test_target_size_is_rounded_down_and_never_empty():
    found = [target_size(side, 2 * side, 800, 4000)[0] for side in range(1, 1000)]
    assert set(found) == {799, 800}  # 800 / 1/3 and the like; torchvision's, by the test above
    assert target_size(1, 5000, 800, 1333) == (1, 1333)


@pytest.mark.parametrize(("height", "width"), [(60, 40), (37, 91), (96, 50)])
def test_evaluation_view_enlarges_linearly(height: int, width: int):
    image = noise(height, width)
    found = evaluation_view(image, 96, 2000)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(tensor, found.shape[:2], mode="bilinear", align_corners=False)
    assert np.abs(found - expected[0].permute(1, 2, 0).numpy()).max() < 1.01


def test_evaluation_view_shrinks_by_averaging():
    image = noise(96, 192)
    found = evaluation_view(image, 32, 2000)
    assert np.abs(found - image.reshape(32, 3, 64, 3, 3).mean((1, 3))).max() < 1.01
    assert evaluation_view(image, 96, 192) is image
    assert evaluation_view(image, 96, 64).shape == (32, 64, 3)


@pytest.mark.parametrize("size", [(96, 150), (40, 33), (200, 180), (97, 97), (300, 120), (97, 3), (95, 500)])
@pytest.mark.parametrize("longer", [100, 2000])
def test_training_sees_the_pixels_of_evaluation(size: tuple[int, int], longer: int):
    image = noise(*size)
    found = viewer(longer=longer, **NOTHING)(image, np.zeros((0, 4)), [], 3)
    assert np.array_equal(found.image, evaluation_view(image, 96, longer))


def test_boxes_scale_with_the_image():
    image, boxes = noise(48, 61), np.array([[0.25, 1.5, 60.75, 47.125], [10, 10, 20, 20]])
    found = viewer(**NOTHING)(image, boxes, [], 0)
    assert found.image.shape == (96, 122, 3)
    assert found.boxes.dtype == np.float32
    assert np.allclose(found.boxes, boxes * 2, atol=1e-4)


def test_flip_mirrors_exactly():
    image, boxes, masks = picture(96, 140, 6, 3)
    image = noise(96, 140)
    plain, mirrored = (viewer(flip=flip)(image, boxes, masks, 5) for flip in (0.0, 1.0))
    assert np.array_equal(plain.image, image)
    assert np.array_equal(mirrored.image, image[:, ::-1])
    assert np.allclose(mirrored.boxes, plain.boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [140, 0, 140, 0], atol=1e-4)
    assert np.array_equal(mirrored.masks, np.array(plain.masks)[:, :, ::-1])
    assert np.array_equal(mirrored.rows, plain.rows)


def positions(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a view comes from: pixels of the picture = view * scale + offset, both [x, y], read from its colours."""
    scale, offset = np.empty(2), np.empty(2)
    for axis in (0, 1):
        values = image[..., axis].mean(axis).astype(np.float64)  # over the other axis
        middle = slice(4, -4)  # interpolation repeats the outermost pixels
        places = np.arange(len(values)) + 0.5
        scale[axis], offset[axis] = np.polyfit(places[middle], values[middle] + 0.5, 1)
    return scale, offset


@pytest.mark.parametrize("seed", range(6))
def test_objects_stay_with_their_pixels(seed: int):
    """Crop, flip and resize, undone by what the pixels say: each row is its object, cut as the image is."""
    height, width = np.random.default_rng(seed).integers(100, 250, 2)
    source = picture(height, width, seed, seed)
    view = viewer((150, 200, 300), crop=1.0, flip=0.5)
    _, whole = clip(source.boxes, height, width)
    cropped = 0
    for i in range(25):
        found = view(*source, mix(seed, i))
        h, w = found.image.shape[:2]
        scale, offset = positions(found.image)
        corners = np.array([[0, 0], [w, h]]) * scale + offset
        window = np.concatenate([corners.min(0), corners.max(0)])
        cropped += area(window[None])[0] < 0.97 * height * width
        assert (window > [-1, -1, -1, -1]).all()
        assert (window < [width + 1, height + 1, width + 1, height + 1]).all()

        back = (found.boxes.reshape(-1, 2, 2) * scale + offset).reshape(-1, 4)
        back = np.concatenate([np.minimum(back[:, :2], back[:, 2:]), np.maximum(back[:, :2], back[:, 2:])], 1)
        expected = clipped(source.boxes[found.rows], window)
        assert np.abs(back - expected).max(initial=0) < 1
        original = area(source.boxes[found.rows])
        assert (area(back) > 0.5 * original - 2 * np.sqrt(original) - 2).all()  # a pixel of error around
        gone = clipped(source.boxes[np.setdiff1d(whole, found.rows)], window)
        assert (gone[:, 2:] - gone[:, :2]).min(1, initial=9).max(initial=-9) < 1

        assert found.dropped == len(source.boxes) - len(whole)
        for mask, box in zip(found.masks, found.boxes, strict=True):
            assert mask.shape == (h, w)
            assert np.abs(tight(mask) - box).max() <= 1.5
            assert mask.sum() == pytest.approx(area(box[None])[0], rel=0.02, abs=4 * (h + w))
    assert cropped >= 8 or seed > 3  # many large objects leave no room for a crop


@pytest.mark.parametrize("side", [50, 96, 200])
def test_boxes_stay_tight_around_real_shapes(side: int):
    scene = render(3, 7, 96, (4, 4))
    for flip in (0.0, 1.0):
        found = viewer((side,), flip=flip)(scene.image, scene.boxes.astype(np.float64), list(scene.masks), 9)
        assert found.rows.tolist() == list(range(len(scene.boxes)))
        for mask, box in zip(found.masks, found.boxes, strict=True):
            assert set(np.unique(mask)) == {0, 1}
            assert np.abs(tight(mask) - box).max() <= 1.5


@pytest.mark.parametrize("seed", range(8))
def test_anything_goes_in_and_only_sound_objects_come_out(seed: int):
    """Boxes beyond the border, on it, inside out, thin as a hair, not finite."""
    generator = np.random.default_rng(seed)
    height, width = generator.integers(20, 120, 2).tolist()
    boxes = generator.uniform(-30, 150, (40, 4))
    boxes[:20] = np.concatenate([boxes[:20, :2], boxes[:20, :2] + generator.uniform(0, 60, (20, 2))], 1)
    boxes[20:26] = [
        [0, 0, width, height],
        [width, 0, width, height],
        [0, height - 1, width, height],
        [-5, -5, 1e-9, 9],
        [3, 3, 3, 9],
        [np.nan, 1, 5, 5],
    ]
    boxes[26:29] = [[0, 0, width + 1e-9, height + 0.4], [2, 2, 2.999, 9], [1e9, 1e9, 2e9, 2e9]]
    inside = clipped(boxes, np.array([0, 0, width, height]))
    sound = np.flatnonzero(((inside[:, 2:] - inside[:, :2]) >= 1).all(1))
    masks = [np.ones((height, width), np.uint8)] * len(boxes)
    image = noise(height, width)
    for options in (NOTHING, ALL, {**ALL, "crop": 1.0}):
        view = viewer((24, 48), 100, **options)
        for i in range(6):
            found = view(image, boxes, masks, mix(seed, i))
            h, w = found.image.shape[:2]
            assert len(found.boxes) == len(found.rows) == len(found.masks)
            assert (found.boxes.dtype, found.rows.dtype) == (np.float32, np.int64)
            assert (np.diff(found.rows) > 0).all()
            assert np.isin(found.rows, sound).all()
            assert (found.boxes >= 0).all()
            assert (found.boxes <= [w, h, w, h]).all()
            assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
            assert all(mask.shape == (h, w) for mask in found.masks)
            assert found.dropped == len(boxes) - len(sound)
            if options is NOTHING:
                assert np.array_equal(found.rows, sound)
                assert np.allclose(found.boxes, inside[sound] * np.tile([w / width, h / height], 2), atol=1e-3)


@pytest.mark.parametrize("options", [NOTHING, ALL])
@pytest.mark.parametrize("boxes", [np.zeros((0, 4)), np.zeros((0,)), np.array([[5, 5, 5, 9], [80, 5, 90, 9]])])
def test_images_without_objects_are_backgrounds(options: dict, boxes: np.ndarray):
    """None given, or none left."""
    masks = [np.ones((40, 60), np.uint8)] * len(boxes)
    for key in range(5):
        found = viewer(**options)(noise(40, 60), boxes, masks, key)
        assert (found.boxes.shape, found.boxes.dtype) == ((0, 4), np.float32)
        assert (found.rows.shape, found.rows.dtype) == ((0,), np.int64)
        assert found.masks == []
        assert found.dropped == len(boxes)


def test_an_object_that_left_no_pixel_is_dropped_with_its_box():
    masks = [np.zeros((40, 60), np.uint8) for _ in range(3)]
    masks[0][5:9, 5:9] = 1
    masks[2][20:29, 20:29] = 1
    boxes = np.array([[5, 5, 9, 9], [10, 10, 20, 20], [20, 20, 29, 29]])
    found = viewer(**NOTHING)(noise(40, 60), boxes, masks, 0)
    assert (found.rows.tolist(), found.dropped) == ([0, 2], 1)
    assert np.allclose(found.boxes, boxes[[0, 2]] * 2.4, atol=1e-4)
    assert [tight(mask).tolist() for mask in found.masks] == [[12, 12, 22, 22], [48, 48, 70, 70]]
    without = viewer(**NOTHING)(noise(40, 60), boxes, [], 0)
    assert (without.rows.tolist(), without.masks, without.dropped) == ([0, 1, 2], [], 0)


def test_many_rows_come_back_in_order():
    """More rows than a byte counts; each box tells its number."""
    boxes = np.array([[i % 20 * 5, i // 20 * 5, i % 20 * 5 + 4, i // 20 * 5 + 4] for i in range(400)], np.float64)
    found = viewer((100,), flip=1.0)(noise(100, 100), boxes, [], 1)
    assert found.rows.tolist() == list(range(400))
    assert np.allclose(100 - found.boxes[:, 2], boxes[:, 0], atol=1e-4)


def test_crop_windows_halve_nothing():
    generator = np.random.default_rng(0)
    windows, none = [], 0
    for i in range(1500):
        corner = generator.uniform(0, [80, 60], (i % 5, 2))
        boxes = np.concatenate([corner, corner + generator.uniform(1, 20, corner.shape)], 1)
        window = _window(1.0, boxes, 80, 100, i)
        if window is None:
            none += 1
            continue
        inside, whole = area(clipped(boxes, np.array(window))), area(boxes)
        assert ((inside == 0) | (inside >= 0.5 * whole)).all()
        windows.append(window)
    left, top, right, bottom = np.array(windows).T
    assert left.min() == top.min() == 0
    assert (right.max(), bottom.max()) == (100, 80)
    assert none < 15
    part = (right - left) * (bottom - top) / 8000
    assert 0.28 < part.min() < 0.4
    assert part.max() > 0.9
    ratio = (right - left) / (bottom - top) / 1.25
    assert (0.7 < ratio.min() < 0.8, 1.2 < ratio.max() < 1.4) == (True, True)


def test_no_crop_where_none_is_possible():
    """Boxes of 3 x 3 pixels everywhere: of some that lie across the border of a window a third would be left."""
    corner = np.argwhere(np.ones((98, 98)))
    boxes = np.concatenate([corner, corner + 3], 1).astype(np.float64)
    windows = [_window(1.0, boxes, 100, 100, key) for key in range(100)]
    assert all(window is None or (max(window[:2]) <= 1 and min(window[2:]) >= 99) for window in windows)
    assert windows.count(None) > 50
    source = picture(100, 100, 0, 0)
    key = next(key for key in range(200) if _window(1.0, boxes, 100, 100, mix(key, CROP)) is None)
    view = viewer((100,), flip=0.0, crop=1.0)(source.image, boxes, [], key)
    assert np.array_equal(view.image, source.image)
    assert np.allclose(view.boxes, boxes, atol=1e-4)


def test_one_key_one_view():
    source = picture(120, 100, 5, 1)
    one, two = viewer((64, 96), **ALL), viewer((64, 96), **ALL)
    for key in [0, 1, 2**64 - 1, mix(5, 6)]:
        first = one(*source, key)
        one(*source, key + 1 & 2**64 - 1)  # leaves no trace
        for second in (one(*source, key), two(*source, key)):
            assert second.image.tobytes() == first.image.tobytes()
            assert second.boxes.tobytes() == first.boxes.tobytes()
            assert np.array_equal(second.rows, first.rows)
            assert np.array_equal(second.masks, first.masks)


def test_views_do_not_change_what_they_are_given():
    source = picture(120, 100, 5, 1)
    before = [source.image.copy(), source.boxes.copy(), np.array(source.masks)]
    for key in range(8):
        found = viewer(**ALL)(*source, key)
        found.boxes[:] = 0
    assert all(np.array_equal(a, b) for a, b in zip(before, source, strict=True))


def test_no_two_keys_are_alike():
    source = picture(120, 100, 3, 1)
    view = viewer(**ALL)
    images = {view(*source, key).image.tobytes() for key in [0, 1, *(mix(5, epoch, 7) for epoch in range(60))]}
    assert len(images) == 62


def test_draws_are_fair_and_do_not_hang_together():
    """Flip, crop and scale: all eight combinations about equally often."""
    image = picture(40, 60, 0, 1).image
    view = viewer((32, 48), flip=0.5, crop=0.5)
    counts = np.zeros((2, 2, 2), int)
    for i in range(640):
        found = view(image, np.zeros((0, 4)), [], mix(1, i)).image
        left, right = found[0, [0, -1], 0].astype(int)
        top, bottom = found[[0, -1], 0, 1].astype(int)
        flipped = left > right
        cropped = bottom - top < 38 or abs(left - right) < 58
        counts[int(flipped), int(cropped), int(min(found.shape[:2]) == 48)] += 1
    assert counts.sum() == 640
    assert (np.abs(counts - 80) < 5 * np.sqrt(80 * 7 / 8)).all(), counts


def test_flips_and_colours_do_not_hang_together():
    image = np.full((32, 32, 3), 100, np.uint8)
    image[:, :4] = 0
    view = viewer((32,), flip=0.5, colour=0.4)
    found = [view(image, np.zeros((0, 4)), [], mix(4, i)).image for i in range(300)]
    flipped = np.array([one[0, 0, 0] > one[0, -1, 0] for one in found])
    levels = np.array([one[16, 16, 0] for one in found], float)
    assert 110 < flipped.sum() < 190
    error = levels.std() * np.sqrt(1 / flipped.sum() + 1 / (~flipped).sum())
    assert abs(levels[flipped].mean() - levels[~flipped].mean()) < 4 * error


def test_colour_jitter_is_bounded_and_moves_nothing():
    source = picture(96, 96, 4, 2)
    grey = np.full((96, 96, 3), 100, np.uint8)
    levels = []
    for i in range(100):
        found = viewer(flip=0.0, colour=0.4)(grey, source.boxes, source.masks, mix(2, i))
        assert (found.image == found.image[0, 0, 0]).all()  # no hue, no noise
        levels.append(int(found.image[0, 0, 0]))
        assert np.allclose(found.boxes, source.boxes[found.rows], atol=1e-4)
    assert 55 <= min(levels) < 75  # contrast turns about the image's own mean
    assert 125 < max(levels) <= 145
    assert np.mean(levels) == pytest.approx(100, abs=8)


def test_only_the_adapter_knows_albumentations():
    package = Path(detection.__file__).parent
    knows = [path for path in package.rglob("*.py") if "import albumentations" in path.read_text()]
    assert [str(path.relative_to(package)) for path in knows] == ["data/augment.py"]
