"""Detections of a make-believe detector of a given skill, and stock pycocotools' opinion of them."""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.data.contract import Categories
from detection.detections import encode
from detection.matches import all_matches
from detection.report.bootstrap import class_ap, coco
from detection.report.stored import Matches
from detection.voc_ap import score_voc

SIDE = 240


def ground_truth(
    images: int, names: list[str], seed: int = 0, crowds: bool = True, masks: bool = False
) -> dict[str, Any]:
    """A COCO instances dict; category ids have gaps, image ids are not in order. Masks are boxes without a corner."""
    rng = np.random.default_rng(seed)
    annotations = []
    ids = rng.permutation(images) * 3 + 5
    for image_id in ids:
        for _ in range(rng.integers(0, 6)):
            w, h = rng.uniform(12, 110, 2)
            x, y = rng.uniform(0, SIDE - w), rng.uniform(0, SIDE - h)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": int(image_id),
                    "category_id": int(rng.integers(len(names))) * 7 + 3,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": int(crowds and rng.random() < 0.08),
                }
            )
            if masks:
                annotations[-1]["segmentation"] = [[x, y, x + w, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h]]
    return {
        "images": [{"id": int(i), "width": SIDE, "height": SIDE, "file_name": f"{i}.jpg"} for i in ids],
        "annotations": annotations,
        "categories": [{"id": 7 * k + 3, "name": name} for k, name in enumerate(names)],
    }


def detections(truth: dict[str, Any], skill: float, seed: int = 0, masks: bool = False) -> list[dict[str, Any]]:
    """Skill 0 finds little and invents much, 1 finds nearly all. A mask is an ellipse in its box."""
    rng = np.random.default_rng(seed)
    categories = [c["id"] for c in truth["categories"]]
    found = []

    def add(image_id: int, category: int, box: np.ndarray, score: float) -> None:
        box = [float(round(v, 2)) for v in box]
        found.append({"image_id": image_id, "category_id": category, "bbox": box, "score": float(score)})
        if masks:
            x, y, w, h = box
            across, down = np.ogrid[:SIDE, :SIDE][::-1]
            inside = ((across - x) / w - 0.5) ** 2 + ((down - y) / h - 0.5) ** 2 < 0.25
            found[-1]["segmentation"] = encode(inside)

    for a in truth["annotations"]:
        for _ in range(1 + (rng.random() < 0.15)):
            if rng.random() < 0.3 + 0.65 * skill:
                moved = np.array(a["bbox"]) + rng.normal(0, 0.16 - 0.12 * skill, 4) * np.tile(a["bbox"][2:], 2)
                moved[2:] = moved[2:].clip(4)
                wrong = rng.random() > 0.8 + 0.15 * skill
                category = int(rng.choice(categories)) if wrong else a["category_id"]
                add(a["image_id"], category, moved, rng.beta(2 + 5 * skill, 2))
    for image in truth["images"]:
        for _ in range(rng.poisson(3 - 2 * skill)):
            box = np.concatenate([rng.uniform(0, SIDE / 2, 2), rng.uniform(10, 100, 2)])
            add(image["id"], int(rng.choice(categories)), box, rng.beta(1.2, 4))
    return found


def pixels(image_id: int) -> np.ndarray:
    """An image of noise."""
    return np.random.default_rng(image_id).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def stock(truth: dict[str, Any], found: list[dict[str, Any]], kind: str = "bbox") -> COCOeval:
    """pycocotools, evaluated and accumulated."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = json.loads(json.dumps(truth))
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(json.loads(json.dumps(found))), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


def matches(judge: COCOeval) -> Matches:
    """pycocotools' own matching, area all, as flat arrays."""
    ids = list(judge.params.imgIds)
    columns: dict[str, list[Any]] = {name: [] for name in ("image", "label", "score", "tp", "ignored")}
    objects: list[tuple[int, int]] = []
    areas, images = len(judge.params.areaRng), len(ids)
    for k in range(len(judge.params.catIds)):
        for i in range(images):
            one = judge.evalImgs[k * areas * images + i]
            if one is None:
                continue
            n = len(one["dtScores"])
            columns["image"] += [i] * n
            columns["label"] += [k + 1] * n
            columns["score"] += one["dtScores"]
            columns["tp"] += list((one["dtMatches"] > 0).T)
            columns["ignored"] += list(one["dtIgnore"].astype(bool).T)
            objects += [(i, k + 1)] * int((one["gtIgnore"] == 0).sum())
    arrays = {name: np.array(values) for name, values in columns.items()}
    for name in ("tp", "ignored"):
        arrays[name] = arrays[name].reshape(-1, 10)
    gt = np.array(objects, int).reshape(-1, 2)
    return Matches(
        **arrays,
        gt_image=gt[:, 0],
        gt_label=gt[:, 1],
        image_ids=np.array(ids),
    )


def write_results(folder: Path, truth: dict[str, Any], found: list[dict[str, Any]]) -> None:
    """A `results/` folder as `detection.scoring` writes it."""
    folder.mkdir(parents=True)
    categories = categories_of(truth)
    masks = "segmentation" in truth["annotations"][0]
    kinds = ("bbox", "segm") if masks else ("bbox",)
    metrics = {
        **{kind: scores(stock(truth, found, kind), categories) for kind in kinds},
        "voc": score_voc(truth, found, categories),
        "images": len(truth["images"]),
        "detections": len(found),
        "notes": [],
        "provenance": {"recipe": "abc"},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "detections.json").write_text(json.dumps(found))
    (folder / "ground_truth.json").write_text(json.dumps(truth))
    np.savez(folder / "matches.npz", allow_pickle=False, **all_matches(truth, found, categories, masks))


def scores(judge: COCOeval, categories: Categories) -> dict[str, Any]:
    """pycocotools' opinion as metrics.json holds it."""
    own = matches(judge)
    stats = [None if v < 0 else float(v) for v in judge.stats]
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    precision = judge.eval["precision"][:, :, :, 0, 2]
    per_class = {
        name: {
            "AP": float(precision[:, :, k].mean()) if precision[0, 0, k] >= 0 else None,
            "AP50": float(precision[0, :, k].mean()) if precision[0, 0, k] >= 0 else None,
            "objects": int((own.gt_label == k + 1).sum()),
        }
        for k, name in enumerate(categories.names)
    }
    return dict(zip(names, stats, strict=True)) | {"per_class": per_class}


def categories_of(truth: dict[str, Any]) -> Categories:
    """Its classes, in its order."""
    return Categories(tuple(c["name"] for c in truth["categories"]), tuple(c["id"] for c in truth["categories"]))


@dataclass(frozen=True)
class Precision:
    """Average precision, fractions; NaN where there is no ground truth."""

    AP: float
    AP50: float
    AP75: float
    per_class: np.ndarray  # float64 [K, 10], at each IoU


def average_precision(matches: Matches, weights: np.ndarray | None = None) -> Precision:
    """The report's own AP, each image counted `weights` times, [N]; None is 1 each."""
    columns = np.ones((len(matches.image_ids), 1)) if weights is None else np.asarray(weights, float)[:, None]
    return Precision(*map(float, coco(matches, columns)[:, 0]), class_ap(matches, columns)[..., 0])
