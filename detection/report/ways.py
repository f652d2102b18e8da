"""Rows as one of several ways to judge sees them: their numbers, and what their order is compared by."""

from collections.abc import Sequence

from backbone.errors import UserError
from detection.report import intervals
from detection.report.bootstrap import paired_draws
from detection.report.compare import Estimate, estimate
from detection.report.measures import Main, parts
from detection.report.orders import Judged
from detection.report.summary import Row


def judge(
    rows: Sequence[Row], main: Main, validation: str, resamples: int = 1000, seed: int = 0
) -> tuple[Judged, dict[str, Estimate]]:
    """Rows as orders compare them, and what each is worth in the main measure, by label.

    Args:
        validation: fingerprint of the images they were judged on.
        resamples: of the images. With the same seed, images and number they are those of the report.

    Raises:
        UserError: there is no row, a row has no training, or rows were not judged on the same images and objects.
    """
    if not rows:
        raise UserError("there is no row to judge")
    measure = parts(main)[0].measures[0]
    matches = {row.label: [t.matches[measure.kind] for t in row.trainings] for row in rows}
    draws = paired_draws(matches, resamples, seed, measure.of)
    num_images = len(rows[0].trainings[0].matches[measure.kind].image_ids)
    units, pretrainings, worth = {}, {}, {}
    for row in rows:
        seeds = [one.pretrain_seed for one in row.trainings]
        units[row.label] = intervals.units(draws[row.label], seeds)[0]
        known = [seed for seed in dict.fromkeys(seeds) if seed is not None]
        pretrainings[row.label] = tuple(known) if len(known) > 1 else ()
        worth[row.label] = estimate([units[row.label]], (1,), num_images, 0, 1)
    return Judged(units, pretrainings, validation, num_images), worth
