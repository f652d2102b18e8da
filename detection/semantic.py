"""Judging semantic segmentation: from logits to label maps in the files' own pixels, confusion of classes, and mIoU.

Of every image its confusion matrix is kept, so that whatever is computed of it can be drawn again over other images.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbone.data.sources import none_readable
from backbone.errors import UserError
from backbone.inputs import InputConvention
from backbone.training.world import World
from detection.artifact import Loaded
from detection.data.augment import evaluation_view
from detection.data.contract import Categories, DetectionSource
from detection.data.label_map import IGNORED, class_names, regions
from detection.data.loader import pad
from detection.forward import outputs_of
from detection.nets import Semantic
from detection.pixels import Pixels, class_iou, mean_iou
from detection.scoring import Scored

AT_ONCE = 16
"""Classes brought to the file's size at once: a photograph of 12 megapixels takes 48 MB for each."""

SECTION = "semantic"
"""Of metrics.json."""


@dataclass(frozen=True)
class Segments:
    """What was found in N images: rows of their confusion matrices, and regions as COCO results."""

    evaluated: list[int]  # ids of the images looked at
    rows: np.ndarray  # int64 [M, 4]: image id, class, class found there, pixels
    regions: list[dict[str, Any]]  # see `detection.data.label_map.regions`, with `score`


def confusion(truth: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """Pixels of each class (rows) by the class found there, int64 [classes, classes], of label maps of one shape."""
    judged = truth != IGNORED
    pairs = truth[judged].astype(np.int64) * classes + found[judged]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


@torch.no_grad()
def segment_batches(
    model: nn.Module,
    inputs: InputConvention,
    batches: Iterable[Any],
    source: DetectionSource,
    device: torch.device,
    autocast: torch.autocast,
    channels: Sequence[int] | None = None,
) -> tuple[Segments, list[str]]:
    """What the detector, in eval mode, makes of batches of `eval_loader`, and the images that could not be read, which
    are judged as background.

    `channels`: the detector's label of each of the data's, background first; None: they are the same.
    """
    classes = len(source.categories) + 1
    segments, bad = Segments([], np.zeros((0, 4), np.int64), []), list[str]()
    rows = [segments.rows]
    with autocast:
        for batch in batches:
            outputs = outputs_of(model, inputs, batch, device)
            every = zip(outputs, batch["indices"], batch["originals"].tolist(), batch["readable"].tolist(), strict=True)
            for output, index, sides, readable in every:
                logits = output["logits"] if channels is None else output["logits"][list(channels)]
                found, sure = label_map(logits, sides)
                if not readable:
                    found = np.zeros_like(found)
                image_id = int(source.image_ids[index])
                counts = confusion(source.label_map(index), found, classes)
                truth, label = np.nonzero(counts)
                segments.evaluated.append(image_id)
                rows.append(np.stack([np.full(len(truth), image_id), truth, label, counts[truth, label]], 1))
                for one in regions(found, source.categories, image_id):
                    at = found == source.categories.ids.index(one["category_id"]) + 1
                    segments.regions.append(one | {"score": round(float(sure[at].mean(dtype=np.float64)), 6)})
            bad += batch["bad"]
    return Segments(segments.evaluated, np.concatenate(rows), segments.regions), bad


def channels_of(mine: Categories, theirs: Categories) -> list[int]:
    """The detector's label of each of the data's, background first: classes that the data lack take no part."""
    return [0, *(mine.names.index(name) + 1 for name in theirs.names)]


def label_map(logits: Tensor, sides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits [C, h, w] of an image as the net sees it -> in the file's height and width `sides` the surest class,
    uint8 [H, W], and its probability, float32 [H, W]."""
    height, width = sides
    best = torch.full((height, width), -torch.inf, device=logits.device)
    total, label = best.clone(), torch.zeros((height, width), dtype=torch.uint8, device=logits.device)
    for first in range(0, len(logits), AT_ONCE):
        some = logits[None, first : first + AT_ONCE].float()
        whole = F.interpolate(some, (height, width), mode="bilinear", align_corners=False)[0]
        value, at = whole.max(0)
        total = torch.logaddexp(total, whole.logsumexp(0))
        label = torch.where(value > best, (at + first).to(torch.uint8), label)
        best = torch.maximum(best, value)
    return label.cpu().numpy(), (best - total).exp().cpu().numpy()


def segment(loaded: Loaded, images: Iterable[np.ndarray]) -> list[np.ndarray]:
    """What a detector of kind semantic finds in images, uint8 RGB [H, W, 3] of any sizes, on whichever device it is.

    Returns:
        For each image the class of every pixel, uint8 [H, W]: 0 background, number k is
        `loaded.categories.names[k - 1]`.

    Raises:
        UserError: the detector is of another kind.
    """
    if not isinstance(loaded.detector, Semantic):
        raise UserError(f"{loaded.detector.options.title} finds boxes: call detection.detect with it")
    device, found = next(loaded.detector.parameters()).device, []
    model = loaded.detector.eval()
    for image in images:
        pixels, sizes = pad([evaluation_view(image, loaded.inputs.size, loaded.longer_side)])
        with torch.no_grad():
            (output,) = outputs_of(model, loaded.inputs, {"images": pixels, "sizes": sizes, "indices": [0]}, device)
        found.append(label_map(output["logits"], image.shape[:2])[0])
    return found


def gather_and_score(segments: Segments, source: DetectionSource, world: World, bad: Sequence[str] = ()) -> Scored:
    """Gather every rank's segments and score them against `source`. All ranks call it.

    The metrics are on every rank; what they were made from on the first, and empty elsewhere.

    Raises:
        RuntimeError: an image was evaluated twice, or not at all.
        UserError: no image could be read.
    """
    parts = world.gather(segments)
    unread = [name for names in world.gather(list(bad)) for name in names]
    if len(unread) == len(source.image_ids):
        raise none_readable(unread)
    counts = Counter(image_id for part in parts for image_id in part.evaluated)
    if counts != Counter(source.image_ids.tolist()):
        raise RuntimeError(f"each of {len(source)} images must be evaluated once, and {counts.total()} were")
    scored = Scored({}, [], {}, {})
    if world.is_first:
        rows = np.concatenate([part.rows for part in parts])
        arrays = _arrays(rows, source.image_ids, len(source.categories) + 1)
        metrics = score(arrays, source.categories)
        metrics["notes"] += [f"unreadable, judged as background: {name}" for name in unread]
        found = sorted((one for part in parts for one in part.regions), key=lambda one: one["image_id"])
        scored = Scored(ground_truth(source), found, metrics, arrays)
    return scored._replace(metrics=world.gather(scored.metrics)[0])


def ground_truth(source: DetectionSource) -> dict[str, Any]:
    """The label maps as a COCO instances dict, one annotation for each class that an image shows; what is ignored is a
    crowd of its own, `category_id` 0."""
    images, annotations = [], []
    for i, (height, width) in enumerate(source.sizes.tolist()):
        image_id = int(source.image_ids[i])
        images.append({"id": image_id, "file_name": source.name(i), "height": height, "width": width})
        classes = source.label_map(i)
        ignored = regions((classes == IGNORED).astype(np.uint8), Categories(("ignored",), (0,)), image_id)
        for one in regions(classes, source.categories, image_id):
            annotations.append({"id": len(annotations) + 1, **one, "iscrowd": 0})
        annotations += [{"id": len(annotations) + 1, **one, "iscrowd": 1} for one in ignored]
    pairs = zip(source.categories.ids, source.categories.names, strict=True)
    categories = [{"id": k, "name": name} for k, name in pairs]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _arrays(rows: np.ndarray, image_ids: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """What matches.npz holds: the entries of all confusion matrices that are not 0, sorted."""
    ids = np.sort(image_ids)
    image = np.searchsorted(ids, rows[:, 0])
    order = np.lexsort((rows[:, 2], rows[:, 1], image))
    return {
        "image_ids": ids,
        "classes": np.array(classes, np.int64),
        "image": image[order].astype(np.int32),
        "truth": rows[order, 1].astype(np.uint8),
        "found": rows[order, 2].astype(np.uint8),
        "pixels": rows[order, 3],
    }


def score(arrays: Mapping[str, np.ndarray], categories: Categories) -> dict[str, Any]:
    """All that metrics.json holds but for `provenance`: `semantic` with mIoU, accuracy and per_class, counts and notes.

    Fractions; None where there is no pixel to judge.
    """
    pixels = Pixels.of(arrays)
    once = np.ones((len(pixels.image_ids), 1))
    names, iou, truth = class_names(categories), class_iou(pixels, once)[:, 0], pixels.truth.sum(0)
    miou, accuracy = (_number(value) for value in mean_iou(pixels, once)[:, 0])
    absent = [name for name, count in zip(names, truth.tolist(), strict=True) if not count]
    told = f"no ground truth for {len(absent)} classes, which count in no mean: {', '.join(absent)}"
    per_class = {
        name: {"IoU": _number(value), "pixels": count}
        for name, value, count in zip(names, iou, truth.tolist(), strict=True)
    }
    return {
        SECTION: {"mIoU": miou, "accuracy": accuracy, "per_class": per_class},
        "images": len(pixels.image_ids),
        "notes": [told] if absent else [],
    }


def table(metrics: dict[str, Any]) -> str:
    """The metrics as text of at most 100 columns: percent, one decimal, "-" where there is no ground truth."""
    own = metrics[SECTION]
    lines = [f"mIoU {_percent(own['mIoU'])}   pixel accuracy {_percent(own['accuracy'])}", ""]
    width = min(max(map(len, own["per_class"])), 24)
    cells = [f"{name[:width]:{width}} {_percent(one['IoU']):>5}" for name, one in own["per_class"].items()]
    columns = min(100 // (width + 8), len(cells))
    height = -(-len(cells) // columns)
    lines += ["   ".join(cells[row::height]) for row in range(height)]
    lines += [f"note: {note}" for note in metrics["notes"]]
    return "\n".join(line.rstrip() for line in lines)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
