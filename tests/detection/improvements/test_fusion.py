"""Weighted box fusion against the authors' own package, whose answers are written down here, and by hand."""

import torch

from detection.improvements.fusion import fuse
from detection.improvements.rows import Rows


def rows(*found: tuple[float, ...]) -> Rows:
    """From label, score, x1, y1, x2, y2."""
    table = torch.tensor(found, dtype=torch.float64).reshape(-1, 6)
    return Rows(table[:, 2:], table[:, 0].long(), table[:, 1].float())


THREE = (
    rows((1, 0.9, 10, 10, 40, 50), (1, 0.6, 12, 14, 44, 52), (2, 0.7, 10, 10, 41, 50), (1, 0.3, 60, 60, 90, 95)),
    rows((1, 0.8, 8, 12, 38, 48), (2, 0.75, 50, 5, 80, 35), (1, 0.5, 62, 58, 92, 93)),
    rows((1, 0.85, 14, 8, 42, 54), (2, 0.65, 52, 8, 84, 33), (2, 0.2, 12, 30, 40, 70), (3, 0.4, 0, 0, 100, 100)),
)
# `ensemble_boxes.weighted_boxes_fusion` of ensemble-boxes 1.0.9 with its defaults, boxes given as parts of 100.
THEIRS = (
    (1, 0.7875, 10.9524, 10.7302, 40.7937, 50.9524),
    (2, 0.46667, 50.9286, 6.3929, 81.8571, 34.0714),
    (1, 0.26667, 61.25, 58.75, 91.25, 93.75),
    (2, 0.23333, 10.0, 10.0, 41.0, 50.0),
    (3, 0.13333, 0.0, 0.0, 100.0, 100.0),
    (2, 0.06667, 12.0, 30.0, 40.0, 70.0),
)


def test_it_is_what_the_authors_package_gives() -> None:
    fused, theirs = fuse(THREE), rows(*THEIRS)
    assert torch.equal(fused.labels, theirs.labels)
    torch.testing.assert_close(fused.scores, theirs.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(fused.boxes, theirs.boxes, rtol=0, atol=1e-3)


def test_detectors_that_agree_are_one_of_them() -> None:
    """And what one of two alone has found counts half."""
    one = THREE[2]
    same = fuse([one, one])
    best = torch.argsort(one.scores, descending=True)
    assert torch.equal(same.boxes, one.boxes[best])
    assert torch.equal(same.scores, one.scores[best])
    alone = fuse([one, rows()])
    assert torch.equal(alone.boxes, one.boxes[best])
    torch.testing.assert_close(alone.scores, one.scores[best] / 2)


def test_nothing_found() -> None:
    assert len(fuse([rows(), rows()])) == 0
