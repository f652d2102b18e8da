"""torchvision's matcher, sampler and pyramid pooling with fewer waits for the device: the same draws, bit for bit,
but for objects that no box touches (`BestToo`).

A GPU is told what to do ahead of time, but where the size of a result lies on it, as that of `torch.where(mask)[0]`,
Python must wait until all before is computed. Here such sizes come in one transfer for all images or levels, and what
is made with them waits no more.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops._utils import convert_boxes_to_roi_format
from torchvision.ops.poolers import LevelMapper

from detection.nets import align


def where(mask: Tensor, count: int) -> Tensor:
    """Indices int64 [count], ascending, of the True ones of a mask bool [N], of which there are `count`."""
    return torch.nonzero_static(mask, size=count)[:, 0]


def counts(masks: list[Tensor]) -> list[int]:
    """How many are True in each; one wait."""
    return torch.stack([mask.sum() for mask in masks]).tolist()


class BestToo(Matcher):
    """Matcher in which an object's best boxes are its own whatever their overlap (arXiv:1506.01497, section 3.1.2)."""

    def __init__(self, high_threshold: float, low_threshold: float) -> None:
        super().__init__(high_threshold, low_threshold, allow_low_quality_matches=True)

    def set_low_quality_matches_(self, matches: Tensor, all_matches: Tensor, match_quality_matrix: Tensor) -> None:
        """See torchvision's; in place, overlaps [objects, boxes] to matches int64 [boxes]."""
        highest = match_quality_matrix.amax(1, keepdim=True)
        best = ((match_quality_matrix == highest) & (highest > 0)).any(0)  # torchvision: all, where none touches it
        matches.copy_(torch.where(best, all_matches, matches))


class Sampler(BalancedPositiveNegativeSampler):
    """Draws of each image's boxes `batch_size_per_image`, of which `positive_fraction` at most are positive."""

    def indices(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Each image's labels [N] (positive from 1 on, negative 0, -1 left out) -> int64 indices, ascending, of the
        positive and of the negative boxes drawn. Waits once for all images."""
        masks = [mask for label in labels for mask in (label >= 1, label == 0)]
        found = counts(masks)
        drawn: list[Tensor] = []
        for i in range(0, len(masks), 2):
            positives = min(found[i], int(self.batch_size_per_image * self.positive_fraction))
            for mask, there, most in (
                (masks[i], found[i], positives),
                (masks[i + 1], found[i + 1], self.batch_size_per_image - positives),
            ):
                order = torch.randperm(there, device=mask.device)[:most]
                drawn.append(where(mask, there)[order].sort().values)
        return drawn[::2], drawn[1::2]


class PyramidPool(MultiScaleRoIAlign):
    """MultiScaleRoIAlign over maps of known strides.

    torchvision's infers the strides from its first batch and keeps them. It compares padded maps with unpadded images
    there: where those are below 68 px it can be wrong, and then for good.
    """

    map_levels: LevelMapper

    def __init__(self, strides: dict[str, int], size: int, canonical: float) -> None:
        super().__init__(list(strides), size, sampling_ratio=align.SAMPLES)
        steps = list(strides.values())
        side: Any = canonical  # annotated as int, used as a divisor
        self.scales: list[float] = [1 / stride for stride in steps]
        self.map_levels = LevelMapper(steps[0].bit_length() - 1, steps[-1].bit_length() - 1, side)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Maps by name, each image's boxes [R, 4] in input pixels -> [sum of R, channels, size, size]."""
        maps = [x[name] for name in self.featmap_names]
        rois, levels = convert_boxes_to_roi_format(boxes), self.map_levels(boxes)
        masks = [levels == level for level in range(len(maps))]
        rows = [where(mask, count) for mask, count in zip(masks, counts(masks), strict=True)]
        return align.pool(maps, rois, rows, self.output_size[0], self.scales)
