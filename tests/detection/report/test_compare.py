"""What rows are worth and gain, with AP itself: the normal model's own tests are in test_intervals.py."""

import dataclasses

import numpy as np
import pytest

from backbone.errors import UserError
from detection.report.compare import Scored, compare
from detection.report.stored import Matches
from tests.detection.report.simulated import average_precision


def world(rng: np.random.Generator, images: int, skill: float, own: np.random.Generator | None = None) -> Matches:
    """Six classes, 2.5 objects an image; a detector that finds, places and scores by its skill, and invents.

    `rng` draws the objects first; what a training does by chance comes from `own`, by default the same stream.
    """
    places = np.repeat(np.arange(images), rng.poisson(2.5, images))
    labels = rng.integers(1, 7, len(places))
    rng = own or rng
    found = rng.random(len(places)) < 0.3 + 0.65 * skill
    invented = np.repeat(np.arange(images), rng.poisson(3 - 2 * skill, images))
    iou = np.concatenate([rng.normal(0.55 + 0.3 * skill, 0.15, found.sum()), np.zeros(len(invented))])
    return Matches(
        image=np.concatenate([places[found], invented]),
        label=np.concatenate([labels[found], rng.integers(1, 7, len(invented))]),
        score=np.concatenate([rng.beta(2 + 5 * skill, 2, found.sum()), rng.beta(1.2, 4, len(invented))]),
        tp=iou[:, None] >= np.arange(50, 100, 5) / 100,
        ignored=np.zeros((len(iou), 10), bool),
        gt_image=places,
        gt_label=labels,
        image_ids=np.arange(images),
    )


def once(matches: Matches) -> list[Scored]:
    return [Scored({"bbox": matches}, None)]


@pytest.mark.slow
def test_intervals_of_images_cover_the_truth_about_as_often_as_they_say() -> None:
    # the truth: what sets of 150 images show on average
    sets = [
        [average_precision(world(np.random.default_rng(10_000 + s), 150, p)).AP for p in (0.4, 0.6)] for s in range(200)
    ]
    weak, strong = np.mean(sets, axis=0)
    trials, inside, gains = 100, 0, 0
    for trial in range(trials):
        # one stream for both: the objects are drawn first, so that the images are the same
        rows = {n: once(world(np.random.default_rng(trial), 150, p)) for n, p in (("weak", 0.4), ("strong", 0.6))}
        got = compare(rows, "weak", 120)
        span = got["weak"].mean["AP"].images
        gain = got["strong"].gain["AP"].absolute.images
        assert span
        assert gain
        inside += span.low <= weak <= span.high
        gains += gain.low <= strong - weak <= gain.high
    # 95 %, with a standard deviation of 2.2
    assert 88 <= inside <= 99
    assert 88 <= gains <= 99


def test_joint_intervals_cover_the_truth_of_ap_where_images_alone_do_not() -> None:
    """Three trainings a row, whose skills differ by chance. benchmarks/interval_coverage.py does it at length."""
    gains, spans, images = [], [], []
    for trial in range(60):
        rng = np.random.default_rng(trial)
        skills = {label: mean + 0.06 * rng.normal(size=3) for label, mean in (("weak", 0.4), ("strong", 0.6))}
        rows = {
            label: [Scored({"bbox": world(np.random.default_rng(trial), 60, p, rng)}, None) for p in skills[label]]
            for label in skills
        }
        gain = compare(rows, "weak", 40)["strong"].gain["AP"].absolute
        assert gain.joint
        assert gain.images
        gains.append(gain.value)
        spans.append(gain.joint)
        images.append(gain.images)
    truth = np.mean(gains)
    inside = sum(span.low <= truth <= span.high for span in spans)
    assert inside >= 50  # 95 %, with a standard deviation of 1.7
    assert sum(span.low <= truth <= span.high for span in images) < inside - 5


@pytest.fixture(scope="module")
def scored() -> dict[str, list[Matches]]:
    """Three trainings each of a weak and a strong row, on the same 60 images."""
    rng = np.random.default_rng(0)
    return {
        label: [world(np.random.default_rng(7), 60, p + 0.02 * i, rng) for i in range(4)]
        for label, p in (("weak", 0.3), ("strong", 0.7))
    }


def rows_of(
    scored: dict[str, list[Matches]], weak: list[int | None], strong: list[int | None]
) -> dict[str, list[Scored]]:
    """Rows of so many trainings, each with the seed of its pretraining."""
    seeds = {"weak": weak, "strong": strong}
    return {
        label: [Scored({"bbox": one}, seed) for one, seed in zip(scored[label], seeds[label], strict=False)]
        for label in seeds
    }


def test_each_noise_apart_and_both_together(scored) -> None:
    gain = compare(rows_of(scored, [None] * 3, [None] * 4), "weak", 200, half_width=0.05)["strong"].gain["AP"]
    joint, images, trainings = gain.absolute.joint, gain.absolute.images, gain.absolute.trainings
    assert joint
    assert images
    assert trainings
    for part in (images, trainings):
        assert joint.low < part.low < gain.absolute.value < part.high < joint.high
    assert gain.verdict == "more"
    assert gain.relative
    assert gain.relative.joint
    assert gain.relative.low > 0
    assert gain.needed
    assert gain.images_alone
    assert gain.images_alone < gain.absolute.value


def test_one_training_of_either_row_gives_no_verdict(scored) -> None:
    for weak, strong in (([None], [None]), ([None], [None] * 3), ([None] * 3, [0])):
        got = compare(rows_of(scored, weak, strong), "weak", 100)["strong"]
        gain = got.gain["AP"]
        assert (gain.verdict, gain.absolute.joint, gain.absolute.trainings, gain.needed) == (None,) * 4
        assert gain.absolute.images
        assert gain.relative
        assert not gain.relative.joint
        assert (got.mean["AP"].joint is None) == (len(strong) == 1)
        assert bool(got.spread) == (len(strong) > 1)


def test_pretrainings_count_and_not_their_fine_tunings(scored) -> None:
    flat = compare(rows_of(scored, [None] * 4, [None] * 4), "weak", 100)["strong"]
    nested = compare(rows_of(scored, [None] * 4, [5, 5, 6, 6]), "weak", 100)["strong"]
    assert (flat.independent, nested.independent) == (4, 2)
    assert nested.mean["AP"].value == pytest.approx(flat.mean["AP"].value)
    assert nested.mean["AP"].degrees
    assert flat.mean["AP"].degrees
    assert nested.mean["AP"].degrees < flat.mean["AP"].degrees
    assert (flat.spread["AP"].pretraining, nested.spread["AP"].finetuning) != (None, None)
    uneven = compare(rows_of(scored, [None] * 4, [5, 6, 6, 6]), "weak", 100)["strong"]  # others have failed
    own = [average_precision(one).AP for one in scored["strong"]]
    assert uneven.mean["AP"].value == pytest.approx((own[0] + np.mean(own[1:])) / 2)


def test_a_row_against_itself_gains_exactly_nothing(scored) -> None:
    rows = {
        "a": [Scored({"bbox": one}, None) for one in scored["weak"]],
        "b": [Scored({"bbox": one}, None) for one in scored["weak"]],
    }
    gain = compare(rows, "a", 100)["b"].gain["AP"]
    assert gain.absolute.value == 0
    assert gain.verdict == "no difference"
    alone = compare({name: row[:1] for name, row in rows.items()}, "a", 100)["b"].gain["AP"]
    assert alone.absolute.images
    assert alone.relative
    for span in (alone.absolute.images, alone.relative):
        assert (span.low, span.high) == (0, 0)


def test_against_almost_nothing_there_is_no_ratio(scored) -> None:
    """A baseline that found one object by luck, and one that found nothing."""
    lucky = []
    for one in scored["weak"][:3]:
        hit = np.flatnonzero(one.tp[:, 0] & (one.label == 1))[0]
        lucky.append(dataclasses.replace(one, tp=one.tp & (np.arange(len(one.tp)) == hit)[:, None]))
    assert 0 < np.mean([average_precision(one).AP for one in lucky]) < 0.02
    rows = {
        "lucky": [Scored({"bbox": one}, None) for one in lucky],
        "row": [Scored({"bbox": one}, None) for one in scored["strong"]],
    }
    for few in (rows, {label: row[:1] for label, row in rows.items()}):
        gain = compare(few, "lucky", 200)["row"].gain["AP"]
        assert gain.relative is None
        assert gain.absolute.value > 0.1
    none = {name: getattr(lucky[0], name)[:0] for name in ("image", "label", "score", "tp", "ignored")}
    nothing = [Scored({"bbox": dataclasses.replace(lucky[0], **none)}, None)] * 3
    against = compare({"nothing": nothing, "row": nothing, "lucky": rows["lucky"]}, "lucky", 200)
    for label in ("nothing", "row"):
        assert against[label].gain["AP"].relative is None
        assert against[label].gain["AP"].verdict == "no difference"
    both = compare({"a": nothing, "b": nothing}, "a", 50)["b"]
    assert (both.gain["AP"].verdict, both.gain["AP"].relative) == ("no difference", None)
    assert both.mean["AP"].joint
    assert (both.mean["AP"].joint.low, both.mean["AP"].joint.high) == (0, 0)


def test_a_baseline_that_is_no_row_is_refused(scored) -> None:
    with pytest.raises(UserError, match="baseline 'c'"):
        compare(rows_of(scored, [None], [None]), "c", 10)
