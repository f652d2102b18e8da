"""The weighted AP against stock pycocotools, the intervals against simulations whose truth is known."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backbone.errors import UserError
from detection.report.bootstrap import Matches, average_precision, paired_bootstrap, precision_recall
from tests.detection.report import simulated

NAMES = ["cat", "dog", "bird", "bus"]


@pytest.fixture(scope="module")
def judged() -> tuple[dict[str, Any], list[dict[str, Any]], Any, Matches]:
    truth = simulated.ground_truth(60, NAMES)
    found = simulated.detections(truth, 0.5)
    judge = simulated.stock(truth, found)
    return truth, found, judge, simulated.matches(judge)


def test_weights_of_one_are_stock_pycocotools(judged) -> None:
    _, _, judge, matches = judged
    ap = average_precision(matches)
    assert 0.05 < ap.AP < 0.9
    assert matches.ignored.any()  # crowds are in it
    np.testing.assert_allclose([ap.AP, ap.AP50, ap.AP75], judge.stats[:3], atol=1e-14, rtol=0)
    precision = judge.eval["precision"][:, :, :, 0, 2]
    np.testing.assert_allclose(ap.per_class, precision.mean(1).T, atol=1e-14, rtol=0)
    for t, iou in ((0, 0.5), (9, 0.95)):
        recall, curve = precision_recall(matches, iou)
        np.testing.assert_array_equal(recall, judge.params.recThrs)
        np.testing.assert_array_equal(curve, precision[t].T)


@pytest.mark.parametrize("seed", range(4))
def test_integer_weights_are_duplicated_images(judged, seed: int) -> None:
    truth, found, _, matches = judged
    weights = np.random.default_rng(seed).multinomial(60, np.full(60, 1 / 60))
    times = dict(zip(matches.image_ids.tolist(), weights.tolist(), strict=True))
    more: dict[str, Any] = {"images": [], "annotations": [], "categories": truth["categories"]}
    doubles = []
    for image_id, n in times.items():
        for copy_of in range(n):
            new = image_id * 1000 + copy_of
            more["images"] += [{**i, "id": new} for i in truth["images"] if i["id"] == image_id]
            more["annotations"] += [{**a, "image_id": new} for a in truth["annotations"] if a["image_id"] == image_id]
            doubles += [{**d, "image_id": new} for d in found if d["image_id"] == image_id]
    for i, a in enumerate(more["annotations"]):
        a["id"] = i + 1
    expected = simulated.stock(more, doubles).stats[:3]
    ap = average_precision(matches, weights)
    np.testing.assert_allclose([ap.AP, ap.AP50, ap.AP75], expected, atol=1e-9, rtol=0)


def test_class_without_objects_left_is_no_part_of_the_mean(judged) -> None:
    _, _, _, matches = judged
    weights = np.ones(len(matches.image_ids))
    weights[matches.gt_image[matches.gt_label == 2]] = 0
    ap = average_precision(matches, weights)
    assert np.isnan(ap.per_class[1]).all()
    np.testing.assert_allclose(ap.AP, np.nanmean(ap.per_class), atol=1e-15)
    assert np.isnan(average_precision(matches, weights * 0).AP)


def test_no_detections_is_zero(judged) -> None:
    _, _, _, matches = judged
    rows = {name: getattr(matches, name)[:0] for name in ("image", "label", "score", "tp", "ignored", "iou")}
    nothing = dataclasses.replace(matches, **rows)
    assert average_precision(nothing).AP == 0
    assert paired_bootstrap({"a": [nothing], "b": [matches]}, "a", 20)["b"].gain["AP"].relative is None


def test_many_resamples_at_once_equal_one_at_a_time(judged, monkeypatch) -> None:
    _, _, _, matches = judged
    other = copy.deepcopy(matches)
    other.score[:] = np.random.default_rng(0).random(len(other.score))
    monkeypatch.setattr("detection.report.bootstrap.BLOCK", 500)  # several blocks a class
    got = paired_bootstrap({"a": [matches], "b": [other, matches]}, "a", 40, seed=3)
    draws = np.random.default_rng(3).multinomial(60, np.full(60, 1 / 60), size=40)
    a = np.array([average_precision(matches, w).AP50 for w in draws])
    b = np.array([(average_precision(other, w).AP50 + average_precision(matches, w).AP50) / 2 for w in draws])
    gain = got["b"].gain["AP50"]
    assert gain.relative is not None
    for told, drawn in ((gain.absolute, b - a), (gain.relative, b / a - 1)):
        expected = told.value + np.percentile(drawn, [2.5, 97.5]) - drawn.mean()
        np.testing.assert_allclose([told.low, told.high], expected, atol=1e-12)
    one, two = average_precision(other).AP50, average_precision(matches).AP50
    assert got["b"].mean["AP50"].value == pytest.approx((one + two) / 2, abs=1e-15)
    spread = got["b"].spread["AP50"]
    assert (spread.min, spread.max) == pytest.approx((min(one, two), max(one, two)), abs=1e-15)
    assert spread.std == pytest.approx(abs(one - two) / 2**0.5)
    assert got["a"].gain == {}
    assert got["a"].spread == {}


def test_a_row_against_itself_gains_exactly_nothing(judged) -> None:
    _, _, _, matches = judged
    order = np.random.default_rng(0).permutation(60)  # the same images, listed in another order
    place = np.argsort(order)
    shuffled = dataclasses.replace(
        matches,
        image=place[matches.image],
        gt_image=place[matches.gt_image],
        image_ids=matches.image_ids[order],
    )
    statistics = paired_bootstrap({"a": [matches], "b": [shuffled]}, "a", 100)
    for gain in statistics["b"].gain.values():
        assert gain.relative is not None
        for interval in (gain.absolute, gain.relative):
            assert (interval.value, interval.low, interval.high) == (0, 0, 0)
            assert interval.includes_zero
    assert statistics["b"].mean["AP"].low < statistics["b"].mean["AP"].high


def test_rows_of_other_images_are_refused(judged) -> None:
    _, _, _, matches = judged
    for other in (
        dataclasses.replace(matches, image_ids=matches.image_ids + 1),
        dataclasses.replace(matches, gt_label=np.roll(matches.gt_label, 1)),
    ):
        with pytest.raises(UserError, match="row 'b' was judged on other images"):
            paired_bootstrap({"a": [matches], "b": [other]}, "a", 10)
    with pytest.raises(UserError, match="baseline 'c'"):
        paired_bootstrap({"a": [matches]}, "c", 10)
    with pytest.raises(UserError, match="no seeds"):
        paired_bootstrap({"a": [matches], "b": []}, "a", 10)


def _world(rng: np.random.Generator, images: int, skill: float) -> Matches:
    """Six classes, 2.5 objects an image; a detector that finds, places and scores by its skill, and invents."""
    places = np.repeat(np.arange(images), rng.poisson(2.5, images))
    labels = rng.integers(1, 7, len(places))
    found = rng.random(len(places)) < 0.3 + 0.65 * skill
    invented = np.repeat(np.arange(images), rng.poisson(3 - 2 * skill, images))
    iou = np.concatenate([rng.normal(0.55 + 0.3 * skill, 0.15, found.sum()), np.zeros(len(invented))])
    return Matches(
        image=np.concatenate([places[found], invented]),
        label=np.concatenate([labels[found], rng.integers(1, 7, len(invented))]),
        score=np.concatenate([rng.beta(2 + 5 * skill, 2, found.sum()), rng.beta(1.2, 4, len(invented))]),
        tp=iou[:, None] >= np.arange(50, 100, 5) / 100,
        ignored=np.zeros((len(iou), 10), bool),
        iou=iou,
        gt_image=places,
        gt_label=labels,
        image_ids=np.arange(images),
    )


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    # the truth: what sets of 150 images show on average
    sets = [
        [average_precision(_world(np.random.default_rng(10_000 + s), 150, p)).AP for p in (0.4, 0.6)]
        for s in range(200)
    ]
    weak, strong = np.mean(sets, axis=0)
    trials, inside, gains = 100, 0, 0
    for trial in range(trials):
        # one stream for both: the objects are drawn first, so that the images are the same
        rows = {n: [_world(np.random.default_rng(trial), 150, p)] for n, p in (("weak", 0.4), ("strong", 0.6))}
        got = paired_bootstrap(rows, "weak", 120)
        inside += got["weak"].mean["AP"].low <= weak <= got["weak"].mean["AP"].high
        gain = got["strong"].gain["AP"].absolute
        gains += gain.low <= strong - weak <= gain.high
    # 95 %, with a standard deviation of 2.2
    assert 88 <= inside <= 99
    assert 88 <= gains <= 99


def test_matches_are_read_back_and_damage_is_named(judged, tmp_path: Path) -> None:
    truth, found, _, matches = judged
    written = simulated.write_results(tmp_path / "results", truth, found)
    read = Matches.load(str(tmp_path / "results/matches.npz"))
    for name in Matches.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    (tmp_path / "bad.npz").write_bytes((tmp_path / "results/matches.npz").read_bytes()[:200])
    np.savez(tmp_path / "short.npz", image=matches.image)
    for name in ("bad.npz", "short.npz", "none.npz"):
        with pytest.raises(UserError, match=name):
            Matches.load(str(tmp_path / name))
