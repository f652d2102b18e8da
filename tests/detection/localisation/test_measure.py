"""The challenge's error, worked out by hand and by counting pixels."""

import numpy as np
import pytest

from detection.localisation.measure import is_found

TRUTH = np.array([[0.0, 0, 10, 10], [50, 50, 70, 60]])  # two objects of class 3


def found(*guesses: tuple[int, tuple[float, float, float, float]]) -> bool:
    return is_found(3, TRUTH, [label for label, _ in guesses], np.array([box for _, box in guesses], float))


HALF = (0, 0, 10, 5)  # IoU 50 / 100


@pytest.mark.parametrize(
    ("guesses", "right"),
    [
        ([(3, (0, 0, 10, 10))], True),
        ([(3, HALF)], True),  # 0.5 is enough: the devkit's error is `ov < 0.5`
        ([(3, (0, 0, 10, 4.999))], False),
        ([(3, (0, 0, 20, 10))], True),  # 100 / 200
        ([(3, (0, 0, 20.1, 10))], False),
        ([(4, (0, 0, 10, 10))], False),  # the box alone is not enough
        ([(3, (50, 50, 70, 60))], True),  # any of several instances
        ([(3, (0, 0, 70, 60))], False),  # not both at once: 100 / 4200 and 200 / 4200
        ([(3, (200, 200, 210, 210))], False),
        ([(1, HALF), (2, HALF), (4, HALF), (5, HALF), (3, HALF)], True),  # the fifth counts
        ([(1, HALF), (2, HALF), (4, HALF), (5, HALF), (6, HALF), (3, HALF)], False),  # the sixth does not
        ([(3, (90, 90, 95, 95)), (1, HALF), (3, HALF)], True),  # a class may be guessed twice
        ([(3, (5, 5, 5, 9))], False),  # an empty box
    ],
)
def test_by_hand(guesses: list, right: bool) -> None:
    assert found(*guesses) is right


def test_fewer_guesses_may_count() -> None:
    boxes = np.array([HALF, HALF], float)
    assert not is_found(3, TRUTH, [1, 3], boxes, guesses=1)
    assert is_found(3, TRUTH, [1, 3], boxes, guesses=2)


def test_overlap_is_that_of_the_pixels_the_devkit_counts() -> None:
    """xmin to xmax, both included, counted from 1; ours are x1 = xmin - 1, x2 = xmax."""
    rng = np.random.default_rng(0)

    def pixels(box: np.ndarray) -> set[tuple[int, int]]:
        x1, y1, x2, y2 = box.tolist()
        return {(x, y) for x in range(x1, x2 + 1) for y in range(y1, y2 + 1)}

    corners = rng.integers(1, 12, (40, 2, 2))
    inclusive = np.concatenate([corners.min(1), corners.max(1)], 1)
    ours = (inclusive - [1, 1, 0, 0]).astype(float)
    pairs = [(i, j) for i in range(40) for j in range(40)]
    expected = [2 * len(pixels(a) & pixels(b)) >= len(pixels(a) | pixels(b)) for a in inclusive for b in inclusive]
    assert [is_found(3, ours[i : i + 1], [3], ours[j : j + 1]) for i, j in pairs] == expected
    assert 40 < sum(expected) < 800
