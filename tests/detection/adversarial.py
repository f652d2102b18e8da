"""Ground truth and detections made to catch evaluators out, and stock pycocotools' word on them."""

import contextlib
import copy
import io
import json
from typing import Any

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.data.contract import Categories

HEIGHT, WIDTH = 150, 180
CATEGORIES = Categories(("cat", "dog", "bird", "bus", "tree"), (18, 3, 90, 7, 44))  # ids with gaps, in no order
Case = tuple[dict[str, Any], list[dict[str, Any]]]


def box_mask(x: float, y: float, w: float, h: float) -> dict[str, Any]:
    """The box's pixels as compressed RLE."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[int(y) : int(np.ceil(y + h)), int(x) : int(np.ceil(x + w))] = 1
    found = rle.encode(mask)
    return {"size": [HEIGHT, WIDTH], "counts": found["counts"].decode()}


def case(seed: int, images: int = 24) -> Case:
    """Crowds, doubled objects, ties in scores and IoU, IoU just on a threshold, empty images, boxes without area, more
    than 100 detections, a class without ground truth (tree), one with crowds alone (bus), one without detections (dog).

    Integer boxes, so that ties are many. Annotations are numbered from 1, with area and iscrowd.
    """
    rng = np.random.default_rng(seed)
    ids = rng.permutation(1000)[:images].tolist()
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def random_box() -> list[float]:
        low, high = (97, 145) if rng.random() < 0.2 else (4, 120)
        w, h = (int(v) for v in np.exp(rng.uniform(np.log(low), np.log(high), 2)))
        return [float(rng.integers(0, WIDTH - w)), float(rng.integers(0, HEIGHT - h)), float(w), float(h)]

    def annotate(image: int, category: int, box: list[float], crowd: int) -> None:
        x, y, w, h = box
        polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        area = 1024.0 if rng.random() < 0.1 else w * h  # on the border of small and medium
        annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": category, "bbox": box})
        annotations[-1] |= {"iscrowd": crowd, "area": area, "segmentation": box_mask(*box) if crowd else polygon}

    def detect(image: int, category: int, box: list[float], score: float | None = None) -> None:
        drawn = round(float(rng.random()), int(rng.integers(1, 4)))
        score = drawn if score is None else score
        results.append({"image_id": image, "category_id": category, "bbox": box, "score": score})
        results[-1]["segmentation"] = box_mask(*box)

    for place, image in enumerate(ids):
        for _ in range(0 if place % 6 == 0 else int(rng.integers(1, 7))):
            category, box = int(rng.choice([18, 3, 90, 7])), random_box()
            annotate(image, category, box, int(category == 7 or rng.random() < 0.2))
            if rng.random() < 0.2:
                annotate(image, category, box, int(rng.random() < 0.3) or int(category == 7))
        if place % 3 == 1:  # found first, the one in the middle overlaps both objects the same
            x, y = float(rng.integers(20, 150)), float(rng.integers(0, 130))
            for left in (x, x + 4) if place % 2 else (x + 4, x):
                annotate(image, 18, [left, y, 10.0, 10.0], 0)
            detect(image, 18, [x + 2, y, 10.0, 10.0], 0.99)
            detect(image, 18, [x, y, 10.0, 10.0], 0.98)
        own = [a for a in annotations if a["image_id"] == image]
        if place % 5 == 0 and place:
            continue
        for _ in range(260 if place == 1 else 25):
            if own and rng.random() < 0.8:
                source = own[int(rng.integers(len(own)))]
                x, y, w, h = source["bbox"]
                if rng.random() < 0.3:
                    box = [x, y, float(np.ceil(w * rng.choice([0.5, 0.75, 0.9, 1]))), h]
                else:
                    box = [max(x + float(rng.integers(-3, 4)), 0.0), max(y + float(rng.integers(-3, 4)), 0.0), w, h]
                category = source["category_id"] if rng.random() < 0.9 else 44
            else:
                category, box = int(rng.choice([18, 90, 44])), random_box()
            if category != 3:
                detect(image, category, [box[0], box[1], 0.0, box[3]] if rng.random() < 0.02 else box)
    order = rng.permutation(len(results))
    truth = {
        "info": {"description": "made up"},
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH, "file_name": f"{i}.jpg"} for i in ids],
        "annotations": annotations,
        "categories": [{"id": i, "name": n} for i, n in zip(CATEGORIES.ids, CATEGORIES.names, strict=True)],
    }
    return truth, [results[i] for i in order]


def careless(truth: dict[str, Any]) -> dict[str, Any]:
    """The same ground truth numbered from 0, without iscrowd where it is 0 and without area where it is the box's."""
    truth = copy.deepcopy(truth)
    for annotation in truth["annotations"]:
        annotation["id"] -= 1
        w, h = annotation["bbox"][2:]
        if annotation["area"] == w * h:
            del annotation["area"]
        if not annotation["iscrowd"]:
            del annotation["iscrowd"]
    return truth


def stock(truth: dict[str, Any], results: list[dict[str, Any]], kind: str = "bbox") -> COCOeval:
    """pycocotools as its users run it, on what JSON gives back."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = json.loads(json.dumps(truth))
        gt.createIndex()
        judge = COCOeval(gt, gt.loadRes(json.loads(json.dumps(results))), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge
