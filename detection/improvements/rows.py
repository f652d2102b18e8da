"""Boxes that compete for being a detection: the rows that every step takes and gives."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torchvision.ops import batched_nms


@dataclass(frozen=True)
class Rows:
    """D boxes of one image with what they are taken for; rows belong together."""

    boxes: Tensor  # float64 [D, 4], x1 y1 x2 y2
    labels: Tensor  # int64 [D], 1..K
    scores: Tensor  # float32 [D]

    def __post_init__(self) -> None:
        shapes = [self.boxes.shape[:1], self.labels.shape, self.scores.shape]
        if len(set(shapes)) != 1 or self.boxes.shape[1:] != (4,):
            raise ValueError(f"rows do not belong together: {shapes}, boxes {self.boxes.shape}")

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: Tensor) -> "Rows":
        """Those of a mask bool [D] or of indices int64 [d], in their order."""
        return Rows(self.boxes[rows], self.labels[rows], self.scores[rows])


def pool(parts: Sequence[Rows]) -> Rows:
    """All rows of `parts`, one or more, in order."""
    boxes, labels, scores = (torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Rows))
    return Rows(boxes, labels, scores)


def suppress(rows: Rows, iou: float, most: int) -> Rows:
    """What non-maximum suppression within each class leaves, best first, `most` rows at most."""
    return rows.take(batched_nms(rows.boxes, rows.scores.double(), rows.labels, iou)[:most])
