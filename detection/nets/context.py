"""Global context (arXiv:1512.03385, appendix B): what the whole image looks like, beside each of its regions.

"Given the full-image conv feature map, we pool a feature by global Spatial Pyramid Pooling (with a "single-level"
pyramid) which can be implemented as "RoI" pooling using the entire image's bounding box as the RoI. This pooled feature
is fed into the post-RoI layers to obtain a global context feature. This global feature is concatenated with the
original per-region feature, followed by the sibling classification and box regression layers."
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def with_whole(boxes: Sequence[Tensor], sides: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Each image's regions [R, 4], then one more: all of the image, whose height and width `sides` says."""
    return [
        torch.cat([own, own.new_tensor([[0, 0, width, height]])])
        for own, (height, width) in zip(boxes, sides, strict=True)
    ]


def without_whole(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows [sum of R + 1, ...] of `with_whole`, `counts` the R of each image -> those of regions, [sum of R, ...]."""
    return torch.cat([own[:-1] for own in rows.split([count + 1 for count in counts])])


def beside_whole(vectors: Tensor, counts: Sequence[int]) -> Tensor:
    """Vectors [sum of R + 1, F] of `with_whole` -> [sum of R, 2 F]: each region's own, then its image's."""
    parts = vectors.split([count + 1 for count in counts])
    return torch.cat([torch.cat([own[:-1], own[-1:].expand(len(own) - 1, -1)], 1) for own in parts])
