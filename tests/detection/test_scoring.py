"""Scores against stock pycocotools, the ways evaluation goes wrong without a word, and the results folder."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backbone.errors import UserError
from detection import scoring
from detection.coco_format import mended
from detection.data.contract import Categories
from detection.scoring import STATS, Scored, coco_eval, score, score_coco
from tests.detection.adversarial import CATEGORIES, box_mask, careless, case, stock


def expected(values: np.ndarray) -> dict[str, float | None]:
    return {name: None if v == -1 else v for name, v in zip(STATS, values, strict=True)}


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_both_ways_give_stock_pycocotools_numbers(kind: Any, seed: int) -> None:
    """The reference to the bit; the fast way to two of the last bits, which pycocotools' epsilon makes."""
    truth, results = case(seed)
    judge = stock(truth, results, kind)
    assert 0 < judge.stats[0] < 1
    for given in (truth, careless(truth)):
        stats, precision = coco_eval(mended(given), results, CATEGORIES, kind, fast=False)
        np.testing.assert_array_equal(stats, judge.stats)
        np.testing.assert_array_equal(precision, judge.eval["precision"])
        stats, precision = coco_eval(mended(given), results, CATEGORIES, kind, fast=True)
        np.testing.assert_allclose(stats, judge.stats, rtol=0, atol=1e-15)
        np.testing.assert_allclose(precision, judge.eval["precision"], rtol=0, atol=3e-16)


@pytest.mark.parametrize("fast", [True, False])
def test_keys_and_classes(fast: bool, capfd: pytest.CaptureFixture) -> None:
    truth, results = case(0)
    judge = stock(truth, results)
    capfd.readouterr()
    found = score_coco(careless(truth), results, CATEGORIES, fast=fast)
    assert capfd.readouterr() == ("", "")
    per_class = found.pop("per_class")
    assert found == pytest.approx(expected(judge.stats), abs=1e-15)
    assert list(per_class) == list(CATEGORIES.names)
    for name, category in zip(CATEGORIES.names, CATEGORIES.ids, strict=True):
        precision = judge.eval["precision"][:, :, sorted(CATEGORIES.ids).index(category), 0, 2]
        objects = sum(a["category_id"] == category and not a["iscrowd"] for a in truth["annotations"])
        ap = precision.mean() if objects else None
        ap50 = precision[0].mean() if objects else None
        assert per_class[name] == pytest.approx({"AP": ap, "AP50": ap50, "objects": objects}, abs=1e-15)
    assert per_class["bus"] == {"AP": None, "AP50": None, "objects": 0}  # crowds alone
    assert per_class["dog"]["AP"] == 0
    assert per_class["dog"]["objects"] > 0


@pytest.mark.parametrize("fast", [True, False])
def test_annotation_0_is_found(fast: bool) -> None:
    truth = {
        "images": [{"id": 5, "height": 150, "width": 180}],
        "annotations": [{"id": 0, "image_id": 5, "category_id": 3, "bbox": [10, 10, 20, 20]}],
        "categories": [{"id": 3, "name": "dog"}],
    }
    results = [{"image_id": 5, "category_id": 3, "bbox": [10, 10, 20, 20], "score": 0.5}]
    assert score_coco(truth, results, Categories(("dog",), (3,)), fast=fast)["AP"] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_ground_truth_as_detections_is_perfect_with_crowds(fast: bool, kind: Any) -> None:
    truth, _ = case(1)
    seen, results = set(), []
    for a in truth["annotations"]:
        # Once each: a doubled object is found by neither method's first detection alone.
        key = (a["image_id"], a["category_id"], *a["bbox"])
        if key not in seen:
            seen.add(key)
            results.append({k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9})
            results[-1]["segmentation"] = box_mask(*a["bbox"])
    truth["annotations"] = [
        a
        for i, a in enumerate(truth["annotations"])
        if a["iscrowd"] or a["bbox"] not in [b["bbox"] for b in truth["annotations"][:i]]
    ]
    assert sum(a["iscrowd"] for a in truth["annotations"]) > 5
    found = score_coco(truth, results, CATEGORIES, kind, fast)
    assert [found[k] for k in ("AP", "AP50", "AP75", "AR100")] == pytest.approx([1] * 4, abs=1e-12)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_nothing_found_is_0_and_nothing_to_find_is_none(fast: bool, kind: Any) -> None:
    truth, results = case(2)
    found = score_coco(truth, [], CATEGORIES, kind, fast)
    per_class = found.pop("per_class")
    assert set(found.values()) == {0.0}
    assert [scores["AP"] for scores in per_class.values()] == [0, 0, 0, None, None]
    found = score_coco({**truth, "annotations": []}, results, CATEGORIES, kind, fast)
    assert found.pop("per_class")["cat"] == {"AP": None, "AP50": None, "objects": 0}
    assert set(found.values()) == {None}
    empty = {**truth, "images": [], "annotations": []}
    assert score_coco(empty, [], CATEGORIES, kind, fast)["AP"] is None


def test_notes_say_what_is_empty() -> None:
    truth, results = case(2)
    notes = score(truth, [], CATEGORIES)["notes"]
    assert notes[0] == "no detections: AP and AR are 0"
    assert notes[1].endswith("bus, tree")
    assert len(score(truth, results, CATEGORIES)["notes"]) == 1


def test_arguments_are_not_changed() -> None:
    truth, results = careless(case(3)[0]), case(3)[1]
    before = json.dumps([truth, results])
    for fast in (True, False):
        for kind in ("bbox", "segm"):
            score_coco(truth, results, CATEGORIES, kind, fast)  # ty: ignore[invalid-argument-type]
    scoring.all_matches(truth, results, CATEGORIES)
    scoring.score_voc(truth, results, CATEGORIES)
    assert json.dumps([truth, results]) == before


def _set(part: str, field: str, value: Any) -> Any:
    def change(truth: dict[str, Any], results: list[dict[str, Any]]) -> None:
        rows = results if part == "results" else truth[part]
        rows[3 if len(rows) > 5 else 0][field] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("results", "image_id", 4711), r"results: image ids \[4711\]"),
        (_set("results", "category_id", 1), r"results: category ids \[1\] .*\[3, 7, 18, 44, 90\]"),
        (_set("annotations", "image_id", 4711), r"ground truth: image ids \[4711\]"),
        (_set("annotations", "category_id", 2), r"ground truth: category ids \[2\]"),
        (_set("results", "score", float("nan")), "results: 1 boxes or scores.*score nan"),
        (_set("results", "bbox", [1, 1, -2, 5]), r"results: 1 boxes.*\[1, 1, -2, 5\]"),
        (_set("categories", "name", "car"), "category 18 is car in the ground truth and cat in the detector"),
        (_set("results", "segmentation", None), "results: 1 of .* have no segmentation"),
        (_set("annotations", "segmentation", []), "ground truth: 1 of .* have no segmentation"),
    ],
)
def test_what_does_not_fit_is_named(change: Any, message: str) -> None:
    truth, results = copy.deepcopy(case(0))
    change(truth, results)
    with pytest.raises(UserError, match=message):
        score_coco(truth, results, CATEGORIES, "segm")


def test_stock_pycocotools_rescores_the_folder(tmp_path: Path) -> None:
    truth, results = careless(case(1)[0]), case(1)[1]
    metrics = score(truth, results, CATEGORIES, masks=True)
    matches = scoring.all_matches(truth, results, CATEGORIES)
    url = tmp_path / "run" / "results"
    scoring.write(url, Scored(truth, results, metrics, matches), {"seed": 7})
    files = {p.name: p for p in url.iterdir()}
    assert sorted(files) == ["detections.json", "ground_truth.json", "matches.npz", "metrics.json"]
    written = json.loads(files["metrics.json"].read_text())
    for kind in ("bbox", "segm"):
        judge = stock(*(json.loads(files[n].read_text()) for n in ("ground_truth.json", "detections.json")), kind)
        assert {k: written[kind][k] for k in STATS} == pytest.approx(expected(judge.stats), abs=1e-15)
    back = scoring.read(url)
    assert back.metrics == {**metrics, "provenance": {"seed": 7}}
    assert back.detections == results
    assert back.ground_truth == mended(truth)
    assert all(np.array_equal(back.matches[k], v) and back.matches[k].dtype == v.dtype for k, v in matches.items())
    files["metrics.json"].unlink()
    with pytest.raises(UserError, match="no complete results folder"):
        scoring.read(url)


def test_table() -> None:
    truth, results = case(0)
    metrics = score(truth, results, CATEGORIES, masks=True)
    lines = scoring.table(metrics).splitlines()
    assert lines[0].split() == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    for line, kind in zip(lines[1:3], ("bbox", "segm"), strict=True):
        assert line.split() == [kind, *(f"{100 * metrics[kind][k]:.1f}" for k in STATS[:6])]
    assert f"mAP {100 * metrics['voc']['mAP']:.1f} (area)" in lines[3]
    cells = "   ".join(lines[5:-1]).split()
    assert cells[cells.index("bus") + 1] == "-"
    assert cells[cells.index("dog") + 1] == "0.0"
    many = {f"class number {i}": {"AP": i / 80} for i in range(80)}
    metrics["bbox"]["per_class"] = many
    text = scoring.table(metrics)
    assert max(map(len, text.splitlines()[:-1])) <= 100
    assert all(name in text for name in many)
    del metrics["segm"]
    assert "segm" not in scoring.table(metrics)
