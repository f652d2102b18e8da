"""Voting against a loop written plainly, and where it must change nothing."""

import torch
from torchvision.ops import box_iou

from detection.improvements.rows import Rows, pool, suppress
from detection.improvements.voting import vote


def drawn(count: int, seed: int = 0) -> Rows:
    """Boxes that overlap a good deal, of three classes."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 40
    sides = 10 + torch.rand(count, 2, generator=generator, dtype=torch.float64) * 30
    labels = torch.randint(1, 4, (count,), generator=generator)
    return Rows(torch.cat([corners, corners + sides], 1), labels, torch.rand(count, generator=generator))


def test_identical_boxes_stay_to_the_bit() -> None:
    box = torch.tensor([[0.1, 2.3, 17.7, 31.9]], dtype=torch.float64)
    same = Rows(box.repeat(50, 1), torch.ones(50, dtype=torch.int64), torch.rand(50))
    kept = suppress(same, 0.5, 10)
    assert len(kept) == 1
    assert torch.equal(vote(kept, same).boxes, box)


def test_against_a_plain_loop() -> None:
    candidates = drawn(200)
    kept = suppress(candidates, 0.3, 40)
    found = vote(kept, candidates)
    moved = 0
    for row, box in enumerate(kept.boxes):
        total, weight = torch.zeros(4, dtype=torch.float64), 0.0
        for other, label, score in zip(candidates.boxes, candidates.labels, candidates.scores.tolist(), strict=True):
            if label == kept.labels[row] and box_iou(box[None], other[None]) >= 0.5:
                total, weight = total + score * other, weight + score
        torch.testing.assert_close(found.boxes[row], total / weight, rtol=0, atol=1e-9)
        moved += not torch.equal(found.boxes[row], box)
    assert moved > 5
    assert torch.equal(found.labels, kept.labels)
    assert torch.equal(found.scores, kept.scores)


def test_other_classes_and_far_boxes_have_no_vote() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 10.5], [0, 0, 10, 4.9]], dtype=torch.float64)
    rows = Rows(boxes, torch.tensor([1, 2, 1]), torch.tensor([0.9, 0.8, 0.7]))
    kept = rows.take(torch.tensor([0]))
    assert torch.equal(vote(kept, rows).boxes, boxes[:1])
    half = Rows(torch.tensor([[0, 0, 10, 5.0]], dtype=torch.float64), torch.tensor([1]), torch.tensor([0.9]))
    assert vote(kept, pool([kept, half])).boxes.tolist() == [[0, 0, 10, 7.5]]  # IoU 0.5 itself votes


def test_no_boxes() -> None:
    none = drawn(0)
    assert len(vote(suppress(none, 0.5, 10), none)) == 0
