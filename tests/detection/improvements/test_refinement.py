"""Refinement with regressors whose answers are known."""

import torch
from torch import Tensor

from detection.improvements.refinement import REFINED_NMS, refine
from detection.improvements.rows import Rows, suppress
from detection.improvements.voting import vote

OBJECTS = torch.tensor([[5.0, 5, 25, 30], [40, 10, 60, 50]])


def rows_of(boxes: Tensor, scores: Tensor) -> Rows:
    labels = torch.arange(1, scores.shape[1] + 1).expand_as(scores)
    return Rows(boxes.reshape(-1, 4).double(), labels.reshape(-1), scores.reshape(-1))


def right(regions: Tensor) -> tuple[Tensor, Tensor]:
    """Each region becomes the object whose centre is nearest; object k is of class k."""
    nearest = torch.cdist((regions[:, :2] + regions[:, 2:]) / 2, (OBJECTS[:, :2] + OBJECTS[:, 2:]) / 2).argmin(1)
    return OBJECTS[nearest][:, None].expand(-1, 2, -1), torch.eye(2)[nearest] * 0.9


def halfway(regions: Tensor) -> tuple[Tensor, Tensor]:
    """A regressor that goes half of the way, and scores by how near the region was."""
    boxes = (regions[:, None] + OBJECTS) / 2
    return boxes, torch.exp(-(regions[:, None] - OBJECTS).abs().sum(-1) / 40)


def test_perfect_boxes_are_kept() -> None:
    boxes, scores = refine(right, OBJECTS)
    assert torch.equal(boxes, torch.cat([OBJECTS, OBJECTS])[:, None].expand(-1, 2, -1))
    rows = rows_of(boxes, scores)
    rows = rows.take(rows.scores > 0.05)
    kept = vote(suppress(rows, REFINED_NMS, 100), rows)
    assert torch.equal(kept.boxes, OBJECTS.double())
    assert kept.labels.tolist() == [1, 2]


def test_the_second_look_is_at_the_best_classs_box() -> None:
    proposals = OBJECTS + torch.tensor([[4.0, -3, 2, 5], [-6, 2, 3, -4]])
    boxes, scores = refine(halfway, proposals)
    assert torch.equal(boxes[:2], halfway(proposals)[0])
    assert torch.equal(scores[:2], halfway(proposals)[1])
    own = torch.stack([boxes[0, 0], boxes[1, 1]])  # proposal k is nearest to object k
    assert torch.equal(boxes[2:], halfway(own)[0])
    again = torch.stack([boxes[2, 0], boxes[3, 1]])
    torch.testing.assert_close((again - OBJECTS).abs(), (proposals - OBJECTS).abs() / 4)  # two halves
    assert (scores[2:].diagonal() > scores[:2].diagonal()).all()


def test_no_proposals() -> None:
    boxes, scores = refine(right, torch.zeros(0, 4))
    assert (boxes.shape, scores.shape) == ((0, 2, 4), (0, 2))
