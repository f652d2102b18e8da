"""Weighted box fusion (Solovyev, Wang and Gabruseva, arXiv:1910.13302): one set of detections from several."""

from collections.abc import Sequence

import numpy as np
import torch

from detection.improvements.rows import Rows, pool

FUSION_IOU = 0.55  # the authors'


def fuse(parts: Sequence[Rows], iou: float = FUSION_IOU) -> Rows:
    """One set of detections of an image from those of M detectors, best first.

    Best first, each box joins the cluster of its class whose mean, weighted by scores, it overlaps most and by more
    than `iou`, or begins one. A cluster becomes its mean box, with the mean score times min(M, members) / M, so that
    what one detector alone has found counts less.
    """
    rows = pool(parts)
    order = torch.argsort(rows.scores, descending=True, stable=True)
    every, scores = rows.boxes[order].cpu().numpy(), rows.scores[order].double().cpu().numpy()
    labels = rows.labels[order].cpu().numpy()
    found: list[tuple[np.ndarray, int, float]] = []
    for label in np.unique(labels).tolist():
        mine = labels == label
        boxes, weights, counts = _clusters(every[mine], scores[mine], iou)
        fused = weights / counts * np.minimum(counts, len(parts)) / len(parts)
        found += [(box, label, score) for box, score in zip(boxes, fused.tolist(), strict=True)]
    found.sort(key=lambda row: -row[2])
    device = rows.boxes.device
    return Rows(
        torch.from_numpy(np.array([box for box, _, _ in found]).reshape(-1, 4)).to(device),
        torch.tensor([label for _, label, _ in found], dtype=torch.int64, device=device),
        torch.tensor([score for _, _, score in found], dtype=torch.float32, device=device),
    )


def _clusters(boxes: np.ndarray, scores: np.ndarray, iou: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of boxes [D, 4] of one class, best first: C mean boxes, sums of scores [C] and numbers of boxes [C]."""
    means, weights, counts = np.zeros_like(boxes), np.zeros(len(boxes)), np.zeros(len(boxes))
    clusters = 0
    for box, score in zip(boxes, scores, strict=True):
        overlaps = _overlaps(means[:clusters], box)
        at = int(overlaps.argmax()) if clusters and overlaps.max() > iou else clusters
        clusters += at == clusters
        weights[at] += score
        counts[at] += 1
        means[at] += (box - means[at]) * (score / max(weights[at], 1e-12))
    return means[:clusters], weights[:clusters], counts[:clusters]


def _overlaps(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """IoU [D] of boxes [D, 4] with one, [4]."""
    shared = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    intersection = shared.clip(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return intersection / np.maximum(areas - intersection, 1e-12)
