"""What each row of the report is worth and gains over the baseline, with its intervals, from the rows' matches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from backbone.errors import UserError
from detection.pixels import Pixels
from detection.report import intervals
from detection.report.bootstrap import paired_draws
from detection.report.intervals import Interval, Noise
from detection.report.measures import BOXES, Measure
from detection.report.stored import Kind, Matches

Verdict = Literal["more", "less", "no difference"]
DIFFERENCE = (1, -1)


@dataclass(frozen=True)
class Scored:
    """One training of a row: what hit what, and the seed its backbone was pretrained with here, if it was."""

    matches: Mapping[Kind, Matches | Pixels]
    pretraining: int | None


@dataclass(frozen=True)
class Estimate:
    """A number and how sure it is. The headline is `joint`; the other two hold one noise each, the other fixed."""

    value: float
    """Of all images, mean over the trainings."""

    images: Interval | None
    """Other images, these very trainings."""

    trainings: Interval | None
    """Other trainings, these very images; None where a row has one training."""

    joint: Interval | None
    """Other images and other trainings; None likewise."""

    degrees: float | None
    """Of freedom of `joint`."""


@dataclass(frozen=True)
class Relative:
    """A gain over the baseline's AP, fractions; `joint` says whether trainings are in the interval or images alone."""

    value: float
    low: float
    high: float
    joint: bool


@dataclass(frozen=True)
class Gain:
    """Of a row over the baseline."""

    absolute: Estimate
    relative: Relative | None
    """None where the baseline's AP may be 0, or nearly."""

    verdict: Verdict | None
    """By the joint interval alone: without it none is given."""

    needed: int | None
    """Independent trainings a row for the half-width asked for; None: more than a hundred, or unknown."""

    images_alone: float | None
    """Half-width that would be left with any number of trainings; None where unknown."""


@dataclass(frozen=True)
class Spread:
    """Over a row's trainings, all images. Standard deviations of n - 1."""

    std: float
    min: float
    max: float
    pretraining: float | None
    """Between pretrainings (of single fine-tunings: both noises); None where there is one, or none."""

    finetuning: float | None
    """Between fine-tunings of one pretraining; None where each has one."""


@dataclass(frozen=True)
class RowStatistics:
    """By metric, the names of the measures. `gain` is empty for the baseline, `spread` where there is one training."""

    mean: dict[str, Estimate]
    gain: dict[str, Gain]
    spread: dict[str, Spread]
    independent: int
    """Trainings that count: pretrainings where there are several, else fine-tunings."""


def compare(
    rows: Mapping[str, Sequence[Scored]],
    baseline: str,
    resamples: int = 1000,
    seed: int = 0,
    half_width: float = 0.01,
    measures: Sequence[Measure] = (BOXES,),
) -> dict[str, RowStatistics]:
    """The statistics of each row. A row's AP is the mean over its pretrainings of the mean over their fine-tunings.

    Args:
        resamples: of the images, the same for every row, training and measure.
        half_width: of a gain's interval, a fraction; `Gain.needed` says what it takes.

    Raises:
        UserError: `baseline` is no row, a row has no training, or rows were not judged on the same images and objects.
    """
    if baseline not in rows:
        raise UserError(f"baseline {baseline!r} is not a row; rows: {', '.join(rows)}")
    seeds = {label: [one.pretraining for one in row] for label, row in rows.items()}
    num_images = len(next(iter(rows[baseline][0].matches.values())).image_ids) if rows[baseline] else 0
    found = {
        label: RowStatistics({}, {}, {}, len(intervals.units(np.zeros((len(own), 1)), own)))
        for label, own in seeds.items()
    }
    for measure in measures:
        matches = {label: [one.matches[measure.kind] for one in row] for label, row in rows.items()}
        draws = paired_draws(matches, resamples, seed, measure.of)
        units = {label: intervals.units(draws[label], seeds[label]) for label in rows}
        for label, told in found.items():
            own, base = units[label], units[baseline]
            for i, metric in enumerate(measure.names):
                told.mean[metric] = estimate([own[i]], (1,), num_images, 0, 1)
                if label != baseline:
                    told.gain[metric] = _gain(own[i], base[i], num_images, half_width)
                if len(seeds[label]) > 1:
                    told.spread[metric] = _spread(draws[label][i, :, 0], seeds[label])
    return found


def estimate(
    rows: Sequence[np.ndarray], weights: Sequence[int], num_images: int, least: float, most: float
) -> Estimate:
    """Of the weighted sum of rows, float [n, 1 + B] each, within what it can be."""
    drawn = sum(weight * row.mean(0) for weight, row in zip(weights, rows, strict=True))
    value = float(drawn[0])
    noise = intervals.noise(rows, num_images)
    still = replace(noise, images=np.zeros_like(noise.images))
    half, degrees = intervals.margin(noise, weights)
    return Estimate(
        value=value,
        images=intervals.of_images(drawn, least, most) if num_images > 1 else None,
        trainings=intervals.around(value, intervals.margin(still, weights)[0], least, most),
        joint=intervals.around(value, half, least, most),
        degrees=degrees if np.isfinite(degrees) else None,
    )


def _gain(row: np.ndarray, base: np.ndarray, num_images: int, half_width: float) -> Gain:
    absolute = estimate([row, base], DIFFERENCE, num_images, -1, 1)
    noise = intervals.noise([row, base], num_images)
    unknown = absolute.joint is None
    endless = replace(noise, trainings=np.zeros(2))
    return Gain(
        absolute,
        _relative(row, base, intervals.noise_of_images([row, base], num_images) if unknown else noise, not unknown),
        _verdict(absolute.joint),
        None if unknown else intervals.trainings_for(half_width, noise, DIFFERENCE),
        None if unknown else intervals.margin(endless, DIFFERENCE)[0],
    )


def _verdict(joint: Interval | None) -> Verdict | None:
    if joint is None:
        return None
    return "more" if joint.low > 0 else "less" if joint.high < 0 else "no difference"


def _relative(row: np.ndarray, base: np.ndarray, noise: Noise, joint: bool) -> Relative | None:
    own, other = float(row[:, 0].mean()), float(base[:, 0].mean())
    span = intervals.ratio(own, other, noise)
    return Relative(own / other - 1, span.low - 1, span.high - 1, joint) if span else None


def _spread(values: np.ndarray, pretrainings: Sequence[int | None]) -> Spread:
    between, within = intervals.components(values.tolist(), pretrainings)
    return Spread(float(values.std(ddof=1)), float(values.min()), float(values.max()), between, within)
