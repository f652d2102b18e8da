"""Region heads against torchvision's, and what they add against Fast R-CNN's formulas written out."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads

from detection.nets import Detector

Batch = tuple[Tensor, list[tuple[int, int]], list[dict[str, Tensor]]]
Make = Callable[..., Detector]
BOXES = [torch.tensor([[8.0, 10, 40, 50], [0, 0, 20, 20], [5, 8, 42, 47]]), torch.tensor([[20.0, 40, 60, 80]])]


def features_of(detector: Detector, batch: Batch) -> dict[str, Tensor]:
    with torch.no_grad():
        return detector.backbone(batch[0])


@pytest.mark.parametrize(("kind", "masks"), [("fpn", False), ("fpn", True), ("c4", False)])
def test_by_default_losses_are_torchvisions_to_the_last_bit(
    kind: str, masks: bool, detector: Make, batch: Batch
) -> None:
    heads = detector({"depth": 18}, kind=kind, masks=masks).roi_heads
    maps = features_of(detector({"depth": 18}, kind=kind, masks=masks), batch)
    torch.manual_seed(3)
    _, ours = heads(maps, BOXES, batch[1], batch[2])
    torch.manual_seed(3)
    _, theirs = RoIHeads.forward(heads, maps, BOXES, batch[1], batch[2])
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert ours["loss_box_reg"] > 0


def smooth_l1(x: float, beta: float) -> float:
    return 0.5 * x * x / beta if abs(x) < beta else abs(x) - 0.5 * beta


@pytest.mark.parametrize("beta", [1.0, 1 / 9])
def test_box_loss_is_equation_3_of_fast_rcnn_over_all_regions(beta: float, detector: Make) -> None:
    """Turning at 1; torchvision's turns at 1/9. Background regions have no box and are counted all the same."""
    heads = detector({"depth": 18}, roi={"beta": beta}).roi_heads
    scores, deltas, wanted = torch.randn(5, 4), torch.randn(5, 16), torch.randn(5, 4)
    labels = [torch.tensor([2, 0, 1]), torch.tensor([0, 3])]
    losses = heads._box_losses(scores, deltas, labels, [wanted[:3], wanted[3:]])
    total = 0.0
    for row, label in enumerate([2, 0, 1, 0, 3]):
        for side in range(4):
            if label:
                total += smooth_l1(float(deltas[row, 4 * label + side] - wanted[row, side]), beta)
    assert losses["loss_box_reg"].item() == pytest.approx(total / 5, rel=1e-6)
    wrong = [-math.log(scores[i].softmax(0)[k]) for i, k in enumerate([2, 0, 1, 0, 3])]
    assert losses["loss_classifier"].item() == pytest.approx(sum(wrong) / 5, rel=1e-5)


@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_beta_reaches_the_loss_of_a_detector(kind: str, detector: Make, batch: Batch) -> None:
    found: dict[float, Any] = {}
    for beta in (1 / 9, 1.0):
        made = detector({"depth": 18}, kind=kind, masks=True, roi={"beta": beta})
        torch.manual_seed(5)
        found[beta] = made(*batch)
    assert found[1.0]["loss_box_reg"] < found[1 / 9]["loss_box_reg"]  # a wider bowl lies below
    same = ("loss_classifier", "loss_mask", "loss_objectness", "loss_rpn_box_reg")
    assert all(torch.equal(found[1.0][name], found[1 / 9][name]) for name in same)


@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_first_weights_are_fast_rcnns_where_asked(kind: str, detector: Make) -> None:
    """Section 2.3: "zero-mean Gaussian distributions with standard deviations 0.01 and 0.001", biases 0."""
    fields: dict[str, Any] = {} if kind == "c4" else {"hidden": 1024}
    predictor: Any = detector({"depth": 18, "width": 1.0}, kind=kind, roi={"init": "normal"}, **fields)
    predictor = predictor.roi_heads.box_predictor
    for layer, deviation in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.1)
        # A uniform distribution ends at 1.73 deviations.
        assert layer.weight.abs().max().item() > 2.5 * deviation
        assert (layer.bias == 0).all()
    usual: Any = detector({"depth": 18, "width": 1.0}, kind=kind, **fields).roi_heads.box_predictor
    assert usual.cls_score.weight.abs().max() <= 1 / math.sqrt(usual.cls_score.in_features)


def test_no_region_is_no_loss(detector) -> None:
    """An image without objects that is thinner than rpn.min_size."""
    model = detector({"depth": 18}, rpn={"min_size": 1000.0}).train()
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = model(torch.randn(1, 3, 64, 64), [(64, 64)], [none])
    assert losses["loss_classifier"] == losses["loss_box_reg"] == 0
