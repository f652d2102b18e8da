"""The weighted AP against stock pycocotools, many resamples at once against one at a time."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backbone.errors import UserError
from detection.data.contract import Categories
from detection.matches import all_matches
from detection.report.bootstrap import (
    paired_draws,
    precision_recall,
    voc_area,
    voc_eleven,
)
from detection.report.stored import Matches, load
from detection.voc_ap import score_voc
from tests.detection.report import simulated
from tests.detection.report.simulated import average_precision

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
    rows = {name: getattr(matches, name)[:0] for name in ("image", "label", "score", "tp", "ignored")}
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
    """What a test of `detection.matches` shows to be pycocotools' comes back as it is."""
    truth, found, _, matches = judged
    folder = tmp_path / "results"
    simulated.write_results(folder, truth, found)
    read = load(str(folder))
    order = np.lexsort((-matches.score, matches.label, matches.image))
    for name in ("image", "label", "score"):
        np.testing.assert_array_equal(getattr(read["bbox"], name), getattr(matches, name)[order])
    np.testing.assert_array_equal(read["bbox"].tp, (matches.tp & ~matches.ignored)[order])
    whole = (folder / "matches.npz").read_bytes()
    with np.load(folder / "matches.npz") as npz:
        arrays = dict(npz)
    # of version 0.1.0, which wrote less: matched anew
    np.savez(folder / "matches.npz", **{n: a for n, a in arrays.items() if not n.startswith(("voc_", "near", "found"))})
    again = load(str(folder))
    for kind in ("bbox", "voc"):
        for name in ("image", "label", "score", "tp", "ignored", "gt_image", "gt_label", "image_ids"):
            np.testing.assert_array_equal(getattr(again[kind], name), getattr(read[kind], name))
    (folder / "matches.npz").write_bytes(whole[:200])
    for place in (folder, tmp_path / "none"):
        with pytest.raises(UserError, match=rf"{place}/matches\.npz: cannot read the matches"):
            load(str(place))


@pytest.mark.parametrize("seed", range(3))
def test_voc_draws_are_scores_of_duplicated_images(seed: int) -> None:
    """The weighted mAP of VOC against `score_voc`, itself shown to be the devkit's, of data that hold images twice."""
    names = [f"class {i}" for i in range(3)]
    truth = simulated.ground_truth(25, names, seed)
    rng = np.random.default_rng(seed)
    for a in truth["annotations"]:
        a["difficult"] = int(rng.random() < 0.15)
    found = simulated.detections(truth, 0.6, seed)
    categories = Categories(tuple(names), tuple(c["id"] for c in truth["categories"]))
    arrays = all_matches(truth, found, categories)
    voc = Matches(
        **{n.removeprefix("voc_"): a for n, a in arrays.items() if n.startswith("voc_")}, image_ids=arrays["image_ids"]
    )
    assert voc.ignored.any()
    draws = rng.multinomial(25, np.full(25, 1 / 25), size=3)
    weights = np.concatenate([np.ones((25, 1)), draws.T], axis=1)
    ours = np.concatenate([voc_area(voc, weights), voc_eleven(voc, weights)])
    for b, counts in enumerate(weights.T.astype(int)):
        twice: dict[str, Any] = {"images": [], "annotations": [], "categories": truth["categories"]}
        doubles = []
        for image_id, n in zip(arrays["image_ids"].tolist(), counts, strict=True):
            for copy_of in range(n):
                new = image_id * 1000 + copy_of
                twice["images"].append({"id": new, "width": 240, "height": 240})
                twice["annotations"] += [
                    {**a, "image_id": new} for a in truth["annotations"] if a["image_id"] == image_id
                ]
                doubles += [{**d, "image_id": new} for d in found if d["image_id"] == image_id]
        scores = score_voc(twice, doubles, categories)
        np.testing.assert_allclose(ours[:, b], [scores["mAP"], scores["mAP07"]], atol=1e-12, rtol=0)
    assert abs(ours[0, 0] - ours[1, 0]) > 1e-3
    assert np.isnan(voc_area(voc, weights * 0)).all()
