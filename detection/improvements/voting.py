"""Box voting (Gidaris and Komodakis, arXiv:1505.01749, section 4; arXiv:1512.03385, appendix B)."""

from dataclasses import replace

import torch
from torchvision.ops import box_iou

from detection.improvements.rows import Rows

VOTING_IOU = 0.5  # Gidaris and Komodakis; the ResNet paper does not say


def vote(kept: Rows, candidates: Rows, iou: float = VOTING_IOU) -> Rows:
    """Move each box that NMS kept to the mean of its neighbours, weighted by their scores; labels and scores stay.

    Args:
        kept: detections.
        candidates: what NMS chose them from, among them themselves. Neighbours are of the same class, at `iou` or more.
    """
    near = box_iou(kept.boxes, candidates.boxes) >= iou
    near &= kept.labels[:, None] == candidates.labels
    weights = near * candidates.scores.double().clamp(min=0)
    total = weights.sum(1, keepdim=True)
    # As corrections of the kept boxes, so that those without others near stay to the bit.
    moves = torch.einsum("kc,kcx->kx", weights, candidates.boxes - kept.boxes[:, None]) / total.clamp(min=1e-12)
    return replace(kept, boxes=kept.boxes + moves)
