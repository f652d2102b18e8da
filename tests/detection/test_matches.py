"""Matches against stock pycocotools' own, and its AP from them alone."""

import numpy as np
import pytest

from detection.matches import matches
from tests.detection.adversarial import CATEGORIES, careless, case, stock


@pytest.mark.parametrize("seed", range(6))
def test_rows_are_those_of_evaluate_img(seed: int) -> None:
    """Every image and class: the same detections in the same order, the same ones right and ignored."""
    truth, results = case(seed)
    judge = stock(truth, results)
    found = matches(careless(truth), results, CATEGORIES)
    assert list(found["image_ids"]) == sorted(i["id"] for i in truth["images"])
    seen = objects = 0
    for entry in judge.evalImgs:
        if entry is None or entry["aRng"] != [0, 1e10]:
            continue
        image = int(np.searchsorted(found["image_ids"], entry["image_id"]))
        label = CATEGORIES.ids.index(entry["category_id"]) + 1
        rows = (found["image"] == image) & (found["label"] == label)
        ignored = entry["dtIgnore"].T.astype(bool)
        np.testing.assert_array_equal(found["score"][rows], entry["dtScores"])
        np.testing.assert_array_equal(found["ignored"][rows], ignored)
        np.testing.assert_array_equal(found["tp"][rows], (entry["dtMatches"].T > 0) & ~ignored)
        counted = np.count_nonzero((found["gt_image"] == image) & (found["gt_label"] == label))
        assert counted == np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
        seen, objects = seen + int(rows.sum()), objects + counted
    assert seen == len(found["score"])
    assert objects == len(found["gt_image"])
    assert found["ignored"].any()
    assert found["tp"].any()


@pytest.mark.parametrize("seed", range(3))
def test_ap_comes_back_from_matches_alone(seed: int) -> None:
    truth, results = case(seed)
    judge = stock(truth, results)
    found = matches(truth, results, CATEGORIES)
    ap = np.full((len(CATEGORIES), 10), np.nan)
    for label in range(1, len(CATEGORIES) + 1):
        positives = np.count_nonzero(found["gt_label"] == label)
        rows = np.flatnonzero(found["label"] == label)
        rows = rows[np.argsort(-found["score"][rows], kind="stable")]
        for t in range(10 if positives else 0):
            hits = found["tp"][rows[~found["ignored"][rows, t]], t]
            right = np.cumsum(hits)
            recall, precision = right / positives, right / np.arange(1, len(hits) + 1)
            at = [precision[recall >= r] for r in np.linspace(0, 1, 101)]
            ap[label - 1, t] = np.mean([p.max() if len(p) else 0 for p in at])
    ours = [np.nanmean(ap), np.nanmean(ap[:, 0]), np.nanmean(ap[:, 5])]
    assert ours == pytest.approx(list(judge.stats[:3]), abs=1e-12)
    for k, category in enumerate(sorted(CATEGORIES.ids)):
        stock_ap = judge.eval["precision"][:, :, k, 0, 2]
        label = CATEGORIES.ids.index(category)
        assert np.nan_to_num(ap[label].mean(), nan=-1) == pytest.approx(stock_ap.mean(), abs=1e-12)


def test_iou_is_the_best_with_an_object_of_the_class() -> None:
    truth, results = case(0)
    found = matches(truth, results, CATEGORIES)
    counts = [a for a in truth["annotations"] if not a["iscrowd"]]
    best: dict[tuple[int, int, float], list[float]] = {}
    for r in results:
        x, y, w, h = r["bbox"]
        value = 0.0
        for a in counts:
            if (a["image_id"], a["category_id"]) == (r["image_id"], r["category_id"]):
                u, v, p, q = a["bbox"]
                both = max(min(x + w, u + p) - max(x, u), 0) * max(min(y + h, v + q) - max(y, v), 0)
                value = max(value, both / (w * h + p * q - both))
        best.setdefault((r["image_id"], r["category_id"], r["score"]), []).append(value)
    alone = [key for key, values in best.items() if len(values) == 1]
    assert len(alone) > 100
    for row in range(len(found["score"])):
        key = (
            int(found["image_ids"][found["image"][row]]),
            CATEGORIES.ids[found["label"][row] - 1],
            found["score"][row],
        )
        if key in alone:
            assert found["iou"][row] == pytest.approx(best[key][0], abs=1e-6)


def test_no_detections_and_no_ground_truth() -> None:
    truth, results = case(0)
    found = matches(truth, [], CATEGORIES)
    assert found["tp"].shape == found["ignored"].shape == (0, 10)
    assert len(found["gt_image"]) == sum(not a["iscrowd"] for a in truth["annotations"])
    found = matches({**truth, "annotations": []}, results, CATEGORIES)
    assert not found["tp"].any()
    assert not found["iou"].any()
    assert len(found["gt_label"]) == 0


def test_dtypes() -> None:
    found = matches(*case(0), CATEGORIES)
    names = {"image": "int32", "label": "int16", "score": "float64", "tp": "bool", "ignored": "bool", "iou": "float64"}
    names |= {"near": "int32", "iou_other": "float64", "near_other": "int32", "found": "int32"}
    names |= {"gt_image": "int32", "gt_label": "int16", "image_ids": "int64"}
    assert {name: str(array.dtype) for name, array in found.items()} == names
