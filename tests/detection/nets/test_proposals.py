"""The RPN against torchvision's, and what it adds against Faster R-CNN's rules written out."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork

from detection.nets import Detector
from tests.detection.nets.conftest import FEW

Batch = tuple[Tensor, list[tuple[int, int]], list[dict[str, Tensor]]]
Make = Callable[..., Detector]
SMALL = (8, 16, 24, 32)  # of anchors, some of which fit into images of 96x64


def made(detector: Make, **rpn: Any) -> Detector:
    return detector({"depth": 18}, kind="c4", anchor_sizes=SMALL, rpn={**FEW["rpn"], **rpn})


def proposed(detector: Detector, batch: Batch) -> tuple[list[Tensor], dict[str, Tensor]]:
    torch.manual_seed(7)
    return detector.rpn(ImageList(batch[0], batch[1]), detector.backbone(batch[0]), batch[2])


def test_by_default_it_is_torchvisions_to_the_last_bit(detector: Make, batch: Batch) -> None:
    ours = made(detector)
    theirs = RegionProposalNetwork(
        ours.rpn.anchor_generator, ours.rpn.head, 0.7, 0.3, 256, 0.5, {"training": 60}, {"training": 40}, 0.7
    )
    boxes, losses = proposed(ours, batch)
    torch.manual_seed(7)
    expected_boxes, expected = theirs(ImageList(batch[0], batch[1]), ours.backbone(batch[0]), batch[2])
    assert all(torch.equal(a, b) for a, b in zip(boxes, expected_boxes, strict=True))
    assert losses.keys() == expected.keys()
    assert all(torch.equal(losses[name], expected[name]) for name in losses)
    assert losses["loss_rpn_box_reg"] > 0


def iou(a: list[float], b: list[float]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(wide, 0) * max(high, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def test_anchors_that_cross_the_border_take_no_part(detector: Make, batch: Batch) -> None:
    """Section 3.1.2 and 3.3: 1 above 0.7 or best of an object, 0 below 0.3 of all, -1 between or across the border.
    The border is the image's, not the padding's."""
    rpn = made(detector, inside_only=True).rpn
    maps = {"C4": torch.zeros(2, 64, 6, 4)}
    anchors = rpn.anchor_generator(ImageList(batch[0], batch[1]), [maps["C4"]])
    objects = [torch.tensor([[10.0, 8, 41, 50], [60.0, 80, 64, 96]]), torch.tensor([[30.0, 38, 60, 80]])]
    ends = [torch.tensor([w, h, w, h]) for h, w in batch[1]]
    targets = [{"boxes": boxes, "ends": end} for boxes, end in zip(objects, ends, strict=True)]
    labels, boxes = rpn.assign_targets_to_anchors(anchors, targets)
    for image, (h, w) in enumerate(batch[1]):
        rows, known = anchors[image].tolist(), objects[image].tolist()
        inside = [x >= 0 and y >= 0 and x2 <= w and y2 <= h for x, y, x2, y2 in rows]
        best = [max(iou(one, row) for row, fits in zip(rows, inside, strict=True) if fits) for one in known]
        for i, row in enumerate(rows):
            over = [iou(one, row) for one in known]
            wins = any(over[k] == best[k] > 0 for k in range(len(known)))
            expected = -1 if not inside[i] else 1 if max(over) >= 0.7 or wins else 0 if max(over) < 0.3 else -1
            assert labels[image][i] == expected, (image, row)
            if expected == 1:
                matching = [one for one, o in zip(known, over, strict=True) if o == max(over)]
                assert boxes[image][i].tolist() in matching
        assert labels[image].unique().tolist() == [-1, 0, 1]
    assert any(x2 > 60 for x2 in anchors[1][labels[1] == -1][:, 2].tolist())


def test_an_image_smaller_than_all_anchors_costs_nothing(detector: Make, batch: Batch) -> None:
    net = detector({"depth": 18}, kind="c4", anchor_sizes=(512,), rpn={**FEW["rpn"], "inside_only": True})
    losses = net(*batch)
    assert losses["loss_objectness"] == losses["loss_rpn_box_reg"] == 0
    sum(losses.values()).backward()
    for name, p in net.named_parameters():  # DDP waits for each of them
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name


def test_beta_is_where_the_loss_turns(detector: Make) -> None:
    found, wanted = torch.tensor([[0.5, -2, 0.05, 3]]), torch.zeros(1, 4)
    for beta in (1.0, 1 / 9, 0.0):
        rpn = made(detector, beta=beta).rpn
        _, loss = rpn.compute_loss(torch.zeros(1, 1), found, [torch.ones(1)], [wanted])
        terms = [0.5 * x * x / beta if abs(x) < beta else abs(x) - 0.5 * beta for x in (0.5, 2, 0.05, 3)]
        assert loss.item() == pytest.approx(sum(terms), rel=1e-6)


def test_small_proposals_are_dropped(detector: Make, batch: Batch) -> None:
    before, _ = proposed(made(detector), batch)
    after, _ = proposed(made(detector, min_size=16), batch)
    sides = [(boxes[:, 2:] - boxes[:, :2]).min(1).values for boxes in (*before, *after)]
    assert min(row.min() for row in sides[:2]) < 16 <= min(row.min() for row in sides[2:])


def test_width_is_that_of_its_convolution(detector: Make, batch: Batch) -> None:
    """Faster R-CNN, section 3.1: 512-d on VGG; torchvision: as wide as the maps. Keys are torchvision's."""
    usual, narrow = made(detector), made(detector, channels=24)
    keys = [f"conv.0.0.{p}" for p in ("weight", "bias")]
    keys += [f"{layer}.{p}" for layer, p in itertools.product(("cls_logits", "bbox_pred"), ("weight", "bias"))]
    assert list(narrow.rpn.head.state_dict()) == list(usual.rpn.head.state_dict()) == keys
    assert usual.rpn.head.state_dict()[keys[0]].shape == (64, 64, 3, 3)
    assert narrow.rpn.head.state_dict()[keys[0]].shape == (24, 64, 3, 3)
    assert narrow.rpn.head.state_dict()[keys[0]].std().item() == pytest.approx(0.01, rel=0.05)
    assert narrow.rpn.head.bbox_pred.in_channels == narrow.rpn.head.cls_logits.in_channels == 24
    assert all(loss.isfinite() for loss in narrow(*batch).values())
