"""Masks as patches against their planes: as they are read, and as OpenCV and albumentations vary planes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from backbone.data.stream import MicroBatches, mix
from detection.data.annotated import AnnotatedSource
from detection.data.augment import (
    COLOUR,
    CROP,
    FLIP,
    SCALE,
    _overlap,
    _window,
    clip,
    jittered,
    target_size,
    training_view,
)
from detection.data.coco import open_coco
from detection.data.loader import TrainSet, planes, train_loader
from detection.data.options import CocoData, DetectionAugment
from detection.data.patches import Patch, patch_of, patched
from detection.data.segments import patches
from detection.data.share import Share
from detection.data.voc_segments import open_segments
from tests.backbone.data.making import kept
from tests.detection.data.making import make_coco, of_planes
from tests.detection.data.test_label_map import write_voc

KINDS: dict[str, dict[str, Any]] = {
    "flip": {"flip": 1.0},
    "half": {"flip": 0.5},
    "crop and colour": {"flip": 0.5, "crop": 1.0, "colour": 0.4},
    "canvas": {"flip": 0.5, "canvas": 64},
    "small on a canvas": {"flip": 0.5, "canvas": 96, "scales": (0.05, 0.4), "colour": 0.3},
}


def shapes(height: int, width: int, num: int, seed: int) -> list[np.ndarray]:
    """Ellipses that reach beyond the borders, noise, all of the image, one pixel, one column, and nothing."""
    draws = np.random.default_rng(seed)
    made = [np.zeros((height, width), np.uint8) for _ in range(num + 5)]
    for mask in made[:num]:
        x, y, a, b = (int(draws.integers(0, max(side, 1))) for side in (width, height, width // 2, height // 2))
        cv2.ellipse(mask, ((x, y), (a, b), float(draws.integers(0, 180))), (1,), -1)
    made[num] = draws.integers(0, 2, (height, width), np.uint8)
    made[num + 1][:] = 1
    made[num + 2][height - 1, width - 1] = 1
    made[num + 3][:, width // 2] = 1
    return made


@pytest.mark.parametrize(("height", "width"), [(40, 60), (61, 33), (1, 50), (50, 1)])
def test_run_lengths_become_patches_with_pycocotools_pixels(height: int, width: int):
    masks = shapes(height, width, 6, height)
    encoded = [rle.encode(np.asfortranarray(mask)) for mask in masks]
    rings = [[[3.3, 2.2, width * 0.7, 1.1, width + 4, height - 0.5]], [[0, 0, 5, 0, 5, 9], [-3, 4, 20, 9, 7, 30]]]
    encoded += [rle.merge(rle.frPyObjects(one, height, width)) for one in rings]
    found = patches(encoded, height)
    assert len(found) == len(encoded)
    for patch, one in zip(found, encoded, strict=True):
        expected = rle.decode(one)
        assert np.array_equal(patch.plane(height, width), expected)
        assert patch.pixels.size <= max(cv2.boundingRect(expected)[2] * cv2.boundingRect(expected)[3], 0)
    assert patches([], height) == []


@pytest.mark.parametrize(
    ("runs", "shown"),
    [
        ([2000, 0], []),
        ([0, 0, 2000], []),
        ([4, 0, 1996], []),
        ([0, 0, 45, 3, 1952], [45, 46, 47]),
        ([9, 0, 1, 2, 1988], [10, 11]),
    ],
)
def test_runs_of_no_pixels_show_nothing(runs: list[int], shown: list[int]):
    """As some tools write them. pycocotools' own boxes of them lie outside of the image."""
    encoded = rle.frPyObjects({"size": [40, 50], "counts": runs}, 40, 50)
    (patch,) = patches([encoded], 40)
    assert np.flatnonzero(patch.plane(40, 50).T).tolist() == shown
    assert (patch.plane(40, 50) == rle.decode(encoded)).all()


@pytest.mark.parametrize("seed", range(4))
def test_what_is_done_with_patches_is_what_is_done_with_planes(seed: int):
    draws = np.random.default_rng(seed)
    height, width = (int(side) for side in draws.integers(20, 90, 2))
    for mask in shapes(height, width, 5, seed):
        patch = patch_of(mask)
        assert np.array_equal(patch.plane(height, width), mask)
        assert np.array_equal(patch.mirrored(width).plane(height, width), mask[:, ::-1])
        for target in [(height, width), *map(tuple, draws.integers(1, 200, (6, 2)).tolist())]:
            resized = cv2.resize(mask, target[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            assert np.array_equal(patch.resized((height, width), target).plane(*target), resized)
        for _ in range(6):
            left, right = sorted(draws.choice(width + 1, 2, replace=False).tolist())
            top, bottom = sorted(draws.choice(height + 1, 2, replace=False).tolist())
            part = patch.cut((left, top, right, bottom))
            assert np.array_equal(part.plane(bottom - top, right - left), mask[top:bottom, left:right])
            if part.pixels.any():
                x, y, w, h = cv2.boundingRect(mask[top:bottom, left:right])
                assert part.around().tolist() == [x, y, x + w, y + h]


def by_albumentations(options: DetectionAugment, shorter_side: tuple[int, ...], longer: int) -> Callable[..., Any]:
    """What `training_view` writes out: albumentations' pipeline over whole planes, boxes around what a canvas cuts."""

    def view(image: np.ndarray, boxes: np.ndarray, masks: list[np.ndarray], key: int, classes: np.ndarray) -> Any:
        height, width = image.shape[:2]
        boxes, rows = clip(boxes, height, width)
        degenerate, size, steps = len(boxes) - len(rows), None, {}
        if options.canvas:
            window, size = jittered(options.canvas, options.scales, height, width, mix(key, SCALE))
        else:
            window = _window(options.crop, boxes[rows], height, width, mix(key, CROP))
        if window is not None:
            steps[CROP] = A.Crop(*window)
            rows = rows[_overlap(boxes[rows], window) > 0]
            height, width = window[3] - window[1], window[2] - window[0]
        steps[FLIP] = A.HorizontalFlip(p=options.flip)
        if options.colour:
            steps[COLOUR] = A.ColorJitter(*[(1 - options.colour, 1 + options.colour)] * 3, hue=0, p=1)
        steps[SCALE] = A.Resize(
            *(size or target_size(height, width, shorter_side[mix(key, SCALE) % len(shorter_side)], longer)),
            interpolation=cv2.INTER_LINEAR,
            mask_interpolation=cv2.INTER_NEAREST_EXACT,
            area_for_downscale="image",
        )
        how = A.BboxParams("pascal_voc", label_fields=["rows"], clip=True, filter_invalid_bboxes=True)
        compose = A.Compose(list(steps.values()), bbox_params=how)
        for number, step in steps.items():
            step.set_random_seed(mix(key, number))
        given = {"masks": [masks[row] for row in rows], "mask": classes}
        found = compose(image=image, bboxes=boxes[rows], rows=rows, **given)
        new = np.asarray(found["bboxes"], np.float32).reshape(-1, 4)
        left = np.asarray(found["rows"], np.int64)
        seen = [found["masks"][place] for place in np.searchsorted(rows, left)]
        kept = [i for i in range(len(left)) if (new[i, 2:] > new[i, :2]).all() and seen[i].any()]
        new, left, seen, dropped = new[kept], left[kept], [seen[i] for i in kept], degenerate + len(rows) - len(kept)
        if options.canvas and window:
            whole = (boxes[left, 2:] - boxes[left, :2]).prod(1)
            for place in np.flatnonzero(_overlap(boxes[left], window) < whole):
                x, y, w, h = cv2.boundingRect(seen[place])
                new[place] = [x, y, x + w, y + h]
        return found["image"], new, left, seen, dropped, found["mask"]

    return view


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_is_albumentations_to_the_bit(kind: str):
    options = DetectionAugment(**KINDS[kind])
    mine = of_planes(training_view(options, (48, 64, 90), 110))
    theirs = by_albumentations(options, (48, 64, 90), 110)
    objects = 0
    for seed in range(30):
        draws = np.random.default_rng(seed)
        height, width = (int(side) for side in draws.integers(30, 120, 2))
        masks = shapes(height, width, 8, seed)
        boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in map(cv2.boundingRect, masks)], np.float64)
        boxes += draws.uniform(-2, 2, boxes.shape) * (draws.random(len(boxes)) < 0.7)[:, None]
        image = draws.integers(0, 256, (height, width, 3), np.uint8)
        classes = draws.integers(0, 256, (height, width), np.uint8)
        found = mine(image, boxes, masks, mix(seed), classes=classes)
        expected = theirs(image, boxes, masks, mix(seed), classes)
        got = (found.image, found.boxes, found.rows, found.masks, found.dropped, found.classes)
        for one, two in zip(got, expected, strict=True):
            assert np.array_equal(one, two)
        objects += len(found.rows)
    assert objects > 100


def test_sources_give_the_same_masks_either_way(tmp_path: Path):
    """Polygons, several of one object, run lengths written out and compressed, shares, and label maps."""
    coco = open_coco(str(make_coco(tmp_path / "coco")))
    maps = open_segments(f"{write_voc(tmp_path / 'VOC', 'train', 4)}:train")
    for source in (coco, Share(coco, 0.75), maps):
        number = 0
        for i in range(len(source)):
            expected = source.objects(i, masks=True)
            objects, found = patched(source, i)
            assert objects.masks == []
            assert np.array_equal(objects.boxes, expected.boxes)
            assert np.array_equal(objects.labels, expected.labels)
            height, width = source.sizes[i].tolist()
            assert np.array_equal([one.plane(height, width) for one in found], expected.masks)
            number += len(found)
        assert number


class Planes(AnnotatedSource):
    """COCO that knows planes alone."""

    patched: Any = property()


@pytest.mark.parametrize("augment", [{"flip": 0.5}, {"crop": 1.0}, {"canvas": 96, "paste": 0.7}])
def test_batches_of_run_lengths_are_batches_of_planes(tmp_path: Path, augment: dict[str, Any]):
    images = str(make_coco(tmp_path))
    data = CocoData(train=images, val=images, shorter_side=(48,), longer_side=96, workers=0)
    data = data.model_copy(update={"augment": DetectionAugment(**augment)})
    source = open_coco(images)
    dense = Planes(*source.__reduce__()[1])
    assert not hasattr(dense, "patched")
    sets = [TrainSet(one, data, 3, 4, 2, True, (1, 2, 3)) for one in (source, dense)]
    found, expected = (kept(train_loader(one, MicroBatches(4, 2, 0, 1, 0, 6))) for one in sets)
    for one, two in zip(found, expected, strict=True):
        assert np.array_equal(planes(one, one["images"]), planes(two, two["images"]))
        assert all(np.array_equal(one[name], two[name]) for name in ("images", "boxes", "labels", "counts", "sizes"))
    assert sum(len(batch["patches"]) for batch in found) > 20


def test_an_empty_patch_goes_through_everything():
    nothing = patch_of(np.zeros((9, 7), np.uint8)).cut((1, 1, 5, 6)).mirrored(4).resized((5, 4), (10, 16))
    assert isinstance(nothing, Patch)
    assert not nothing.plane(10, 16).any()
