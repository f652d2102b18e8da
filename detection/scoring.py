"""Scoring detections: COCO and VOC scores, the results folder they are kept in, and a table for the terminal.

pycocotools is the reference; faster-coco-eval gives the same numbers, which a test shows, in a sixth of the time. (At a
class's first recall points it says 1 where pycocotools' epsilon makes 1 - 2e-16.)
"""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from backbone.data.sources import none_readable
from backbone.errors import UserError
from backbone.storage import filesystem, join, write_folder
from backbone.training.world import World
from detection.coco_format import check, mended
from detection.data.contract import Categories, DetectionSource
from detection.det_ap import is_det, score_det
from detection.detections import Detections, gather, to_coco
from detection.matches import all_matches
from detection.voc_ap import score_voc

# In the order of pycocotools' `stats`.
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class Scored(NamedTuple):
    """One evaluation: what a results folder holds."""

    ground_truth: dict[str, Any]  # a COCO instances dict
    detections: list[dict[str, Any]]  # COCO results
    metrics: dict[str, Any]  # see `score`
    matches: dict[str, np.ndarray]  # see `detection.matches.all_matches`


def gather_and_score(
    detections: Detections, source: DetectionSource, world: World, bad: Sequence[str] = (), fast: bool = True
) -> Scored:
    """Gather every rank's detections and score them against `source`. All ranks call it.

    The metrics are on every rank; what they were made from on the first, and empty elsewhere. With masks where the
    detector gives some and the data has them.

    Args:
        detections: this rank's.
        source: what they are judged against.
        world: who takes part.
        bad: images this rank could not read, each with the reason; they count as images without detections.
        fast: see `score_coco`.

    Raises:
        RuntimeError: an image was evaluated twice, or not at all.
        UserError: no image could be read; or see `detection.coco_format.check`.
    """
    everything = gather(detections, world, source.image_ids)
    unread = [name for names in world.gather(list(bad)) for name in names]
    scored = Scored({}, [], {}, {})
    if len(unread) == len(source.image_ids):
        raise none_readable(unread)
    if world.is_first:
        truth = source.ground_truth()
        results = to_coco(everything, source.categories)
        masks = everything.masks is not None and source.has_masks
        metrics = score(truth, results, source.categories, masks, fast)
        metrics["notes"] += [f"unreadable, judged as an image without detections: {name}" for name in unread]
        scored = Scored(truth, results, metrics, all_matches(truth, results, source.categories, masks))
    return scored._replace(metrics=world.gather(scored.metrics)[0])


def score(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    categories: Categories,
    masks: bool = False,
    fast: bool = True,
) -> dict[str, Any]:
    """All that `metrics.json` holds: `bbox`, with `masks` also `segm`, `voc`, of ImageNet DET's data `det`, counts and
    notes; but for `provenance`.

    Raises:
        UserError: see `detection.coco_format.check`.
    """
    notes = []
    if not results:
        notes.append("no detections: AP and AR are 0")
    present = {a["category_id"] for a in ground_truth["annotations"] if not a.get("iscrowd")}
    absent = [name for name, i in zip(categories.names, categories.ids, strict=True) if i not in present]
    if absent:
        notes.append(f"no ground truth for {len(absent)} classes, which count in no mean: {', '.join(absent)}")
    metrics: dict[str, Any] = {"bbox": score_coco(ground_truth, results, categories, "bbox", fast)}
    if masks:
        metrics["segm"] = score_coco(ground_truth, results, categories, "segm", fast)
    if is_det(ground_truth):
        metrics["det"] = score_det(ground_truth, results, categories)
    return metrics | {
        "voc": score_voc(ground_truth, results, categories),
        "images": len(ground_truth["images"]),
        "detections": len(results),
        "notes": notes,
    }


def score_coco(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    categories: Categories,
    kind: Literal["bbox", "segm"] = "bbox",
    fast: bool = True,
) -> dict[str, Any]:
    """COCO's twelve numbers, fractions under the names of `STATS`, and `per_class: {name: {AP, AP50, objects}}`.

    None where there is no ground truth (pycocotools says -1); 0.0 where there are no detections. `objects` counts
    ground truth that is no crowd. Neither argument is changed.

    With segm, APs, APm and APl take an unmatched detection's size from its box, since results that hold both are read
    so by stock pycocotools; detectron2 removes the box first and takes the mask's.

    Args:
        ground_truth: a COCO instances dict.
        results: COCO results, each with `bbox`, for segm also with `segmentation`.
        categories: the detector's classes.
        kind: which of the two overlaps.
        fast: by faster-coco-eval; False: by pycocotools itself.

    Raises:
        UserError: see `detection.coco_format.check`.
    """
    check(ground_truth, results, categories, masks=kind == "segm")
    stats, precision = coco_eval(mended(ground_truth), results, categories, kind, fast)
    per_class: dict[str, dict[str, Any]] = {}
    columns = {category: k for k, category in enumerate(sorted(categories.ids))}  # both evaluators sort
    counts = dict.fromkeys(categories.ids, 0)
    for annotation in ground_truth["annotations"]:
        counts[annotation["category_id"]] += not annotation.get("iscrowd")
    for name, category in zip(categories.names, categories.ids, strict=True):
        of_class = precision[:, :, columns[category], 0, -1]  # area all, 100 detections
        per_class[name] = {
            "AP": _mean(of_class),
            "AP50": _mean(of_class[0]),
            "objects": counts[category],
        }
    scores = {name: None if value == -1 else float(value) for name, value in zip(STATS, stats, strict=True)}
    return {**scores, "per_class": per_class}


def coco_eval(
    truth: dict[str, Any],
    results: list[dict[str, Any]],
    categories: Categories,
    kind: Literal["bbox", "segm"],
    fast: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """`stats` float64 [12] and `eval["precision"]` float64 [10, 101, K, 4, 3] (IoU, recall, class, area, maxDets), as
    the evaluator gives them: -1 where there is no ground truth, classes sorted by id. It writes into `truth`.
    """
    pairs = zip(categories.ids, categories.names, strict=True)
    truth = {**truth, "categories": [{"id": i, "name": name} for i, name in pairs]}
    found = [dict(result) for result in results]  # loadRes adds fields
    if fast:
        import faster_coco_eval  # brings OpenCV's import along

        quiet = lambda *_: None  # noqa: E731
        gt = faster_coco_eval.COCO(truth, print_function=quiet)
        evaluator = faster_coco_eval.COCOeval_faster(gt, gt.loadRes(found), kind, print_function=quiet)
        evaluator.run()
    else:
        with contextlib.redirect_stdout(io.StringIO()):
            gt = _indexed(truth)
            # loadRes reads the first result, and crashes where there is none.
            dt = gt.loadRes(found) if found else _indexed({**truth, "annotations": []})
            evaluator = COCOeval(gt, dt, kind)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
    return np.asarray(evaluator.stats), np.asarray(evaluator.eval["precision"])


def write(url: str | Path, scored: Scored, provenance: dict[str, Any]) -> None:
    """Write a results folder: detections.json, ground_truth.json, matches.npz, and last metrics.json.

    A folder without metrics.json is not complete. Stock pycocotools re-scores the two JSON files to the same numbers.

    Raises:
        UserError: the place cannot be written.
    """
    arrays = io.BytesIO()
    np.savez_compressed(arrays, allow_pickle=False, **scored.matches)
    files = {
        "detections.json": _json(scored.detections),
        "ground_truth.json": _json(mended(scored.ground_truth)),
        "matches.npz": arrays.getvalue(),
        "metrics.json": _json({**scored.metrics, "provenance": provenance}, indent=2),
    }
    write_folder(url, files, "results")


def read(url: str | Path) -> Scored:
    """What `write` has written.

    Raises:
        UserError: it is no results folder, or not a complete one.
    """
    fs, path = filesystem(url)
    try:
        names = ("ground_truth.json", "detections.json", "metrics.json")
        truth, detections, metrics = (json.loads(fs.cat_file(join(path, name))) for name in names)
        with np.load(io.BytesIO(fs.cat_file(join(path, "matches.npz"))), allow_pickle=False) as arrays:
            return Scored(truth, detections, metrics, dict(arrays))
    except FileNotFoundError as error:
        raise UserError(f"{url}: no complete results folder; evaluate again: {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{url}: results cannot be read; evaluate again: {error}") from error


def table(metrics: dict[str, Any]) -> str:
    """The metrics as text of at most 100 columns: percent, one decimal, "-" where there is no ground truth."""
    if "bbox" not in metrics:
        from detection.semantic import table as of_pixels

        return of_pixels(metrics)
    sizes = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    lines = [" " * 5 + "".join(f"{name:>7}" for name in sizes)]
    lines += [
        f"{kind:5}" + "".join(f"{_percent(metrics[kind][name]):>7}" for name in sizes)
        for kind in ("bbox", "segm")
        if kind in metrics
    ]
    voc = metrics["voc"]
    lines += [f"VOC    mAP {_percent(voc['mAP'])} (area), {_percent(voc['mAP07'])} (11 points) at IoU .5", ""]
    if "det" in metrics:
        lines.insert(
            -1, f"DET    mAP {_percent(metrics['det']['mAP'])} by ImageNet's devkit, IoU .5 or less of small objects"
        )
    per_class = metrics["bbox"]["per_class"]
    width = min(max(map(len, per_class)), 24)
    cells = [f"{name[:width]:{width}} {_percent(scores['AP']):>5}" for name, scores in per_class.items()]
    columns = min(100 // (width + 8), len(cells))
    height = -(-len(cells) // columns)
    lines += ["   ".join(cells[row::height]) for row in range(height)]
    lines += [f"note: {note}" for note in metrics["notes"]]
    return "\n".join(line.rstrip() for line in lines)


def _indexed(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _mean(precision: np.ndarray) -> float | None:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _json(value: Any, indent: int | None = None) -> bytes:
    return (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode()
