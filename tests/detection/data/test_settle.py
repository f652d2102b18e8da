"""What readers and doctor decide alike."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle

from backbone.data.findings import Findings
from detection.data.segments import flatten, outlines
from detection.data.settle import add_alike, add_rows, flag, given_twice, settle_areas
from tests.detection.data.making import blob, compressed


@pytest.mark.parametrize("value", [1, 1.0, True, "1", " 1 ", "1.0", "true", "True", "YES", "y", "on"])
def test_marks_that_are_set(value: Any) -> None:
    assert flag(value) is True


UNSET = "0 0.0 -1 false FALSE no None nan Unspecified unknown N/A null off".split()


@pytest.mark.parametrize("value", [0, 0.0, -0.0, False, -1, -1.0, None, float("nan"), "", " ", *UNSET])
def test_marks_that_are_not_set(value: Any) -> None:
    assert flag(value) is False


@pytest.mark.parametrize("value", [2, 0.5, -2, 10**400, float("inf"), "2", "maybe", "0,0", [], [1], {}, "1 0"])
def test_marks_that_say_neither(value: Any) -> None:
    assert flag(value) is None


SQUARE = [[4.0, 4.0, 24.0, 4.0, 24.0, 24.0, 4.0, 24.0]]
DIAGONAL = [[0.0, 0.0, 2.0, 0.0, 60.0, 39.0, 60.0, 40.0, 58.0, 40.0, 0.0, 1.0]]  # thin: 4 % of its box


def settled(written: list[float], boxes: list[list[float]], polygons: list[Any]) -> tuple[list[float], list[bool]]:
    segments = flatten(polygons, [b""] * len(polygons))
    sizes = np.tile([[40, 60]], (len(polygons), 1))
    masks, _ = outlines(segments, sizes)
    areas, impossible = settle_areas(np.array(written), np.array(boxes), sizes, masks, segments)
    return areas.tolist(), impossible.tolist()


@pytest.mark.parametrize("written", [400.0, 399.2, 441.0, 390.0, 300.0])
def test_an_area_that_can_be_meant_is_taken(written: float) -> None:
    """Also that of the box with a row of pixels more, of a mask with a hole, and of nothing but a box."""
    assert settled([written], [[4, 4, 20, 20]], [SQUARE]) == ([written], [False])
    assert settled([written], [[4, 4, 20, 20]], [[]]) == ([written], [False])


@pytest.mark.parametrize("written", [0.0, -1.0, -400.0, float("nan"), float("inf"), float("-inf")])
def test_an_area_that_is_none_is_computed(written: float) -> None:
    half = [[4.0, 4.0, 24.0, 4.0, 4.0, 24.0]]
    drawn = float(rle.area(rle.merge(rle.frPyObjects(half, 40, 60))))
    assert 150 < drawn < 250
    areas, impossible = settled([written, written, written], [[4, 4, 20, 20]] * 3, [half, [], SQUARE])
    assert (areas, impossible) == ([drawn, 400.0, 400.0], [False] * 3)


@pytest.mark.parametrize("written", [400 / (40 * 60), 1e12, 1600.0, 4.0])
def test_an_area_in_other_units_is_computed(written: float) -> None:
    """Fractions of the image, anything huge, the image before it was halved, percent times a fraction."""
    areas, impossible = settled([400.0, 400.0, written], [[4, 4, 20, 20]] * 3, [SQUARE] * 3)
    assert (areas, impossible) == ([400.0] * 3, [False, False, True])


def test_a_thin_object_has_a_small_area_and_a_large_box() -> None:
    drawn = float(rle.area(rle.merge(rle.frPyObjects(DIAGONAL, 40, 60))))
    assert drawn < 0.1 * 2400
    assert settled([drawn], [[0, 0, 60, 40]], [DIAGONAL]) == ([drawn], [False])
    assert settled([drawn], [[0, 0, 60, 40]], [[]]) == ([drawn], [False])


def test_where_most_areas_are_impossible_all_are_computed() -> None:
    """0.2 of an image of 10 pixels may be a pixel's area; beside others it is a fraction."""
    boxes = [[4, 4, 20, 20], [4, 4, 20, 20], [4, 4, 1.5, 1.5]]
    assert settled([400 / 2400, 400 / 2400, 0.9], boxes, [[], [], []]) == ([400, 400, 2.25], [True] * 3)
    assert settled([400, 400, 0.9], boxes, [[], [], []]) == ([400, 400, 0.9], [False] * 3)


def test_a_mask_without_pixels_leaves_the_box() -> None:
    outside = [[70.0, 5.0, 90.0, 5.0, 90.0, 9.0]]
    assert settled([0.0], [[4, 4, 20, 20]], [outside]) == ([400.0], [False])
    assert settled([0.0], [[4, 4, -20, 20]], [[]]) == ([0.0], [False])


def test_outlines_are_those_of_the_masks_drawn() -> None:
    rng = np.random.default_rng(0)
    discs = [blob(200, 300, *map(int, rng.integers(60, 140, 2)), int(radius)) for radius in rng.integers(20, 60, 5)]
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    rings = [
        np.stack([100 + x + radius * np.cos(angles), 90 + radius * np.sin(angles)], 1).ravel().tolist()
        for x, radius in ((0, 30), (20, 50), (80, 60))
    ]
    polygons = [*([one] for one in rings), [rings[0], rings[2]], []] + [[]] * 5
    counts = [b""] * 5 + [compressed(disc)["counts"].encode() for disc in discs]
    areas, extents = outlines(flatten(polygons, counts), np.tile([[200, 300]], (10, 1)))
    assert np.isnan(extents[4]).all()
    assert areas[4] == 0
    for j, one in enumerate(polygons):
        if j == 4:
            continue
        drawn = rle.merge(rle.frPyObjects(one, 200, 300)) if one else rle.encode(np.asfortranarray(discs[j - 5]))
        x, y, width, height = rle.toBbox(drawn).tolist()
        assert np.abs(extents[j] - [x, y, x + width, y + height]).max() <= 1.5
        if j != 3:  # its rings overlap
            assert areas[j] == pytest.approx(float(rle.area(drawn)), rel=0.03)
    assert areas[3] == pytest.approx(areas[0] + areas[2])


def test_objects_given_twice() -> None:
    image = np.array([0, 0, 0, 1, 0, 0])
    labels = np.array([1, 2, 1, 1, 1, 1])
    boxes = np.array([[1, 1, 5, 5.0]] * 4 + [[1, 1, 5, 6.0]] + [[1, 1, 5, 5.0]])
    assert given_twice(image, labels, boxes).tolist() == [[0, 2], [2, 5]]
    boxes[:] = np.nan
    assert given_twice(image, labels, boxes).tolist() == []
    assert given_twice(image[:0], labels[:0], boxes[:0]).tolist() == []


def test_names_that_look_alike() -> None:
    findings = Findings()
    add_alike(findings, ["dog", "Dog", "traffic light", "Traffic_Light ", "caf\u00e9", "cafe\u0301", "cat", "a", "b"])
    (finding,) = findings.sorted()
    assert (finding.severity, finding.count) == ("warning", 3)
    assert finding.examples[0] == "'dog' and 'Dog'"


def test_rows_are_counted_and_the_first_named() -> None:
    findings = Findings()
    rows = np.arange(20) % 2 == 1
    add_rows(findings, "warning", ("odd", "mend"), rows, lambda j: j)
    add_rows(findings, "warning", ("none", "mend"), rows & False, lambda j: 1 / 0)
    (finding,) = findings.sorted()
    assert (finding.what, finding.count, finding.examples) == ("odd", 10, ["1", "3", "5", "7", "9"])
    assert finding.as_line() == "10 odd (1, 3, 5, 7, 9, ...): mend"
