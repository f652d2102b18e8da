"""The intervals against closed forms, and against simulations whose truth is known."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from detection.report import intervals
from detection.report.intervals import Noise


def rows_of(
    rng: np.random.Generator, counts: Sequence[int], images: float, taste: float, training: float, draws: int = 200
) -> list[np.ndarray]:
    """Rows [n, 1 + draws] of the normal model, whose truth is 0. Three standard deviations: of the images, common to
    all trainings of all rows, of how each training takes to them, and of the trainings.

    The draws vary about what is seen as what is seen varies about the truth, which is a bootstrap's idea.
    """
    common = images * rng.normal(size=1 + draws)
    rows = []
    for n in counts:
        seen = common + taste * rng.normal(size=(n, 1 + draws))
        seen[:, 0] += training * rng.normal(size=n)
        seen[:, 1:] += seen[:, :1]
        rows.append(seen)
    return rows


def test_one_row_of_one_noise_is_students_interval() -> None:
    values = np.array([0.31, 0.35, 0.30, 0.36])
    row = np.repeat(values[:, None], 50, axis=1)  # images change nothing
    half, degrees = intervals.margin(intervals.noise([row], 200), (1,))
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert degrees == pytest.approx(3)
    assert (values.mean() - half, values.mean() + half) == pytest.approx((low, high))


def test_what_each_training_sees_in_the_images_counts_once() -> None:
    """The variance of a mean is G + S² / n: not the images' variance of the mean, and S² / n on top of it."""
    rng = np.random.default_rng(0)
    (row,) = rows_of(rng, [6], images=1.0, taste=2.0, training=0.0, draws=100_000)
    noise = intervals.noise([row], 500)
    assert noise.images[0, 0] == pytest.approx(1.0, rel=0.05)
    assert intervals.noise_of_images([row], 500).images[0, 0] == pytest.approx(1 + 4 / 6, rel=0.05)
    assert noise.trainings[0] == pytest.approx(row[:, 0].var(ddof=1) / 6)


def test_what_is_common_to_rows_leaves_their_difference() -> None:
    rng = np.random.default_rng(0)
    rows = rows_of(rng, [3, 3], images=5.0, taste=0.1, training=0.1)
    noise = intervals.noise(rows, 200)
    assert intervals.margin(noise, (1, -1))[0] < 1
    assert intervals.margin(noise, (1, 0))[0] > 5


def test_nested_pretrainings_count_as_one_each() -> None:
    values = np.arange(12.0).reshape(1, 6, 2)
    units = intervals.units(values, [7, 7, 8, 8, 9, 9])
    np.testing.assert_array_equal(units[0, :, 0], [1, 5, 9])
    uneven = intervals.units(values, [7, 8, 8, 8, 8, 8])  # some fine-tunings failed
    np.testing.assert_array_equal(uneven[0, :, 0], [0, 6])
    for alone in ([7] * 6, [None] * 6):
        np.testing.assert_array_equal(intervals.units(values, alone), values)


def test_one_training_has_no_joint_interval() -> None:
    rng = np.random.default_rng(0)
    rows = rows_of(rng, [1, 4], 1, 1, 1)
    noise = intervals.noise(rows, 100)
    for weights in ((1, 0), (1, -1)):
        half, degrees = intervals.margin(noise, weights)
        assert np.isnan(half)
        assert np.isnan(degrees)
        assert intervals.around(0.3, half) is None
        assert intervals.trainings_for(0.1, noise, weights) is None
    assert intervals.margin(noise, (0, 1))[0] > 0
    assert intervals.ratio(1.0, 9.0, noise) is None


@pytest.mark.parametrize("base", [0.3, 0.05, 0.004])
def test_a_ratio_agrees_with_the_difference_at_every_level(base: float) -> None:
    """1 lies in the ratio's interval where 0 lies in the difference's, and there is none where the base may be 0."""
    noise = Noise(np.array([[4e-5, 1e-5], [1e-5, 4e-5]]), np.array([5e-5, 3e-5]), np.array([3, 4]), 200)
    half, _ = intervals.margin(noise, (1, -1))
    given = 0
    for value in base + half * np.array([-1.01, -0.99, 0.99, 1.01]):
        span = intervals.ratio(float(value), base, noise)
        if span is None:
            assert base - intervals.margin(noise, (0, 1))[0] <= intervals.LEAST * base
            continue
        given += 1
        assert span.low < value / base < span.high
        assert (span.low <= 1 <= span.high) == (abs(value - base) <= half)
        for end in (span.low, span.high):  # where it ends, value - r base is just at its own margin
            assert abs(value - end * base) == pytest.approx(intervals.margin(noise, (1, -end))[0], rel=1e-6)
    assert given == (4 if base > 0.04 else 0)


def test_a_base_that_is_all_but_unknown_has_no_ratio() -> None:
    """Where the base's interval leaves it 5 % of its value, ratios would be told from -60 to thousands of percent."""
    noise = Noise(np.diag([4e-5, 4e-5]), np.array([5e-5, 3e-5]), np.array([3, 4]), 200)
    half, _ = intervals.margin(noise, (0, 1))
    assert intervals.ratio(0.3, half / 0.95, noise) is None
    assert intervals.ratio(0.3, half / 0.85, noise)


def test_nothing_found_against_something_is_no_ratio_of_certainty() -> None:
    """A row of AP 0: all of its gain is the baseline's, whose noise the ratio does not have."""
    noise = Noise(np.diag([0, 1e-6]), np.array([0, 1e-6]), np.array([2, 2]), 200)
    assert intervals.ratio(0.0, 0.002, noise) is None
    assert intervals.ratio(0.0, 0.2, noise) == intervals.Interval(0, 0)
    assert intervals.ratio(0.0, 0.0, Noise(np.zeros((2, 2)), np.zeros(2), np.array([2, 2]), 200)) is None


def test_how_many_trainings_a_half_width_takes() -> None:
    noise = Noise(np.array([[1.0]]), np.array([9.0]), np.array([2]), 400)  # S² = 27
    n = intervals.trainings_for(3.0, noise, (1,))
    assert n is not None

    def half(n: int) -> float:
        return intervals.margin(Noise(noise.images, np.array([27 / n]), np.array([n - 1]), 400), (1,))[0]

    assert half(n) <= 3.0 < half(n - 1)
    assert intervals.trainings_for(1.9, noise, (1,)) is None  # the images alone leave 1.97


def test_components_are_those_of_the_analysis_of_variance() -> None:
    rng = np.random.default_rng(1)
    pretrainings, finetunings = 400, 3
    between = 3 * rng.normal(size=pretrainings)
    values = (between[:, None] + rng.normal(size=(pretrainings, finetunings))).ravel()
    found = intervals.components(values.tolist(), np.repeat(np.arange(pretrainings), finetunings).tolist())
    assert found == (pytest.approx(3, rel=0.1), pytest.approx(1, rel=0.1))
    assert intervals.components([1, 2, 4], [0, 0, 0]) == (None, pytest.approx(np.std([1, 2, 4], ddof=1)))
    assert intervals.components([1, 4], [0, 1]) == (pytest.approx(np.std([1, 4], ddof=1)), None)
    assert intervals.components([1], [None]) == (None, None)
    alike = intervals.components([1, 5, 1, 5], [0, 0, 1, 1])  # pretrainings differ less than chance: none, not NaN
    assert alike[0] == 0


CASES = [
    pytest.param((3, 3), 1 / 3, id="3, images most"),
    pytest.param((3, 3), 1.0, id="3, alike"),
    pytest.param((3, 3), 3.0, id="3, trainings most"),
    pytest.param((5, 5), 1.0, id="5, alike"),
    pytest.param((5, 5), 3.0, id="5, trainings most"),
    pytest.param((10, 10), 1.0, id="10, alike"),
    pytest.param((10, 10), 3.0, id="10, trainings most"),
    pytest.param((3, 10), 1.0, id="3 and 10"),
]


@pytest.mark.parametrize(("counts", "ratio"), CASES)
def test_intervals_cover_the_truth_as_often_as_they_say(counts: tuple[int, int], ratio: float) -> None:
    """Where images alone do not. 1,000 trials: a standard deviation of 0.7 %."""
    rng = np.random.default_rng(int(100 * ratio) + sum(counts))
    inside = alone = 0
    for _ in range(1000):
        # of the images' variance a part is common to a row's trainings, and none to the rows
        rows = [rows_of(rng, [n], 0.8, 0.6, ratio, draws=100)[0] for n in counts]
        value = rows[0][:, 0].mean() - rows[1][:, 0].mean()
        inside += abs(value) <= intervals.margin(intervals.noise(rows, 100), (1, -1))[0]
        alone += abs(value) <= intervals.margin(intervals.noise_of_images(rows, 100), (1, -1))[0]
    assert 925 <= inside <= 975
    if ratio >= 1:
        assert alone < 925


def test_images_move_their_percentiles_to_the_value() -> None:
    rng = np.random.default_rng(0)
    drawn = 0.3 + 0.02 * rng.normal(size=20_000) + 0.01  # resamples are biased upwards
    span = intervals.of_images(np.concatenate([[0.3], drawn, [np.nan]]))
    assert span is not None
    assert (span.low, span.high) == pytest.approx((0.3 - 0.0392, 0.3 + 0.0392), abs=1e-3)
    assert intervals.of_images(np.array([0.3, np.nan])) is None
    bounded = intervals.of_images(np.concatenate([[0.01], drawn]), 0, 1)
    assert bounded is not None
    assert bounded.low == 0


def test_one_image_says_nothing_of_others() -> None:
    row = np.repeat(np.array([[0.3], [0.4]]), 51, axis=1)
    assert np.isnan(intervals.margin(intervals.noise([row], 1), (1,))[0])
