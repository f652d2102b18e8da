"""How often the report's 95 % intervals of a gain hold the truth, where images and trainings are both drawn anew.

First in the model the intervals are made for, everything normal, over many more cases than a user will have; then with
AP itself, of make-believe detectors that find, place and score objects by the skill their training happened to give
them, scored and resampled by the report's own code. Beside ours: Satterthwaite's plain degrees of freedom, a
hierarchical bootstrap (trainings drawn with replacement, then images), and the images alone.
"""

import itertools
from typing import Any

import numpy as np
from results import parser, write
from scipy.special import stdtrit

from detection.report import intervals
from detection.report.bootstrap import paired_draws
from detection.report.stored import Matches

NUM_IMAGES = 100
OBJECTS = 1.5  # an image, on average
ALIKE = 0.7  # correlation of how hard an object is to two trainings of a row
ALIKE_ROWS = 0.6  # and of that to two rows
SKILLS = {"baseline": -0.1, "row": 0.25}  # of the mean training; 0 finds half of the objects
RATIOS = (1 / 3, 1, 3)


def normal_case(
    counts: tuple[int, int], ratio: float, alike: float, unlike: float, trials: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Coverage of a difference of two rows' means in the model itself.

    Args:
        counts: independent trainings of the rows.
        ratio: standard deviation of the difference by trainings, over that by images, if each row had one training.
        alike: share of the images' variance that all trainings of a row have in common.
        unlike: how much the second row's trainings vary, over the first's; variances.
    """
    count = np.array(counts)
    own, trained = 0.5 * (1 - alike), ratio**2 / (1 + unlike) * np.array([1, unlike])  # a training of a row
    common = rng.normal(0, np.sqrt(alike), trials)
    seen = rng.chisquare(NUM_IMAGES - 1, trials) / (NUM_IMAGES - 1) * alike
    parts, difference = [seen], common
    for n, deviation, sign in zip(count, np.sqrt(own + trained), (1, -1), strict=True):
        values = rng.normal(0, deviation, (trials, n))
        difference = difference + sign * values.mean(1)
        parts.append(values.var(1, ddof=1) / n)
    variances, degrees = np.stack(parts, -1), np.array([NUM_IMAGES - 1, *(count - 1)])
    half, _ = intervals.half_width(variances, degrees)
    images = stdtrit(NUM_IMAGES - 1, 0.975) * np.sqrt(seen + (own / count).sum())
    plain = plain_satterthwaite(variances, degrees)
    right = np.sqrt(alike + ((own + trained) / count).sum())
    return {
        "trainings": f"{counts[0]} and {counts[1]}",
        "ratio": round(ratio, 2),
        "common": alike,
        "unlike": unlike,
        "ours": percent(np.abs(difference) <= half),
        "plain": percent(np.abs(difference) <= plain),
        "images alone": percent(np.abs(difference) <= images),
        "width": float(np.median(half) / (1.96 * right)),
    }


def plain_satterthwaite(variances: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """Half widths by the formula of 1946."""
    combined = variances.sum(-1) ** 2 / (variances**2 / degrees).sum(-1)
    return stdtrit(combined, 0.975) * np.sqrt(variances.sum(-1))


def percent(inside: np.ndarray) -> float:
    return round(100 * float(np.mean(inside)), 2)


class Scene:
    """Images with objects, and how hard each object is: to everyone, and to each row."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.place = np.repeat(np.arange(NUM_IMAGES), rng.poisson(OBJECTS, NUM_IMAGES))
        everyone = np.sqrt(ALIKE_ROWS) * rng.normal(size=(3, len(self.place)))
        self.hard = {row: everyone + np.sqrt(1 - ALIKE_ROWS) * rng.normal(size=everyone.shape) for row in SKILLS}

    def detect(self, row: str, skill: float, rng: np.random.Generator) -> Matches:
        """What one training of a row finds: whether, how well placed and how surely, each by an object's hardness."""
        hard = np.sqrt(ALIKE) * self.hard[row] + np.sqrt(1 - ALIKE) * rng.normal(size=self.hard[row].shape)
        found = np.flatnonzero(hard[0] < skill)
        invented = np.repeat(np.arange(NUM_IMAGES), rng.poisson(1.0, NUM_IMAGES))
        iou = np.concatenate([0.72 + 0.1 * skill - 0.15 * hard[1, found], np.zeros(len(invented))])
        score = np.concatenate([skill - hard[2, found], rng.normal(-0.7, 1, len(invented))])
        return Matches(
            image=np.concatenate([self.place[found], invented]),
            label=np.ones(len(iou), int),
            score=score,
            tp=iou[:, None] >= np.arange(50, 100, 5) / 100,
            ignored=np.zeros((len(iou), 10), bool),
            gt_image=self.place,
            gt_label=np.ones(len(self.place), int),
            image_ids=np.arange(NUM_IMAGES),
        )


def trained(
    deviation: float, pretrainings: int, finetunings: int, resamples: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """AP of a new scene's trainings, half the variance their pretrainings': [pretraining, finetuning, 1 + B]."""
    scene, rows = Scene(rng), {}
    for row, skill in SKILLS.items():
        first = np.repeat(rng.normal(size=pretrainings), finetunings)
        skills = skill + deviation * np.sqrt(0.5) * (first + rng.normal(size=len(first)))
        rows[row] = [scene.detect(row, one, rng) for one in skills]
    draws = paired_draws(rows, resamples, int(rng.integers(2**31)))
    return {row: values[0].reshape(pretrainings, finetunings, -1) for row, values in draws.items()}


def judged(units: list[np.ndarray], rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """The intervals of a gain by each way, from rows [n, 1 + B]."""
    drawn = units[0].mean(0) - units[1].mean(0)
    value = drawn[0]
    noise = intervals.noise(units, NUM_IMAGES)
    half = intervals.margin(noise, (1, -1))[0]
    images = max(0, noise.images[0, 0] + noise.images[1, 1] - 2 * noise.images[0, 1])
    plain = plain_satterthwaite(np.array([images, *noise.trainings]), np.array([NUM_IMAGES - 1, *noise.degrees]))
    alone = intervals.of_images(drawn)
    assert alone is not None
    resampled = np.zeros(units[0].shape[1] - 1)
    for row, sign in zip(units, (1, -1), strict=True):
        chosen = rng.integers(len(row), size=(len(row), len(resampled)))
        resampled += sign * np.take_along_axis(row[:, 1:], chosen, 0).mean(0)
    low, high = np.percentile(resampled, [2.5, 97.5]) - resampled.mean()
    return {
        "ours": (value - half, value + half),
        "plain": (value - plain, value + plain),
        "hierarchical bootstrap": (value + low, value + high),
        "images alone": (alone.low, alone.high),
    }


def ap_cases(ratio: float, trials: int, resamples: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Coverage of a gain in AP with 3, 5 and 10 trainings, and 3 pretrainings of 2 fine-tunings each.

    The deviation of skills is set from a first few scenes, so that trainings and images vary AP as `ratio` says.
    """
    first = [trained(0.2, 4, 1, resamples, rng) for _ in range(40)]
    noises = [intervals.noise([s["row"][:, 0], s["baseline"][:, 0]], NUM_IMAGES) for s in first]
    given = [intervals.noise_of_images([s["row"][:1, 0], s["baseline"][:1, 0]], NUM_IMAGES) for s in first]
    images = np.mean([n.images[0, 0] + n.images[1, 1] - 2 * n.images[0, 1] for n in given])
    own = images - np.mean([n.images[0, 0] + n.images[1, 1] - 2 * n.images[0, 1] for n in noises])
    by_skill = np.mean([4 * n.trainings.sum() for n in noises]) - own  # variance of the gain at a deviation of 0.2
    deviation = 0.2 * ratio * np.sqrt(images / by_skill)

    cases = {"3": (3, 1, 3), "5": (5, 1, 2), "10": (10, 1, 1), "3 x 2": (3, 2, 1)}  # of a scene's 10, in turns
    spans: dict[str, list[dict[str, tuple[float, float]]]] = {case: [] for case in cases}
    gains: list[float] = []
    for _ in range(trials):
        flat = trained(deviation, 10, 1, resamples, rng)
        nested = trained(deviation, 3, 2, resamples, rng)
        for case, (count, finetunings, turns) in cases.items():
            source = nested if finetunings > 1 else flat
            for start in range(0, turns * count, count):
                units = [source[row][start : start + count].mean(1) for row in ("row", "baseline")]
                spans[case].append(judged(units, rng))
        gains += [float((s["row"][..., 0] - s["baseline"][..., 0]).mean()) for s in (flat, nested)]
    truth = float(np.mean(gains))
    rows = []
    for case, told in spans.items():
        covered = {way: percent(np.array([one[way][0] <= truth <= one[way][1] for one in told])) for way in told[0]}
        rows.append({"trainings": case, "ratio": round(ratio, 2), **covered, "gain": 100 * truth, "trials": len(told)})
    return rows


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--trials", type=int, default=10_000, help="in the normal model, of each case")
    words.add_argument("--scenes", type=int, default=400, help="with AP, of each ratio")
    words.add_argument("--resamples", type=int, default=100, help="bootstrap resamples of a scene's images")
    given = words.parse_args()
    rng = np.random.default_rng(0)
    normal = [
        normal_case(counts, ratio, alike, unlike, given.trials, rng)
        for counts in ((2, 2), (3, 3), (5, 5), (10, 10), (3, 10))
        for ratio, alike, unlike in itertools.product(RATIOS, (0.2, 0.8), (1, 0.1))
    ]
    with_ap = [row for ratio in RATIOS for row in ap_cases(ratio, given.scenes, given.resamples, rng)]
    write(given.output, with_ap, normal=normal)


if __name__ == "__main__":
    main()
