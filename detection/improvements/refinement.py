"""Box refinement (arXiv:1512.03385, appendix B; iterative localisation of Gidaris and Komodakis, arXiv:1505.01749)."""

from collections.abc import Callable

import torch
from torch import Tensor

REFINED_NMS = 0.3  # IoU, over old and new predictions together (appendix B)

Predict = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Regions float32 [R, 4] -> boxes float32 [R, K, 4], one a class, and scores float32 [R, K] of K classes."""


def refine(predict: Predict, proposals: Tensor) -> tuple[Tensor, Tensor]:
    """Predict from proposals [P, 4], then again from the boxes they became.

    Returns boxes [2P, K, 4] and scores [2P, K], the old ones first.

    With a box for each class, each proposal's second region is that of its best class: 300 new predictions of 300, as
    the paper counts; it does not say which class's box it takes.
    """
    boxes, scores = predict(proposals)
    if not len(proposals):
        return boxes, scores
    regressed = boxes[torch.arange(len(boxes), device=boxes.device), scores.argmax(1)]
    again = predict(regressed)
    return torch.cat([boxes, again[0]]), torch.cat([scores, again[1]])
