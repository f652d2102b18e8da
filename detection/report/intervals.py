"""How sure a gain is where both its noises are in it: other images, and other trainings.

A row's AP is the mean over its n trainings. Images are crossed with trainings: all are scored on the same ones. The AP
of one training is then

    row + training + images + how this training takes to these images

(a random-effects model; Brennan 2001, Owen 2007), and the variance of the mean is G + S² / n:

- G, of the images: what the bootstrap's draws of a row's trainings have in common, their covariance. Over a difference
  of rows it is that of the difference, since the draws are the same for every row.
- S², of the trainings: the variance of their values on all images, which holds the model's last term as well.

The interval is value ± t √(G + Σ S² / n), with t of Satterthwaite's (1946) degrees of freedom over images - 1 and each
row's n - 1. Their plain formula believes a variance that few trainings show small by luck: with three trainings of
unlike rows it holds the truth 92 % of the time. Here each part weighs 1 + 2 / degrees as much, which is E[s⁴] / σ⁴;
benchmarks/interval_coverage.py measures both, and a hierarchical bootstrap, which is worse than either.
Estimates may contradict each other: few trainings that agree by luck have S² below the model's last term, which is a
part of it, and the interval comes out narrower than that of the images alone. Taking the sum for no less than that
was tried: with few trainings it then holds the truth more often than it says, being too wide.

Rows count as independent, though they may share seeds (Welch 1947): what a seed does to both alike would make
the interval too wide, not too narrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95
MOST_TRAININGS = 100


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, 95 %."""

    low: float
    high: float


@dataclass(frozen=True)
class Noise:
    """What varies of the means of R rows, one metric. All are variances."""

    images: np.ndarray
    """float64 [R, R]: of other images."""

    trainings: np.ndarray
    """float64 [R]: of other trainings; NaN where a row has one, so that nobody knows."""

    degrees: np.ndarray
    """int [R]: of freedom of `trainings`."""

    num_images: int


def units(values: np.ndarray, pretrainings: Sequence[int | None]) -> np.ndarray:
    """What is independent in a row: its pretrainings where there are several, each the mean of its fine-tunings.

    Args:
        values: float [..., T, B], T trainings.
        pretrainings: of each training, the seed its backbone was pretrained with; None where nobody pretrained here.

    Returns:
        float [..., n, B]. Of one pretraining, or of none, each training by itself.
    """
    seeds = list(dict.fromkeys(pretrainings))
    if len(seeds) < 2:
        return values
    made_by = np.array([seeds.index(seed) for seed in pretrainings])
    return np.stack([values[..., made_by == i, :].mean(-2) for i in range(len(seeds))], axis=-2)


def noise(rows: Sequence[np.ndarray], num_images: int) -> Noise:
    """What varies, of rows of n independent trainings: float [n, 1 + B], all images and B draws, the same for each row.

    Draws in which a value is NaN (no ground truth) are left out.
    """
    given = noise_of_images(rows, num_images)
    own = np.array([_apart(row) for row in rows])
    count = np.array([len(row) for row in rows])
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.array([row[:, 0].var(ddof=1) if len(row) > 1 else np.nan for row in rows])
    return Noise(given.images - np.diag(own / count), spread / count, count - 1, num_images)


def noise_of_images(rows: Sequence[np.ndarray], num_images: int) -> Noise:
    """Of other images alone, had it been these very trainings; `rows` as for `noise`."""
    means = np.stack([row[:, 1:].mean(0) for row in rows])
    means = means[:, np.isfinite(means).all(0)]
    known = means.shape[1] > 1 and num_images > 1  # draws of a single image are that image
    images = np.cov(means).reshape(len(rows), len(rows)) if known else np.full((len(rows),) * 2, np.nan)
    none = np.zeros(len(rows))
    return Noise(images, none, none.astype(int), num_images)


def half_width(variances: np.ndarray, degrees: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of 95 % intervals, and their degrees of freedom: see the module.

    Args:
        variances: float [..., K], independent parts of a variance, not negative.
        degrees: [..., K], of freedom; where a part is 0 they do not count.

    Returns:
        `(half width, degrees)`, float [...]; NaN where a part is. Without any variance 0 with infinite degrees.
    """
    degrees = np.maximum(degrees, 1)
    weighed = variances * (1 + 2 / degrees)
    with np.errstate(divide="ignore", invalid="ignore"):
        combined = weighed.sum(-1) ** 2 / (weighed**2 / degrees).sum(-1)
    total = variances.sum(-1)
    combined = np.where(total == 0, np.inf, combined)
    return np.where(
        total == 0, 0.0, stdtrit(np.minimum(combined, 1e9), (1 + CONFIDENCE) / 2) * np.sqrt(total)
    ), combined


def margin(noise: Noise, weights: Sequence[float]) -> tuple[float, float]:
    """Half-width of the interval of the rows' weighted sum, and its degrees of freedom; NaN where a part is unknown.

    A gain is the sum with weights 1 and -1.
    """
    w = np.asarray(weights, float)
    seen = w != 0
    images = np.maximum(w @ noise.images @ w, 0)  # an estimate, which chance may put below 0
    parts = np.concatenate([[images], w[seen] ** 2 * noise.trainings[seen]])
    half, degrees = half_width(parts, np.concatenate([[noise.num_images - 1], noise.degrees[seen]]))
    return float(half), float(degrees)


def around(value: float, half: float, least: float = -np.inf, most: float = np.inf) -> Interval | None:
    """`value` ± `half` within what it can be; None where that is unknown."""
    return (
        Interval(float(max(value - half, least)), float(min(value + half, most))) if np.isfinite(value + half) else None
    )


LEAST = 0.1
"""Of a value, what its interval must leave for ratios to it to be told."""


def ratio(value: float, base: float, noise: Noise) -> Interval | None:
    """Of value / base, the two rows of `noise`: the ratios r for which value - r base may be 0 (Fieller 1954).

    So 1 is in it where 0 is in the interval of the difference. None where a part is unknown, and where the base itself
    may be 0 or less than `LEAST` of its value: then any ratio may be, or nearly any (-60 to +84,273 %).
    """
    floor = base - margin(noise, (0, 1))[0]
    if not (floor > LEAST * base and np.isfinite(margin(noise, (1, -1))[0])):
        return None

    def outside(r: float) -> bool:
        return abs(value - r * base) > margin(noise, (1, -r))[0]

    ends = []
    for sign in (-1, 1):
        near, step = 0.0, max(abs(value / base), 1e-3)
        while not outside(value / base + sign * step):
            near, step = step, 2 * step
            if step > 1e9:  # the degrees of freedom depend on r, so that `floor` is no strict bound
                return None
        for _ in range(60):
            middle = (near + step) / 2
            near, step = (near, middle) if outside(value / base + sign * middle) else (middle, step)
        ends.append(value / base + sign * near)
    return Interval(float(ends[0]), float(ends[1]))


def of_images(values: np.ndarray, least: float = -np.inf, most: float = np.inf) -> Interval | None:
    """What other images would show of the very trainings that `values[0]` is of; `values[1:]` are its draws.

    The draws' percentiles, moved so that their mean falls on the value: AP is interpolated, which flatters few objects,
    and flatters resamples, where objects repeat, once more (by up to half a standard deviation on 150 images, by two on
    5,000 images of 80 classes). It covers what as many other images would show, as measured in simulation; a much
    larger set of images would show somewhat less. Gains hardly feel either. None without ground truth.
    """
    drawn = values[1:][np.isfinite(values[1:])]
    if not len(drawn) or not np.isfinite(values[0]):
        return None
    low, high = np.clip(values[0] + np.percentile(drawn, [2.5, 97.5]) - drawn.mean(), least, most)
    return Interval(float(low), float(high))


def trainings_for(half: float, noise: Noise, weights: Sequence[float]) -> int | None:
    """How many trainings each row takes until the interval is ± `half`, by the variances seen.

    None where more than 100 would not do, or where nothing was seen.
    """
    spread = noise.trainings * (noise.degrees + 1)
    for n in range(2, MOST_TRAININGS + 1):
        more = replace(noise, trainings=spread / n, degrees=np.full(len(spread), n - 1))
        if margin(more, weights)[0] <= half:
            return n
    return None


def components(values: Sequence[float], pretrainings: Sequence[int | None]) -> tuple[float | None, float | None]:
    """Standard deviations between pretrainings and between fine-tunings of one, by analysis of variance.

    Args:
        values: of T trainings, nested in their pretrainings as in `units`.

    Returns:
        None each where there is but one, so that nobody knows; of single fine-tunings the first holds both.
    """
    groups: dict[int | None, list[float]] = {}
    for value, seed in zip(values, pretrainings, strict=True):
        groups.setdefault(seed, []).append(value)
    sizes = np.array([len(group) for group in groups.values()], float)
    within = sizes.sum() - len(groups)
    error = sum(np.var(group) * len(group) for group in groups.values()) / within if within else None
    if len(groups) < 2:
        return None, None if error is None else float(np.sqrt(error))
    means = np.array([np.mean(group) for group in groups.values()])
    between = means.var(ddof=1) - (0 if error is None else error * (1 / sizes).mean())
    return float(np.sqrt(max(between, 0))), None if error is None else float(np.sqrt(error))


def _apart(row: np.ndarray) -> float:
    """Variance over the draws of one training, less what it shares with the row's others; [n, 1 + B]."""
    drawn = row[:, 1:][:, np.isfinite(row[:, 1:]).all(0)]
    if len(row) < 2 or drawn.shape[1] < 2:
        return 0.0
    moved = drawn - drawn.mean(1, keepdims=True)
    return float(moved.var(0, ddof=1).sum() / (drawn.shape[1] - 1))
