"""Costs of errors that were planted one by one, against stock pycocotools on data in which they are mended by hand."""

from typing import Any

import numpy as np
import pytest

from detection.matches import matches
from detection.report.errors import KINDS, RIGHT, costs, split
from detection.report.stored import Matches, Overlaps
from tests.detection.report import simulated

NAMES = ["cat", "dog", "bus", "bird"]
CELL, SIDE = 60.0, 40.0  # a cell of the image holds one object at most, or an error without one
PLANTED = ("right", *KINDS, "twice", "misplaced twice", "misnamed and misplaced", "other class taken")


def plant(seed: int, images: int = 16) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations and detections; each says in `mend` by kind what mending makes of it: None takes it away."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    scores = iter(rng.permutation(10_000) / 10_000)
    for image in range(1, images + 1):
        for cell in range(16):
            kind = str(rng.choice(PLANTED, p=[0.3, *[0.07] * 10]))
            x, y = CELL * (cell % 4), CELL * (cell // 4)
            category, other = (int(c) * 7 + 3 for c in rng.permutation(4)[:2])
            box = [x, y, SIDE, SIDE]
            near, far = [x + 2, y, SIDE, SIDE], [x + 20, y, SIDE, SIDE]  # IoU 0.90 and 0.33

            def detect(where: list[float], of: int, mend: dict[str, Any], image: int = image) -> None:
                row = {"image_id": image, "category_id": of, "bbox": where, "score": float(next(scores))}
                found.append(row | {"mend": mend})

            right = {"bbox": box, "category_id": category}
            if kind != "background":
                annotations.append({"id": len(annotations) + 1, "image_id": image, **right, "area": SIDE**2})
                annotations[-1] |= {"iscrowd": 0, "mend": {}}
            if kind in ("missed", "both"):
                annotations[-1]["mend"] = {"missed": None}
            if kind in ("right", "duplicate", "twice", "other class taken"):
                detect(box, category, {})
                sure = found[-1]
            if kind in ("duplicate", "twice"):
                for _ in range(1 + (kind == "twice")):
                    detect(near, category, {"duplicate": None})
                    found[-1]["score"] = sure["score"] * rng.uniform(0.2, 0.9)
            if kind == "other class taken":  # mending it would find an object a second time
                detect(near, other, {"classification": None})
            if kind == "classification":
                detect(near, other, {"classification": right})
            if kind == "localisation":
                detect(far, category, {"localisation": right})
            if kind == "both":
                detect(far, other, {"both": None})
            if kind == "background":
                detect(box, category, {"background": None})
            if kind in ("misplaced twice", "misnamed and misplaced"):  # the surest of both alone is mended
                how = ["localisation", "localisation" if kind == "misplaced twice" else "classification"]
                pair = []
                for one in how:
                    detect(*((far, category) if one == "localisation" else (near, other)), {one: None})
                    pair.append(found[-1])
                best = int(pair[1]["score"] > pair[0]["score"])
                pair[best]["mend"] = {how[best]: right}
    truth = {
        "images": [{"id": i, "width": 240, "height": 240} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": 7 * k + 3, "name": name} for k, name in enumerate(NAMES)],
    }
    return truth, found


def mend(rows: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [row | (row["mend"].get(kind) or {}) for row in rows if row["mend"].get(kind, {}) is not None]


def ap50(truth: dict[str, Any], found: list[dict[str, Any]]) -> float:
    return float(simulated.stock(truth, found).stats[1])


def of(truth: dict[str, Any], found: list[dict[str, Any]]) -> Matches:
    arrays = matches(truth, found, simulated.categories_of(truth))
    own = {name: arrays.pop(name) for name in Overlaps.__dataclass_fields__}
    return Matches(**arrays, overlaps=Overlaps(**own))


def test_planted_errors_cost_what_mending_them_by_hand_wins() -> None:
    truth, found = plant(0)
    hits = of(truth, found)
    errors = split(hits)
    planted = [next(iter(d["mend"]), None) for d in found]
    for k, kind in enumerate(KINDS[:-1]):
        assert np.count_nonzero(errors.kind == k) == planted.count(kind) > 5
    assert np.count_nonzero(errors.kind == RIGHT) == planted.count(None)
    assert errors.missed.sum() == sum("missed" in a["mend"] for a in truth["annotations"]) > 5
    before = ap50(truth, found)
    weights = np.ones((len(truth["images"]), 1))
    for kind, cost in zip(KINDS, costs(hits, weights)[:, 0], strict=True):
        after = ap50({**truth, "annotations": mend(truth["annotations"], kind)}, mend(found, kind))
        assert cost == pytest.approx(after - before, abs=1e-12)
        assert cost > 0


def test_weights_are_duplicated_images() -> None:
    truth, found = plant(3, 12)
    weights = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12))
    assert (weights == 0).any()
    images, annotations, more = [], [], []
    for image, n in zip(range(1, 13), weights.tolist(), strict=True):
        for copy_of in range(n):
            new = 100 * image + copy_of
            images.append({"id": new, "width": 240, "height": 240})
            annotations += [a | {"image_id": new} for a in truth["annotations"] if a["image_id"] == image]
            more += [d | {"image_id": new} for d in found if d["image_id"] == image]
    twice = of({**truth, "images": images, "annotations": annotations}, more)
    ours = costs(of(truth, found), np.stack([np.ones(12), weights], axis=1))
    np.testing.assert_allclose(ours[:, 1], costs(twice, np.ones((len(images), 1)))[:, 0], atol=1e-12)
    assert np.abs(ours[:, 0] - ours[:, 1]).max() > 1e-3


def test_crowds_are_no_errors_and_classes_without_objects_cost_nothing() -> None:
    truth, found = plant(4, 6)
    crowd = {"id": 9999, "image_id": 1, "category_id": 3, "bbox": [0, 200, 240, 40], "area": 9600.0, "iscrowd": 1}
    on_it = {"image_id": 1, "category_id": 3, "bbox": [10, 205, 20, 20], "score": 0.99, "mend": {}}
    rare = {"id": 31, "name": "never there"}
    wider = {**truth, "annotations": [*truth["annotations"], crowd], "categories": [*truth["categories"], rare]}
    invented = {"image_id": 2, "category_id": 31, "bbox": [0, 205, 20, 20], "score": 0.98, "mend": {}}
    weights = np.ones((6, 1))
    np.testing.assert_allclose(
        costs(of(wider, [*found, on_it, invented]), weights), costs(of(truth, found), weights), atol=1e-12
    )


def test_a_class_that_is_missed_altogether_is_no_worth_to_anyone() -> None:
    """Not asked for, it is 0 as before, and stays in the mean."""
    truth, found = plant(5, 6)
    blind = [d for d in found if d["category_id"] != 24]
    cost = costs(of(truth, blind), np.ones((6, 1)))[:, 0]
    assert np.isfinite(cost).all()
    assert (cost > -1e-12).all()
    nothing = costs(of(truth, []), np.ones((6, 1)))[:, 0]
    np.testing.assert_array_equal(nothing, 0)
