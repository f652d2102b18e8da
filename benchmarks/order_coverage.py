"""How often the report's 95 % intervals of Kendall's tau hold the truth, where images and trainings are drawn anew.

In the model that the intervals are made for, everything normal. Rows are drawn with standard deviation 1 and judged in
two ways, whose orders in truth are the same, alike, or have nothing to do with each other; noise is given in the rows'
standard deviations. Beside ours: the percentiles of the draws as they are.
"""

import itertools
from typing import Any

import numpy as np
from results import parser, write

from detection.report import orders
from detection.report.orders import Judged, agreement, tau

IMAGES = 0.1  # standard deviation that other images give all rows; half of its variance is common to them
NUM_IMAGES, RESAMPLES = 200, 100
TRUTHS = {"same": 1.0, "alike": 0.8, "unlike": 0.0}  # correlation of what rows are worth in both ways


def way(worth: np.ndarray, trainings: np.ndarray, rng: np.random.Generator, name: str) -> Judged:
    """Rows of this worth, on images drawn once and resampled as often as the report would; trainings [R, n]."""
    mixed = IMAGES * np.sqrt(0.5)
    drawn = mixed * (rng.normal(size=1 + RESAMPLES) + rng.normal(size=(len(worth), 1 + RESAMPLES)))
    drawn[:, 1:] += drawn[:, :1]
    values = worth[:, None, None] + trainings[:, :, None] + drawn[:, None]
    rows = {str(k): row for k, row in enumerate(values)}
    seeds = tuple(range(trainings.shape[1]))
    return Judged(rows, dict.fromkeys(rows, seeds), name, NUM_IMAGES)


def case(rows: int, trainings: int, truth: str, noise: float, trials: int, rng: np.random.Generator) -> dict[str, Any]:
    """Coverage where trainings vary by `noise`, half of that variance by pretrainings that both ways judge."""
    like = TRUTHS[truth]
    inside: dict[str, list[bool]] = {"ours": [], "percentiles": []}
    widths = []
    for _ in range(trials):
        one = rng.normal(size=rows)
        other = like * one + np.sqrt(1 - like**2) * rng.normal(size=rows)
        made = rng.normal(size=(rows, trainings))
        both = [noise * np.sqrt(0.5) * (made + rng.normal(size=made.shape)) for _ in range(2)]
        ways = [way(worth, own, rng, str(k)) for k, (worth, own) in enumerate(zip((one, other), both, strict=True))]
        right = float(tau(one, other))
        found = agreement(ways[0], ways[1])
        assert found.joint
        inside["ours"].append(found.joint.low - 1e-9 <= right <= found.joint.high + 1e-9)
        # The end that was moved lies where the value's own distance put it; without that, percentiles are narrower.
        low, high = plain(ways)
        inside["percentiles"].append(low - 1e-9 <= right <= high + 1e-9)
        widths.append(found.joint.high - found.joint.low)
    return {
        "rows": rows,
        "trainings": trainings,
        "truth": truth,
        "noise": noise,
        **{name: round(100 * float(np.mean(hits)), 1) for name, hits in inside.items()},
        "width": round(float(np.mean(widths)), 2),
        "trials": trials,
    }


def plain(ways: list[Judged]) -> tuple[float, float]:
    """Percentiles of tau over the draws."""
    labels, rng = list(ways[0].rows), np.random.default_rng(0)
    both = ways[0], ways[1]
    means = [np.array([one.rows[label][:, 0].mean() for label in labels]) for one in ways]
    drawn = zip(
        means, orders._images(both, labels, rng, alone=False), orders._trainings(both, labels, rng), strict=True
    )
    low, high = np.nanpercentile(tau(*(mean + images + trained for mean, images, trained in drawn)), [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--trials", type=int, default=300, help="of each case")
    words.add_argument("--draws", type=int, default=1000, help="of an interval")
    given = words.parse_args()
    orders.DRAWS = given.draws
    rng = np.random.default_rng(0)
    cases = itertools.product((6, 8), (3, 5), TRUTHS, (0.3, 0.6, 1.0))
    write(given.output, [case(*one, given.trials, rng) for one in cases])


if __name__ == "__main__":
    main()
