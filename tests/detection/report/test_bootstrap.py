"""The weighted AP against stock pycocotools, many resamples at once against one at a time."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backbone.errors import UserError
from detection.report.bootstrap import Matches, average_precision, paired_draws, precision_recall
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
    assert (paired_draws({"a": [nothing], "b": [matches]}, 20)["a"] == 0).all()


def test_many_resamples_at_once_equal_one_at_a_time(judged, monkeypatch) -> None:
    _, _, _, matches = judged
    other = copy.deepcopy(matches)
    other.score[:] = np.random.default_rng(0).random(len(other.score))
    monkeypatch.setattr("detection.report.bootstrap.BLOCK", 500)  # several blocks a class
    got = paired_draws({"a": [matches], "b": [other, matches]}, 40, seed=3)
    draws = np.random.default_rng(3).multinomial(60, np.full(60, 1 / 60), size=40)
    for label, training, one in (("a", 0, matches), ("b", 0, other), ("b", 1, matches)):
        for i, metric in enumerate(("AP", "AP50", "AP75")):
            expected = [getattr(average_precision(one, w), metric) for w in (None, *draws)]
            np.testing.assert_allclose(got[label][i, training], expected, atol=1e-15)


def test_the_order_of_images_changes_nothing(judged) -> None:
    _, _, _, matches = judged
    order = np.random.default_rng(0).permutation(60)
    place = np.argsort(order)
    shuffled = dataclasses.replace(
        matches,
        image=place[matches.image],
        gt_image=place[matches.gt_image],
        image_ids=matches.image_ids[order],
    )
    draws = paired_draws({"a": [matches], "b": [shuffled]}, 100)
    np.testing.assert_array_equal(draws["a"], draws["b"])


def test_rows_of_other_images_are_refused(judged) -> None:
    _, _, _, matches = judged
    for other in (
        dataclasses.replace(matches, image_ids=matches.image_ids + 1),
        dataclasses.replace(matches, gt_label=np.roll(matches.gt_label, 1)),
    ):
        with pytest.raises(UserError, match="row 'b' was judged on other images"):
            paired_draws({"a": [matches], "b": [other]}, 10)
    with pytest.raises(UserError, match="no training"):
        paired_draws({"a": [matches], "b": []}, 10)


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
