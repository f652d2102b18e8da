"""Fewer waits for the device, and the same bits as torchvision's own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign

from backbone.data.stream import MicroBatches
from backbone.training.engine import Trainer
from backbone.training.meter import Meter
from detection import forward
from detection.data.sources import open_sources
from detection.finetune import Detection
from detection.nets import Detector
from detection.nets.sampling import BestToo, PyramidPool, Sampler
from tests.detection.conftest import ALONE, Make
from tests.waits import waits


def theirs(images: int) -> int:
    """Waits of a step of torchvision's Faster R-CNN."""
    net = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=64).train()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    boxes = torch.tensor([[10.0, 10.0, 40.0, 50.0], [20.0, 5.0, 60.0, 30.0]])

    def step() -> None:
        targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in range(images)]
        sum(net([torch.rand(3, 64, 64) for _ in range(images)], targets).values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return waits(step)


@pytest.mark.parametrize("images", [2, 4])
def test_a_step_waits_less_than_half_as_often_as_torchvisions(
    small: Make, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "on_host", lambda images: False)
    recipe = small({"optim.batch": images, "optim.micro_batch": images})
    task = Detection(recipe, *open_sources(recipe.data), ALONE)
    trainer, meter = Trainer(task, recipe.optim, recipe.compute, 0, ALONE), Meter(ALONE, images)
    micro_batches = MicroBatches(images, images, 0, 1, 0, 2)
    batches = list(task.batches(micro_batches))

    def step() -> None:
        trainer.step(iter([batches.pop()]), micro_batches, 0.01, 0, meter)

    found = waits(step)
    assert (
        found == 5 + images
    )  # RPN's samples, its proposals, regions, their levels and positives; and each image's NMS
    assert 2 * found < theirs(images)


def labels(seed: int, boxes: int = 500) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    mixed = [torch.randint(-1, 4, (boxes,), generator=draw) for _ in range(3)]
    return [*mixed, torch.zeros(boxes, dtype=torch.int64), torch.ones(3, dtype=torch.int64), -torch.ones(5)]


@pytest.mark.parametrize("fraction", [0.25, 0.5])
def test_samples_are_those_of_torchvision(fraction: float) -> None:
    torch.manual_seed(1)
    wanted = [
        [torch.where(mask)[0] for mask in masks] for masks in BalancedPositiveNegativeSampler(64, fraction)(labels(0))
    ]
    torch.manual_seed(1)
    found = Sampler(64, fraction).indices(labels(0))
    for ours, own in zip(found, wanted, strict=True):
        for a, b in zip(ours, own, strict=True):
            assert torch.equal(a, b)


def test_matches_are_those_of_torchvision() -> None:
    overlaps = torch.rand(6, 300, generator=torch.Generator().manual_seed(0))
    overlaps[2] *= 0.2  # matched by no threshold
    overlaps[3, 7] = overlaps[3, 9] = 0.99999  # twice the best
    theirs = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    assert torch.equal(BestToo(0.7, 0.3)(overlaps), theirs(overlaps))


def test_pooled_regions_are_those_of_torchvision() -> None:
    draw = torch.Generator().manual_seed(0)
    maps = {f"C{i + 2}": torch.randn(2, 8, 32 >> i, 32 >> i, generator=draw, requires_grad=True) for i in range(4)}
    corners = torch.rand(2, 60, 2, 2, generator=draw).mul(128).sort(2).values
    boxes = [*corners.flatten(2)[:, :, [0, 1, 2, 3]]]
    pool = PyramidPool({"C2": 4, "C3": 8, "C4": 16, "C5": 32}, 7, 56.0)
    own = MultiScaleRoIAlign(list(maps), 7, 2)
    own.scales, own.map_levels = pool.scales, pool.map_levels
    sides = [(128, 128)] * 2
    found, wanted = pool(maps, boxes, sides), own(maps, boxes, sides)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    every = list(maps.values())
    ours, theirs = (torch.autograd.grad(one.square().sum(), every) for one in (found, wanted))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_proposals_are_those_of_torchvision(detector: Callable[..., Detector]) -> None:
    rpn = detector({"depth": 18}, rpn={"pre_nms_train": 40, "post_nms_train": 15, "min_size": 3.0}).rpn.train()
    draw = torch.Generator().manual_seed(0)
    levels = [300, 75, 20, 6, 2]
    corners = torch.rand(3, sum(levels), 2, 2, generator=draw).mul(80).sort(2).values
    proposals, objectness = corners.flatten(2), torch.randn(3, sum(levels), 1, generator=draw)
    sides = [(64, 64), (48, 70), (80, 33)]
    found = rpn.filter_proposals(proposals, objectness, sides, levels)
    wanted = RegionProposalNetwork.filter_proposals(rpn, proposals, objectness, sides, levels)
    for ours, own in zip(found, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, own, strict=True))
        assert min(map(len, ours)) > 0


def test_an_object_that_no_box_touches_has_none() -> None:
    overlaps = torch.tensor([[0.8, 0.0, 0.1], [0.0, 0.0, 0.0]])
    assert BestToo(0.7, 0.3)(overlaps).tolist() == [0, -1, -1]
