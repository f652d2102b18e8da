"""What a detector finds, as flat arrays: from its outputs to the images' own pixels, over ranks, to COCO's JSON."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

from backbone.training.world import World
from detection.data.contract import Categories

MASK_THRESHOLD = 0.5  # arXiv:1703.06870, section 3.1


@dataclass(frozen=True)
class Detections:
    """D detections on N images; rows belong together. Those of one image are in the detector's order."""

    evaluated: np.ndarray  # int64 [N], ids of the images looked at, those without detections too
    image_ids: np.ndarray  # int64 [D], the data set's own
    labels: np.ndarray  # int64 [D], 1..K
    boxes: np.ndarray  # float32 [D, 4], x1 y1 x2 y2 in pixels of the original image
    scores: np.ndarray  # float32 [D]
    masks: list[dict[str, Any]] | None  # D compressed RLEs {"size": [h, w], "counts": str}; None: boxes alone

    def __post_init__(self) -> None:
        shapes = [self.image_ids.shape, self.labels.shape, self.boxes.shape[:1], self.scores.shape]
        shapes += [] if self.masks is None else [(len(self.masks),)]
        if len(set(shapes)) != 1 or self.boxes.shape[1:] != (4,):
            raise ValueError(f"rows do not belong together: {shapes}, boxes {self.boxes.shape}")

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, kept: np.ndarray) -> "Detections":
        """The rows where `kept`, bool [D], is true; the images looked at stay."""
        masks = None if self.masks is None else [mask for mask, keep in zip(self.masks, kept, strict=True) if keep]
        rows = (self.image_ids[kept], self.labels[kept], self.boxes[kept], self.scores[kept])
        return Detections(self.evaluated, *rows, masks)


def collect(
    outputs: Sequence[dict[str, Tensor]],
    sizes: Tensor | np.ndarray,
    originals: Tensor | np.ndarray,
    image_ids: Sequence[int] | np.ndarray,
) -> Detections:
    """A detector's outputs for N images, in the pixels of their files.

    Boxes are scaled by `originals / sizes`, each axis alone, and clipped to the image. Masks, where the detector gives
    some, are pasted into the image, are where the probability is above 0.5, and kept as RLE.

    Args:
        outputs: for each image `boxes` float [D, 4] (x1 y1 x2 y2, pixels of the net's input), `labels` int64 [D],
            `scores` float [D] and perhaps `masks` float [D, 1, M, M], probabilities within the box.
        sizes: int64 [N, 2], height and width of the images in the net's input, without padding.
        originals: int64 [N, 2], height and width of the files.
        image_ids: N ids of the data set's own.
    """
    parts = []
    rows = zip(outputs, np.asarray(sizes).tolist(), np.asarray(originals).tolist(), image_ids, strict=True)
    for output, (h, w), (height, width), image_id in rows:
        # In float64, so that an image that is not resized keeps its boxes to the bit.
        boxes = output["boxes"].detach().double().cpu().numpy() * np.array([width / w, height / h] * 2)
        boxes = np.clip(boxes, 0, [width, height] * 2).astype(np.float32)
        masks = output["masks"].detach().float().cpu() if "masks" in output else None
        parts.append(
            Detections(
                evaluated=np.array([image_id], np.int64),
                image_ids=np.full(len(boxes), int(image_id), np.int64),
                labels=output["labels"].cpu().numpy().astype(np.int64),
                boxes=boxes,
                scores=output["scores"].detach().float().cpu().numpy(),
                masks=None if masks is None else paste(masks, boxes, height, width),
            )
        )
    return concatenate(parts)


def concatenate(parts: Sequence[Detections]) -> Detections:
    """All rows of `parts`, in order. A part without rows may lack masks that the others have."""
    masks = None
    if any(part.masks is not None for part in parts):
        if any(part.masks is None and len(part) for part in parts):
            raise ValueError("some detections have masks and others have none")
        masks = [mask for part in parts for mask in part.masks or ()]
    return Detections(
        evaluated=np.concatenate([np.zeros(0, np.int64), *(part.evaluated for part in parts)]),
        image_ids=np.concatenate([np.zeros(0, np.int64), *(part.image_ids for part in parts)]),
        labels=np.concatenate([np.zeros(0, np.int64), *(part.labels for part in parts)]),
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *(part.boxes for part in parts)]),
        scores=np.concatenate([np.zeros(0, np.float32), *(part.scores for part in parts)]),
        masks=masks,
    )


def gather(detections: Detections, world: World, expected: Sequence[int] | np.ndarray) -> Detections:
    """The detections of all ranks on every rank, in order of rank. Every rank must call, those without any too.

    `expected` are the ids of the images that all ranks together must have looked at, each once.

    Raises:
        RuntimeError: on every rank, where an image was evaluated twice, not at all, or is not expected. Padding of the
            last batch or of a sampler does this, and would shift AP without a word.
    """
    everything = concatenate(world.gather(detections))
    counts = Counter(everything.evaluated.tolist())
    wanted = {int(i) for i in expected}
    wrong = {
        "twice": sorted(i for i, n in counts.items() if n > 1),
        "not at all": sorted(wanted - counts.keys()),
        "though not asked for": sorted(counts.keys() - wanted),
    }
    if any(wrong.values()):
        found = "; ".join(f"{how} {len(ids)}, such as {ids[:5]}" for how, ids in wrong.items() if ids)
        raise RuntimeError(
            f"each of {len(wanted)} images must be evaluated once by {world.size} ranks, but evaluated were {found}"
        )
    return everything


def to_coco(detections: Detections, categories: Categories) -> list[dict[str, Any]]:
    """COCO results, sorted by image id; within an image as the detector gave them.

    Numbers are rounded here, once, so that what is scored is what is written: boxes to 1/1000 pixel, scores to the
    shortest decimal that is the same float32, which keeps order and ties. JSON gives both back to the bit.
    """
    order = np.argsort(detections.image_ids, kind="stable")
    boxes = detections.boxes.astype(np.float64)
    boxes = np.round(np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1), 3)[order].tolist()
    scores = detections.scores.astype(np.float32).astype(str).astype(np.float64)[order].tolist()
    ids = [categories.ids[label - 1] for label in detections.labels[order].tolist()]
    images = detections.image_ids[order].tolist()
    results: list[dict[str, Any]] = [
        {"image_id": image, "category_id": category, "bbox": box, "score": score}
        for image, category, box, score in zip(images, ids, boxes, scores, strict=True)
    ]
    if detections.masks is not None:
        for result, row in zip(results, order.tolist(), strict=True):
            result["segmentation"] = detections.masks[row]
    return results


def encode(mask: np.ndarray) -> dict[str, Any]:
    """A mask, [H, W], 1 or True where the object is, as compressed RLE with text counts."""
    found = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in found["size"]], "counts": found["counts"].decode()}


def paste(masks: Tensor, boxes: np.ndarray, height: int, width: int) -> list[dict[str, Any]]:
    """Masks float32 [D, 1, M, M], probabilities within boxes float32 [D, 4], as RLEs of the whole image.

    What torchvision's `paste_masks_in_image` gives above 0.5, to the bit: of the image only the box is looked at.
    """
    padded, scale = expand_masks(masks, padding=1)
    corners = expand_boxes(torch.from_numpy(boxes), scale).long().tolist()  # cut off, as torchvision does
    found = []
    for mask, (x, y, x2, y2) in zip(padded, corners, strict=True):
        sides = max(y2 - y + 1, 1), max(x2 - x + 1, 1)
        inside = F.interpolate(mask[None], size=sides, mode="bilinear", align_corners=False)[0, 0] > MASK_THRESHOLD
        left, top = max(x, 0), max(y, 0)
        shown = inside[top - y : min(y2 + 1, height) - y, left - x : min(x2 + 1, width) - x]
        found.append(_encode_part(shown.numpy(), top, left, height, width))
    return found


def _encode_part(part: np.ndarray, top: int, left: int, height: int, width: int) -> dict[str, Any]:
    """`encode` of an image that is False but for `part`, bool [h, w], whose first row and column are `top`, `left`.

    Runs go down the columns, one after another. They are found column by column, with a row of zeros above and below,
    and joined where one ends at the image's last row and the next begins at its first.
    """
    columns = np.zeros((part.shape[1], part.shape[0] + 2), np.int8)
    columns[:, 1:-1] = part.T
    column, row = np.nonzero(np.diff(columns, axis=1))  # begin, end, begin, end, ...
    ends = (left + column) * height + top + row
    joined = ends[2::2] == ends[1:-1:2]
    keep = np.ones(len(ends), bool)
    keep[2::2] &= ~joined
    keep[1:-1:2] &= ~joined
    ends = ends[keep]
    runs = np.diff(np.concatenate([[0], ends, [height * width] if not len(ends) or ends[-1] < height * width else []]))
    found = rle.frPyObjects({"size": [height, width], "counts": runs.astype(np.int64).tolist()}, height, width)
    return {"size": [height, width], "counts": found["counts"].decode()}
