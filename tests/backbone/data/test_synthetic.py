"""Synthetic scenes: pure, exact and balanced."""

import multiprocessing
import pickle

import numpy as np
import pytest

from backbone.data import synthetic
from backbone.data.sources import Source, check_splits
from backbone.data.synthetic import CLASSES, HIDDEN, OUTLINES, Scene, SyntheticSource, labels_of, render

MANY = [render(3, i, 96, (2, 6)) for i in range(60)]


def arguments() -> list[tuple]:
    return [(7, i, size, objects) for i in range(4) for size, objects in ((32, (1, 1)), (64, (1, 1)), (160, (2, 5)))]


def same(one: Scene, two: Scene) -> bool:
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(one, two, strict=True))


def test_a_scene_depends_on_its_arguments_alone():
    first = [render(*one) for one in arguments()]
    np.random.seed(1)
    again = [render(*one) for one in reversed(arguments())][::-1]
    assert all(map(same, first, again))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        elsewhere = pool.starmap(render, arguments())
    assert all(map(same, first, elsewhere))
    images = [render(seed, index, 64).image.tobytes() for seed in range(4) for index in range(30)]
    assert len(set(images)) == len(images)


def test_shapes_and_dtypes():
    for size, objects in ((32, (1, 1)), (64, (1, 1)), (200, (3, 3))):
        scene = render(0, 5, size, objects)
        count = len(scene.labels)
        assert count == objects[0]
        assert (scene.image.shape, scene.image.dtype) == ((size, size, 3), np.uint8)
        assert (scene.boxes.shape, scene.boxes.dtype) == ((count, 4), np.float32)
        assert (scene.labels.shape, scene.labels.dtype) == ((count,), np.int64)
        assert (scene.masks.shape, scene.masks.dtype) == ((count, size, size), np.uint8)
        assert set(np.unique(scene.masks)) == {0, 1}
    assert {len(scene.labels) for scene in MANY} == {2, 3, 4, 5, 6}


def test_boxes_are_tight_around_masks():
    for scene in MANY:
        for box, mask in zip(scene.boxes, scene.masks, strict=True):
            y, x = np.nonzero(mask)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_masks_share_no_pixel_and_objects_stay_visible():
    whole_areas = []
    for scene in MANY:
        assert scene.masks.sum(0).max() <= 1
        whole_areas += [mask.sum() for mask in scene.masks]
    assert min(whole_areas) >= 20


def test_objects_hide_at_most_the_promised_part(monkeypatch):
    whole = []
    paint = synthetic._paint

    def remember(draws, patch, cover, *rest):
        whole.append(int((cover > 127).sum()))
        paint(draws, patch, cover, *rest)

    monkeypatch.setattr(synthetic, "_paint", remember)
    shown = []
    for i, scene in enumerate(MANY):
        whole.clear()
        assert same(render(3, i, 96, (2, 6)), scene)
        assert len(whole) == len(scene.masks)
        shown += [mask.sum() / area for mask, area in zip(scene.masks, whole, strict=True)]
    assert 1 - HIDDEN <= min(shown) < 1  # some are hidden in part
    assert max(shown) == 1


def test_mask_covers_what_was_painted(monkeypatch):
    """Without the object the same scene differs inside the mask and, but for soft edges, nowhere else."""
    with_object = render(5, 11, 128)
    paint = synthetic._paint

    def blank(draws, patch, *rest):
        paint(draws, patch.copy(), *rest)

    monkeypatch.setattr(synthetic, "_paint", blank)
    without = render(5, 11, 128)
    changed = np.abs(with_object.image.astype(int) - without.image).max(2) > 24
    mask = with_object.masks[0].astype(bool)
    assert changed[mask].mean() > 0.8
    assert changed[~mask].sum() < 0.1 * mask.sum()


def test_sizes_span_a_quarter_to_four_fifths():
    sides = [(box[2:] - box[:2]).max() / 96 for i in range(200) for box in render(6, i, 96).boxes]
    assert 0.18 < min(sides) < 0.3  # a turned triangle or star is narrower than its circumcircle
    assert 0.7 < max(sides) < 0.83


@pytest.mark.parametrize(("shape", "area"), [(0, np.pi), (1, 2.0), (2, 3 * 3**0.5 / 4), (4, np.pi * 0.75)])
def test_outlines_have_the_area_of_their_shape(shape, area):
    radius = 40.0
    cover = synthetic._cover(OUTLINES[shape], 50.3, 49.6, radius, 0.7, 100, 100)
    assert cover.sum() / 255 / radius**2 == pytest.approx(area, rel=0.03)


def test_labels_are_known_without_rendering_and_balanced():
    source = SyntheticSource(0, 1200, 48)
    assert np.bincount(source.labels, minlength=12).tolist() == [100] * 12
    assert [int(source.scene(i).labels[0]) for i in range(40)] == source.labels[:40].tolist()
    assert labels_of(9, np.arange(50, 60)).tolist() == labels_of(9, np.arange(60))[50:].tolist()
    others = np.concatenate([scene.labels[1:] for scene in MANY])
    assert set(others.tolist()) == set(range(12))


def test_classes_are_shape_times_texture():
    assert len(CLASSES) == 12
    assert CLASSES[0] == "disc-stripes"
    assert len({name.split("-")[0] for name in CLASSES}) == 6
    assert {name.split("-")[1] for name in CLASSES} == {"stripes", "dots"}


def test_splits_and_seeds_share_nothing():
    images = [
        SyntheticSource(seed, 50, 32, split).image(i).tobytes()
        for seed in (0, 1)
        for split in ("train", "val")
        for i in range(50)
    ]
    assert len(set(images)) == 200
    train, val = SyntheticSource(0, 50, 32, "train"), SyntheticSource(0, 50, 32, "val")
    assert train.fingerprint != val.fingerprint
    assert train.labels.tolist() != val.labels.tolist()
    check_splits(train, val)


def test_is_a_source():
    source: Source = SyntheticSource(2, 30, 40)
    assert len(source) == 30
    assert source.image(4).shape == (40, 40, 3)
    assert "scene 4" in source.name(4)
    assert len(pickle.dumps(source)) < 300
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint
    assert (copy.image(29) == source.image(29)).all()
    prints = {SyntheticSource(*one).fingerprint for one in ((2, 30, 40), (2, 31, 40), (2, 30, 41), (3, 30, 40))}
    assert len(prints) == 4
    for outside in (-1, 30):
        with pytest.raises(IndexError):
            source.image(outside)


def test_nuisances_do_not_tell_the_class():
    """Means of colour, place and size per texture, and of colour and place per shape, differ by chance only."""
    source = SyntheticSource(4, 600, 32)
    scenes = [source.scene(i) for i in range(len(source))]
    facts = np.stack(
        [np.append(scene.image.mean((0, 1)), (scene.boxes[0, :2] + scene.boxes[0, 2:]) / 2) for scene in scenes]
    )
    for group in (source.labels % 2, source.labels // 2):
        for one in np.unique(group):
            mine, rest = facts[group == one], facts[group != one]
            error = np.sqrt(mine.var(0) / len(mine) + rest.var(0) / len(rest))
            assert (np.abs(mine.mean(0) - rest.mean(0)) < 4 * error).all()
