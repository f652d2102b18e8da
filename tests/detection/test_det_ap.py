"""ImageNet DET's measure by hand, and against the devkit's rules written plainly, pixel by pixel."""

from typing import Any

import numpy as np
import pytest

from detection.data.contract import Categories
from detection.det_ap import LAYOUT, score_det, thresholds
from detection.scoring import score, table

CLASSES = Categories(("ant", "bee", "cow"), (1, 2, 3))
Row = tuple[int, int, float, tuple[float, float, float, float]]  # image, class, score, box x y width height


def truth(objects: list[tuple[int, int, tuple[float, float, float, float]]], black: dict[int, list[int]] | None = None):
    images = [{"id": i, "file_name": f"{i}", "height": 300, "width": 300} for i in (1, 2, 3)]
    for image in images:
        if black and image["id"] in black:
            image["blacklisted"] = black[image["id"]]
    rows = [
        {"id": k, "image_id": i, "category_id": c, "bbox": list(b), "area": b[2] * b[3], "iscrowd": 0}
        for k, (i, c, b) in enumerate(objects, 1)
    ]
    names = [{"id": i, "name": name} for i, name in zip(CLASSES.ids, CLASSES.names, strict=True)]
    return {"info": {"layout": LAYOUT}, "images": images, "annotations": rows, "categories": names}


def found(rows: list[Row]) -> list[dict[str, Any]]:
    return [{"image_id": i, "category_id": c, "score": s, "bbox": list(b)} for i, c, s, b in rows]


def ap(rows: list[Row], *told: Any) -> dict[str, float | None]:
    return {name: one["AP"] for name, one in score_det(truth(*told), found(rows), CLASSES)["per_class"].items()}


def test_small_objects_ask_for_less() -> None:
    """The devkit's own example: 10 x 10 asks for 0.25, which a 20 x 20 around it just has."""
    boxes = np.array([[0, 0, 10, 10], [0, 0, 24, 24], [0, 0, 25, 25], [0, 0, 100, 100], [0, 0, 100, 5]], float)
    expected = [0.25, 576 / 1156, 0.5, 0.5, 500 / (110 * 15)]
    np.testing.assert_allclose(thresholds(boxes), expected)
    objects = [(1, 1, (50.0, 50.0, 10.0, 10.0))]
    assert ap([(1, 1, 0.9, (45, 45, 20, 20))], objects)["ant"] == 1  # 100 / 400
    assert ap([(1, 1, 0.9, (45, 45, 20, 21))], objects)["ant"] == 0
    assert ap([(1, 1, 0.9, (45, 45, 20, 20))], [(1, 1, (45.0, 45.0, 40.0, 20.0))])["ant"] == 1  # 0.5 of a larger one
    assert ap([(1, 1, 0.9, (45, 45, 19, 20))], [(1, 1, (45.0, 45.0, 40.0, 20.0))])["ant"] == 0


def test_a_second_detection_takes_the_next_object_and_a_third_is_wrong() -> None:
    """Unlike VOC's: there the second is wrong, since its best object is taken."""
    objects = [(1, 1, (0.0, 0.0, 100.0, 100.0)), (1, 1, (10.0, 0.0, 100.0, 100.0))]
    twice = [(1, 1, 0.9, (0.0, 0, 100, 100)), (1, 1, 0.8, (1.0, 0, 100, 100))]
    assert ap(twice, objects)["ant"] == 1
    assert ap([*twice, (1, 1, 0.7, (2.0, 0, 100, 100)), (2, 1, 0.6, (2.0, 0, 9, 9))], objects)["ant"] == 1
    assert ap([(2, 1, 0.95, (2.0, 0, 9, 9)), *twice], objects)["ant"] == pytest.approx(2 / 3)
    assert ap(twice[1:], objects)["ant"] == 0.5


def test_a_class_on_an_images_blacklist_is_neither_found_nor_missed_there() -> None:
    objects = [(1, 1, (0.0, 0.0, 100.0, 100.0)), (2, 1, (0.0, 0.0, 50.0, 50.0)), (2, 2, (0.0, 0.0, 50.0, 50.0))]
    rows = [(2, 1, 0.99, (200.0, 200, 50, 50)), (1, 1, 0.9, (0.0, 0, 100, 100)), (2, 2, 0.9, (0.0, 0, 50, 50))]
    assert ap(rows, objects) == {"ant": pytest.approx(0.25), "bee": 1, "cow": None}
    assert ap(rows, objects, {2: [1]}) == {"ant": 1, "bee": 1, "cow": None}
    assert ap(rows, objects, {1: [1], 2: [1]}) == {"ant": None, "bee": 1, "cow": None}


def plain(
    objects: list[tuple[int, int, np.ndarray]],
    rows: list[tuple[int, int, float, np.ndarray]],
    black: set[tuple[int, int]],
    classes: int,
) -> list[float | None]:
    """The devkit's rules for boxes xmin ymin xmax ymax, the last pixel included."""

    def area(b: np.ndarray) -> float:
        return (b[2] - b[0] + 1) * (b[3] - b[1] + 1)

    result: list[float | None] = []
    for c in range(1, classes + 1):
        own = [(i, b) for i, k, b in objects if k == c and (i, c) not in black]
        taken: set[int] = set()
        hits = []
        for i, _, _, b in sorted((r for r in rows if r[1] == c and (r[0], c) not in black), key=lambda r: -r[2]):
            best, which = -1.0, -1
            for j, (image, g) in enumerate(own):
                if image != i or j in taken:
                    continue
                w, h = min(b[2], g[2]) - max(b[0], g[0]) + 1, min(b[3], g[3]) - max(b[1], g[1]) + 1
                if w <= 0 or h <= 0:
                    continue
                overlap = w * h / (area(b) + area(g) - w * h)
                gw, gh = g[2] - g[0] + 1, g[3] - g[1] + 1
                if overlap >= min(0.5, gw * gh / ((gw + 10) * (gh + 10))) and overlap > best:
                    best, which = overlap, j
            taken |= {which} - {-1}
            hits.append(which >= 0)
        if not own:
            result.append(None)
            continue
        total, recall = 0.0, 0.0
        points = [(sum(hits[:n]) / len(own), sum(hits[:n]) / n) for n in range(1, len(hits) + 1)]
        for reached in sorted({r for r, _ in points}):
            total += (reached - recall) * max(p for r, p in points if r >= reached)
            recall = reached
        result.append(total)
    return result


@pytest.mark.parametrize("seed", range(6))
def test_against_the_rules_written_plainly(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def box() -> np.ndarray:
        corner, side = rng.integers(1, 40, 2), rng.integers(3, 60, 2)
        return np.concatenate([corner, corner + side - 1]).astype(float)

    objects = [(int(rng.integers(1, 4)), int(rng.integers(1, 4)), box()) for _ in range(30)]
    rows = []
    for image, label, b in objects * 3:
        near = b + rng.integers(-9, 10, 4)
        near[2:] = np.maximum(near[2:], near[:2])
        rows.append((image, label if rng.random() < 0.8 else int(rng.integers(1, 4)), float(rng.random()), near))
    black = {(1, 2), (3, 1)}
    as_ours = lambda b: (b[0] - 1, b[1] - 1, b[2] - b[0] + 1, b[3] - b[1] + 1)  # noqa: E731
    told = truth([(i, c, as_ours(b)) for i, c, b in objects], {1: [2], 3: [1]})
    results = found([(i, c, s, as_ours(b)) for i, c, s, b in rows])
    mine = score_det(told, results, CLASSES)
    expected = plain(objects, rows, black, 3)
    assert [one["AP"] for one in mine["per_class"].values()] == pytest.approx(expected, rel=1e-12)
    assert mine["mAP"] == pytest.approx(np.mean([one for one in expected if one is not None]))
    assert 0.1 < mine["mAP"] < 0.9


def test_it_stands_beside_the_other_measures_of_such_data_alone() -> None:
    told = truth([(1, 1, (50.0, 50.0, 10.0, 10.0))])
    results = found([(1, 1, 0.9, (45, 45, 20, 20))])
    metrics = score(told, results, CLASSES)
    assert (metrics["det"]["mAP"], metrics["voc"]["mAP"]) == (1, 0)
    assert "DET    mAP 100.0" in table(metrics)
    assert "det" not in score({**told, "info": {}}, results, CLASSES)
