"""Whether two ways to judge put the rows in the same order: Kendall's tau with both noises of a gain in its interval.

tau-b (Kendall 1945): of all pairs of rows, those in the same order less those in opposite ones, over the pairs that are
no ties, √(ties left out by one way · by the other). 1: the same order, -1: the reverse, nothing where one way ties all.

The interval is by draws, since an order has no variance to add up. Each draw is what the means of all rows may be by
the model of `detection.report.intervals`, G + S² / n:

- other images: normal, with the covariance G of all rows, and of both ways where they are judged on the same images.
- other trainings: Student's t of n - 1 degrees, with S² / n. Where both ways judge the same pretrainings, what one of
  them is worth is drawn for both at once.

The percentiles of tau over the draws would be too low at the top, for noise makes orders less alike, and the rows that
were measured have it already: two ways that agree in truth are seen to agree less, and their draws still less. So the
end away from zero lies at least as far from the value as the other. benchmarks/order_coverage.py measures what comes
of that.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from detection.report import intervals
from detection.report.intervals import Interval

DRAWS = 10_000


@dataclass(frozen=True)
class Judged:
    """Rows as one way judges them."""

    rows: Mapping[str, np.ndarray]
    """By label float64 [n, 1 + B]: `intervals.units`, all images and draws of them."""

    pretrainings: Mapping[str, tuple[int, ...]]
    """By label the seeds of its n pretrainings; empty where its trainings are not such."""

    images: str
    """What they were judged on: ways of the same name share their draws."""

    num_images: int


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau between two ways to judge the same rows."""

    rows: list[str]
    """Those that both have."""

    value: float | None
    joint: Interval | None
    """Other images and other trainings; None where a row has one training."""

    images: Interval | None
    """Other images alone, these very trainings."""

    why: str
    """What is missing, and why; empty where nothing is."""


def tau(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """tau-b over the last axis, float64 [..., R]; NaN where all of one are ties."""
    i, j = np.triu_indices(one.shape[-1], 1)
    first, second = (np.sign(values[..., i] - values[..., j]) for values in (one, other))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (first * second).sum(-1) / np.sqrt((first**2).sum(-1) * (second**2).sum(-1))


def agreement(one: Judged, other: Judged, seed: int = 0) -> Agreement:
    """Of the orders of the rows that both have, best known by their mean."""
    labels = [label for label in one.rows if label in other.rows]
    if len(labels) < 2:
        has = f"{labels[0]} alone is" if labels else "no row is"
        return Agreement(labels, None, None, None, f"an order takes two rows, and {has} in both")
    ways = one, other
    values = [np.array([way.rows[label][:, 0].mean() for label in labels]) for way in ways]
    value = float(tau(*values))
    if not np.isfinite(value):
        return Agreement(labels, None, None, None, "all rows are worth the same, which is no order")
    if min(way.num_images for way in ways) < 2:
        return Agreement(labels, value, None, None, "what other images would change is unknown: there is one")
    rng = np.random.default_rng(seed)
    given = _images(ways, labels, rng, alone=True)
    images = _interval(value, tau(*(mean + drawn for mean, drawn in zip(values, given, strict=True))))
    once = [label for label in labels if min(len(way.rows[label]) for way in ways) < 2]
    if once:
        why = f"what another training would change is unknown: trained once, {', '.join(once)}"
        return Agreement(labels, value, None, images, why)
    both = zip(values, _images(ways, labels, rng, alone=False), _trainings(ways, labels, rng), strict=True)
    drawn = tau(*(mean + by_images + by_trainings for mean, by_images, by_trainings in both))
    return Agreement(labels, value, _interval(value, drawn), images, "")


def _images(ways: tuple[Judged, Judged], labels: list[str], rng: np.random.Generator, alone: bool) -> list[np.ndarray]:
    """What other images change of the rows' means, [DRAWS, R] a way; `alone`: of these very trainings."""
    of = intervals.noise_of_images if alone else intervals.noise
    own = [[way.rows[label] for label in labels] for way in ways]
    if ways[0].images == ways[1].images:
        drawn = _normal(of(own[0] + own[1], ways[0].num_images).images, rng)
        return [drawn[:, : len(labels)], drawn[:, len(labels) :]]
    return [_normal(of(rows, way.num_images).images, rng) for rows, way in zip(own, ways, strict=True)]


def _normal(covariance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws [DRAWS, R]. An estimate of a covariance may have eigenvalues below 0 by chance, which are none."""
    values, vectors = np.linalg.eigh(np.nan_to_num(covariance))
    return rng.normal(size=(DRAWS, len(values))) @ (vectors * np.sqrt(np.maximum(values, 0))).T


def _trainings(ways: tuple[Judged, Judged], labels: list[str], rng: np.random.Generator) -> list[np.ndarray]:
    """What other trainings change of the rows' means, [DRAWS, R] a way: Student's t, its deviations those seen."""
    drawn = [np.empty((DRAWS, len(labels))) for _ in ways]
    for k, label in enumerate(labels):
        same = ways[0].pretrainings[label] == ways[1].pretrainings[label] != ()
        weights = None
        for way, out in zip(ways, drawn, strict=True):
            own = way.rows[label][:, 0]
            n = len(own)
            if weights is None or not same:
                weights = rng.normal(size=(DRAWS, n)) * np.sqrt((n - 1) / rng.chisquare(n - 1, (DRAWS, 1)))
            out[:, k] = weights @ (own - own.mean()) / np.sqrt(n * (n - 1))
    return drawn


def _interval(value: float, drawn: np.ndarray) -> Interval | None:
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return None
    low, high = (float(end) for end in np.percentile(drawn, [2.5, 97.5]))
    if value >= 0:
        high = max(high, min(1.0, 2 * value - low))
    else:
        low = min(low, max(-1.0, 2 * value - high))
    return Interval(min(low, value), max(high, value))
