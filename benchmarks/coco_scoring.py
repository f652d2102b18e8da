"""Scoring boxes by COCO's rules: stock pycocotools against everything an evaluation here computes from them.

Ground truth and detections are drawn at random, as many as in COCO's validation set: some hit, closely or not so
closely, and the rest lie anywhere. All ways score the same, in turns, and the twelve numbers are compared.
"""

import contextlib
import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from results import parser, spread, write

from detection.data.contract import Categories
from detection.scoring import STATS, all_matches, score_coco, score_voc

HEIGHT, WIDTH = 480, 640  # of every image, pixels
OBJECTS = 7.4  # an image, on average; COCO's 36,781 objects on 5,000 images
CROWDS = 0.01  # part of them
HITS = 0.3  # part of the detections that lie near an object


def draw(images: int, detections: int, classes: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A COCO instances dict, and results of `detections` an image."""
    rng = np.random.default_rng(0)
    truth: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        count = rng.poisson(OBJECTS)
        boxes, labels = draw_boxes(rng, count), rng.integers(1, classes + 1, count)
        near = rng.random(detections) < HITS * (count > 0)
        target = rng.integers(0, max(count, 1), near.sum())
        found, found_labels = draw_boxes(rng, detections), rng.integers(1, classes + 1, detections)
        found[near] = boxes[target] * (1 + rng.normal(0, 0.08, (len(target), 4)))
        found_labels[near] = labels[target]
        for box, label, crowd in zip(boxes.tolist(), labels.tolist(), rng.random(count) < CROWDS, strict=True):
            one = {"id": len(truth) + 1, "image_id": image, "category_id": label, "bbox": box}
            truth.append({**one, "area": box[2] * box[3] * 0.6, "iscrowd": int(crowd)})
        scores = rng.beta(1, 3, detections) * 0.7 + 0.3 * near
        for box, label, score in zip(found.tolist(), found_labels.tolist(), scores.tolist(), strict=True):
            results.append({"image_id": image, "category_id": label, "bbox": box, "score": score})
    names = [{"id": k, "name": f"class {k}"} for k in range(1, classes + 1)]
    sizes = [{"id": i, "file_name": "", "height": HEIGHT, "width": WIDTH} for i in range(1, images + 1)]
    return {"images": sizes, "annotations": truth, "categories": names}, results


def draw_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """float64 [count, 4], x y w h, to 1/1000 pixel, as detectors' results are written; more small ones than large."""
    sides = 8 * 60 ** rng.random((count, 2)) * [0.9, 0.7]
    corners = rng.random((count, 2)) * ([WIDTH, HEIGHT] - sides)
    return np.round(np.concatenate([corners, sides], 1), 3)


def stock(truth: dict[str, Any], results: list[dict[str, Any]]) -> np.ndarray:
    """The twelve numbers by pycocotools, float64 [12], called as its demo does."""
    with contextlib.redirect_stdout(None):
        objects = COCO()
        objects.dataset = truth
        objects.createIndex()
        evaluator = COCOeval(objects, objects.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return np.asarray(evaluator.stats)


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--images", type=int, default=5000)
    words.add_argument("--detections", type=int, default=100, help="of each image")
    words.add_argument("--classes", type=int, default=80)
    words.add_argument("--turns", type=int, default=3, help="turns of each way")
    given = words.parse_args()
    truth, results = draw(given.images, given.detections, given.classes)
    categories = Categories(*zip(*((c["name"], c["id"]) for c in truth["categories"]), strict=True))
    ways: dict[str, Callable[[Any, Any], Any]] = {
        "pycocotools": stock,
        "score_coco": lambda truth, results: score_coco(truth, results, categories),
        "score_voc": lambda truth, results: score_voc(truth, results, categories),
        "all_matches": lambda truth, results: all_matches(truth, results, categories),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    numbers: dict[str, np.ndarray] = {}
    for _ in range(given.turns):
        for way, score in ways.items():
            copies = copy.deepcopy((truth, results))  # pycocotools writes into them
            began = time.perf_counter()
            found = score(*copies)
            seconds[way].append(time.perf_counter() - began)
            if way == "pycocotools":
                numbers[way] = found
            elif way == "score_coco":
                numbers[way] = np.array([-1 if found[name] is None else found[name] for name in STATS])
    rows = []
    for way, own in seconds.items():
        faster, low, high = spread([a / b for a, b in zip(seconds["pycocotools"], own, strict=True)])
        apart = np.abs(numbers[way] - numbers["pycocotools"]).max() if way in numbers else None
        rows.append(
            {
                "way": way,
                "input": f"{given.images} images x {given.detections} of {given.classes} classes",
                "seconds": spread(own)[0],
                "times faster than pycocotools": faster,
                "quartiles": f"{low:.2f} to {high:.2f}",
                "largest difference of the 12 numbers": "-" if apart is None else float(apart),
                "AP": float(numbers[way][0]) if way in numbers else "-",
                "turns": given.turns,
            }
        )
    write(given.output, rows)


if __name__ == "__main__":
    main()
