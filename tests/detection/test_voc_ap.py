"""VOC average precision against hand counts and against a plain reading of the definition, in fractions."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from detection.data.contract import Categories
from detection.voc_ap import area_ap, eleven_point_ap, score_voc
from tests.detection.adversarial import CATEGORIES, case

ONE = Categories(("cat",), (4,))


def devkit(truth: dict[str, Any], results: list[dict[str, Any]], category: int) -> tuple[Fraction, Fraction] | None:
    """One class by the letter of VOCevaldet.m: inclusive pixels counted from 1, loops, exact fractions."""

    def pixels(box: list[float]) -> list[Fraction]:
        x, y, w, h = map(Fraction, box)
        return [x + 1, y + 1, x + w, y + h]

    objects = [a for a in truth["annotations"] if a["category_id"] == category]
    hard = [bool(a.get("iscrowd") or a.get("difficult")) for a in objects]
    positives = hard.count(False)
    if not positives:
        return None
    taken = [False] * len(objects)
    tp = fp = 0
    curve = []
    for r in sorted((r for r in results if r["category_id"] == category), key=lambda r: (-r["score"], r["image_id"])):
        best, owner = Fraction(-1), -1
        a = pixels(r["bbox"])
        for i, o in enumerate(objects):
            b = pixels(o["bbox"])
            iw = min(a[2], b[2]) - max(a[0], b[0]) + 1
            ih = min(a[3], b[3]) - max(a[1], b[1]) + 1
            if o["image_id"] == r["image_id"] and iw > 0 and ih > 0:
                size_a = (a[2] - a[0] + 1) * (a[3] - a[1] + 1)
                size_b = (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
                overlap = iw * ih / (size_a + size_b - iw * ih)
                if overlap > best:
                    best, owner = overlap, i
        if best >= Fraction(1, 2):
            if not hard[owner]:
                tp, fp = (tp, fp + 1) if taken[owner] else (tp + 1, fp)
                taken[owner] = True
        else:
            fp += 1
        if tp + fp:
            curve.append((Fraction(tp, positives), Fraction(tp, tp + fp)))

    def highest(recall: Fraction) -> Fraction:
        return max((p for r, p in curve if r >= recall), default=Fraction(0))

    # The envelope is constant between k/positives and (k + 1)/positives.
    area = sum(highest(Fraction(k, positives)) for k in range(1, positives + 1)) / positives
    return area, sum(highest(Fraction(k, 10)) for k in range(11)) / 11


@pytest.mark.parametrize("seed", range(6))
def test_the_definition_in_fractions(seed: int) -> None:
    truth, results = case(seed)
    rng = np.random.default_rng(seed)
    for a in truth["annotations"]:
        a["difficult"] = int(rng.random() < 0.15)
    # Ties in score go by order in the results; one detection in each image and score leaves order no say.
    results = list({(r["category_id"], r["image_id"], r["score"]): r for r in results}.values())
    found = score_voc(truth, results, CATEGORIES)
    expected = {name: devkit(truth, results, i) for name, i in zip(CATEGORIES.names, CATEGORIES.ids, strict=True)}
    known = [scores for scores in expected.values() if scores]
    assert len(known) == 3
    for name, scores in expected.items():
        ours = found["per_class"][name]
        if scores is None:
            assert ours == {"AP": None, "AP07": None}
        else:
            assert [ours["AP"], ours["AP07"]] == pytest.approx([float(s) for s in scores], abs=1e-12)
    assert found["mAP"] == pytest.approx(float(sum(s[0] for s in known) / 3), abs=1e-12)
    assert found["mAP07"] == pytest.approx(float(sum(s[1] for s in known) / 3), abs=1e-12)
    assert 0.01 < found["mAP"] < 0.9


def scene(objects: list[tuple[list[float], dict[str, int]]], found: list[tuple[list[float], float]]) -> dict[str, Any]:
    truth = {
        "images": [{"id": 1, "height": 500, "width": 500}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 4, "bbox": b, **f} for i, (b, f) in enumerate(objects, 1)
        ],
        "categories": [{"id": 4, "name": "cat"}],
    }
    results = [{"image_id": 1, "category_id": 4, "bbox": b, "score": s} for b, s in found]
    return score_voc(truth, results, ONE)["per_class"]["cat"]


A, B, FAR = [0, 0, 10, 10], [50, 50, 10, 10], [200, 200, 10, 10]


@pytest.mark.parametrize(
    ("objects", "found", "ap", "ap07"),
    [
        ([(A, {}), (B, {})], [(A, 0.9), (B, 0.8)], 1, 1),
        ([(A, {}), (B, {})], [(A, 0.9)], 1 / 2, 6 / 11),  # recall 0 .. 0.5
        ([(A, {}), (B, {})], [(FAR, 0.9), (A, 0.8), (B, 0.7)], 2 / 3, 2 / 3),
        ([(A, {}), (B, {})], [(A, 0.9), (A, 0.8), (B, 0.7)], 1 / 2 + 1 / 2 * 2 / 3, (6 + 5 * 2 / 3) / 11),  # twice
        ([(A, {}), (B, {"difficult": 1})], [(B, 0.9), (B, 0.8), (A, 0.7)], 1, 1),  # difficult: neither
        ([(A, {}), (B, {"iscrowd": 1})], [(A, 0.9), (B, 0.8)], 1, 1),
        ([(A, {})], [([0, 0, 10, 5], 0.9)], 1, 1),  # IoU 0.5 is enough
        ([(A, {})], [([0, 0, 10, 4.9], 0.9)], 0, 0),
        ([(A, {})], [], 0, 0),
        ([(A, {"difficult": 1})], [(A, 0.9)], None, None),
        # The best overlap is taken already: wrong, though the second best would be free and above 0.5.
        ([(A, {}), ([0, 0, 10, 8], {})], [(A, 0.9), ([0, 0, 10, 9.5], 0.8)], 1 / 2, 6 / 11),
    ],
)
def test_by_hand(objects: Any, found: Any, ap: float | None, ap07: float | None) -> None:
    assert scene(objects, found) == {"AP": pytest.approx(ap), "AP07": pytest.approx(ap07)}


def test_eleven_points_meet_recall_of_whole_tenths() -> None:
    """3 right of 10, then only wrong ones: recall 0.3 is reached, so 4 of 11 points count."""
    tp, fp = np.array([1, 2, 3, 3]), np.array([0, 0, 0, 1])
    assert eleven_point_ap(tp, fp, 10) == pytest.approx(4 / 11, abs=1e-15)
    assert area_ap(tp, fp, 10) == pytest.approx(0.3, abs=1e-15)


def test_detections_beyond_100_count() -> None:
    found = [(FAR, 1 - i / 1000) for i in range(150)] + [(A, 0.1)]
    assert scene([(A, {})], found)["AP"] == pytest.approx(1 / 151)
