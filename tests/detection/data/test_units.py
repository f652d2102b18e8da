"""Boxes that are not in pixels or not in the format's order: whole data sets of them, and sound ones that look odd."""

import numpy as np
import pytest

from detection.data.units import corners_given, in_fractions, misfits, sides_given

NONE = np.full((1, 4), np.nan)


def drawn(rng: np.random.Generator, num: int, size: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Boxes x1 y1 x2 y2 anywhere in images of `size`, and the sizes."""
    corners = np.sort(rng.uniform(0, size, (num, 2, 2)), axis=1)
    corners[:, 1] += 2
    return np.minimum(corners.reshape(num, 4), size), np.full((num, 2), size)


def sides(corners: np.ndarray) -> np.ndarray:
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("witness", ["masks", "areas", "borders"])
def test_corners_are_told_from_sides(seed: int, witness: str) -> None:
    """Of 12 boxes anywhere; each witness alone."""
    corners, sizes = drawn(np.random.default_rng(seed), 12)
    extents = corners if witness == "masks" else np.repeat(NONE, 12, 0)
    areas = sides(corners)[:, 2:].prod(1) if witness == "areas" else np.full(12, np.nan)
    assert corners_given(corners, sizes, extents, areas).sum() > 6
    assert not corners_given(sides(corners), sizes, extents, areas).any()


def test_two_boxes_are_enough_with_their_masks() -> None:
    corners = np.array([[4.0, 4, 24, 24], [10, 8, 40, 38]])
    sizes = np.array([[48, 64], [48, 64]])
    areas = np.array([400.0, 900.0])
    assert corners_given(corners, sizes, corners, areas).all()
    assert corners_given(corners, sizes, np.repeat(NONE, 2, 0), areas).all()
    assert not corners_given(sides(corners), sizes, corners, areas).any()


def test_sound_boxes_that_look_like_corners() -> None:
    """Large ones from the upper left that reach outside: but not all of them, or not far."""
    sizes = np.full((4, 2), 100)
    no_masks, no_areas = np.repeat(NONE, 4, 0), np.full(4, np.nan)
    boxes = np.array([[0.0, 0, 100, 100], [2, 2, 99, 99], [1, 40, 99, 70], [10, 10, 20, 20]])
    assert not corners_given(boxes, sizes, no_masks, no_areas).any()
    boxes[2] = [60, 60, 50, 50]
    assert not corners_given(boxes, sizes, no_masks, no_areas).any()
    assert not corners_given(boxes[:0], sizes[:0], no_masks[:0], no_areas[:0]).any()
    assert not corners_given(np.full((4, 4), np.inf), sizes, no_masks, no_areas).any()


def test_fractions() -> None:
    boxes = np.array([[0.1, 0.2, 0.5, 0.5], [0, 0, 1, 1], [0, 0, 5, 0.5], [-1, 0, 0.5, 0.5], [np.nan] * 4])
    assert in_fractions(boxes).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("seed", range(20))
def test_sides_are_told_from_corners(seed: int) -> None:
    corners, sizes = drawn(np.random.default_rng(seed), 12)
    assert sides_given(sides(corners), sizes).sum() > 6
    assert not sides_given(corners, sizes).any()
    slips = corners.copy()
    slips[:2] = slips[:2, [2, 3, 0, 1]]  # two drawn from the lower right
    assert not sides_given(slips, sizes).any()


def test_boxes_beside_their_masks() -> None:
    extents = np.array([[10.0, 10, 50, 50], [10, 10, 50, 50], [10, 10, 12, 12], [np.nan] * 4, [80, 80, 140, 140]])
    boxes = np.array([[9.0, 9, 42, 42], [2, 2, 8, 8], [50, 50, 9, 9], [1, 1, 2, 2], [80, 80, 20, 20]])
    wrong, compared = misfits(boxes, np.full((5, 2), 100), extents)
    assert wrong.tolist() == [False, True, False, False, False]
    assert compared.tolist() == [True, True, False, False, True]
