"""Matches against stock pycocotools' own, and its AP from them alone."""

from typing import Literal

import numpy as np
import pytest
from pycocotools import mask as rle

from detection.matches import matches
from tests.detection.adversarial import CATEGORIES, HEIGHT, WIDTH, Case, box_mask, careless, case, stock

KINDS = [("bbox", 0), ("bbox", 1), ("bbox", 2), ("bbox", 3), ("segm", 0), ("segm", 1)]


def of_kind(kind: str, seed: int) -> Case:
    """With masks that are no boxes: a corner of each object is missing, of each third detection the left half."""
    truth, results = case(seed)
    if kind == "segm":
        for i, row in enumerate([*truth["annotations"], *results]):
            x, y, w, h = row["bbox"]
            if isinstance(row["segmentation"], list):
                row["segmentation"] = [[x, y, x + w, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h]]
            elif i % 3 == 0 and w > 1:
                row["segmentation"] = box_mask(x + w // 2, y, w - w // 2, h)
    return truth, results


@pytest.mark.parametrize(("kind", "seed"), KINDS)
def test_rows_are_those_of_evaluate_img(kind: Literal["bbox", "segm"], seed: int) -> None:
    """Every image and class: the same detections in the same order, the same ones right and ignored."""
    truth, results = of_kind(kind, seed)
    judge = stock(truth, results, kind)
    found = matches(careless(truth), results, CATEGORIES, kind)
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


@pytest.mark.parametrize(("kind", "seed"), [KINDS[0], *KINDS[-2:]])
def test_ap_comes_back_from_matches_alone(kind: Literal["bbox", "segm"], seed: int) -> None:
    truth, results = of_kind(kind, seed)
    judge = stock(truth, results, kind)
    found = matches(truth, results, CATEGORIES, kind)
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


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_nearest_objects_of_the_class_and_of_others(kind: Literal["bbox", "segm"]) -> None:
    """Against IoU of every pair, pixel by pixel."""
    truth, results = of_kind(kind, 2)
    for row in [*truth["annotations"], *results]:  # whole pixels, for boxes the same as their masks
        if kind == "bbox" and not row.get("iscrowd"):
            row["segmentation"] = box_mask(*row["bbox"])
    found = matches(truth, results, CATEGORIES, kind)
    objects = [a for a in truth["annotations"] if not a["iscrowd"]]
    order = np.argsort([a["image_id"] for a in objects], kind="stable")
    seen = 0
    for row in results[::15]:
        image = int(np.searchsorted(found["image_ids"], row["image_id"]))
        label = CATEGORIES.ids.index(row["category_id"]) + 1
        rows = np.flatnonzero((found["image"] == image) & (found["label"] == label) & (found["score"] == row["score"]))
        x, y, w, h = row["bbox"]
        if len(rows) != 1 or w < 1 or x + w > WIDTH or y + h > HEIGHT:  # a mask ends with the image
            continue
        mine = rle.decode(row["segmentation"]).astype(bool)
        best: dict[bool, list[tuple[float, int]]] = {True: [], False: []}
        for place, i in enumerate(order.tolist()):
            a = objects[i]
            if a["image_id"] == row["image_id"]:
                runs = a["segmentation"]
                if isinstance(runs, list):
                    runs = rle.merge(rle.frPyObjects(runs, HEIGHT, WIDTH))
                other = rle.decode(runs).astype(bool)
                iou = (mine & other).sum() / (mine | other).sum()
                best[a["category_id"] == row["category_id"]].append((float(iou), place))
        for same, suffix in ((True, ""), (False, "_other")):
            iou, near = found[f"iou{suffix}"][rows[0]], int(found[f"near{suffix}"][rows[0]])
            top = max((value for value, _ in best[same]), default=0.0)
            assert iou == pytest.approx(top, abs=1e-9)
            assert near == -1 if top == 0 else near in [place for value, place in best[same] if value == top]
            seen += top > 0
        if found["found"][rows[0]] >= 0:
            assert found["tp"][rows[0], 0]
            assert found["gt_label"][found["found"][rows[0]]] == label
    assert seen > 10
    assert np.array_equal(found["found"] >= 0, found["tp"][:, 0])
    taken = found["found"][found["found"] >= 0]
    assert len(set(taken.tolist())) == len(taken)


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
