"""A pyramid detector with torchvision's weights gives torchvision's detections and losses, under torchvision's keys."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import FrozenBatchNorm2d

from backbone.nets import build as build_net
from backbone.options import NetOptions
from detection.nets import Detector, build
from detection.options import DetectorOptions, Roi

Shake = Callable[[nn.Module], None]
SCORE, DETECTIONS = 0.02, 40


def pair(depth: int, masks: bool, shake: Shake) -> tuple[Any, Detector]:
    """torchvision's detector with random weights that give a spread of scores and boxes, and ours loaded with them."""
    torch.manual_seed(depth)
    body = resnet_fpn_backbone(backbone_name=f"resnet{depth}", weights=None, norm_layer=FrozenBatchNorm2d)
    theirs = (MaskRCNN if masks else FasterRCNN)(
        body,
        91,
        min_size=96,
        max_size=160,
        image_mean=[0, 0, 0],
        image_std=[1, 1, 1],
        box_score_thresh=SCORE,
        box_detections_per_img=DETECTIONS,
        _skip_resize=True,
    )
    shake(theirs)
    spread_scores(theirs)
    with torch.device("meta"):
        net = build_net(NetOptions(depth=depth), 1000)
        options = DetectorOptions(norm="frozen", freeze_at=0, masks=masks, roi=Roi(score=SCORE, detections=DETECTIONS))
        ours = build(options, net, 90)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs, ours


@torch.no_grad()
def spread_scores(theirs: Any) -> None:
    """Centre and scale the layers of the box head, so that regions differ in their scores; random ones hardly do."""
    corners = torch.rand(100, 2) * 64
    boxes = torch.cat([corners, corners + 8 + torch.rand(100, 2) * 50], 1)
    x = theirs.roi_heads.box_roi_pool(theirs.backbone(smooth_images(1)), [boxes], [(96, 128)]).flatten(1)
    for layer in (
        theirs.roi_heads.box_head.fc6,
        theirs.roi_heads.box_head.fc7,
        theirs.roi_heads.box_predictor.cls_score,
    ):
        layer.bias.zero_()
        layer.weight /= layer(x).std(0).mean() / 1.5
        layer.bias -= layer(x).mean(0)
        x = layer(x).relu()


def smooth_images(count: int) -> Tensor:
    return torch.nn.functional.interpolate(torch.randn(count, 3, 12, 16), scale_factor=8, mode="bilinear")


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("masks", [False, True])
def test_detections_and_losses_are_torchvisions(masks: bool, shake: Shake) -> None:
    theirs, ours = pair(50, masks, shake)
    shapes = [(96, 128), (96, 112)]
    images = smooth_images(2)
    images[1, :, :, 112:] = 0
    cut = [image[:, :h, :w] for image, (h, w) in zip(images, shapes, strict=True)]

    with torch.inference_mode():
        expected, found = theirs.eval()(cut), ours.eval()(images, shapes)
        if masks:  # before pasting too
            features = theirs.backbone(images)
            batch = theirs.transform(cut)[0]
            unpasted, _ = theirs.roi_heads(features, theirs.rpn(batch, features)[0], shapes)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.keys() == b.keys()
        assert len(b["boxes"]) == DETECTIONS
        assert len(b["labels"].unique()) >= 10
        assert b["scores"].std() > 0.01  # else equality would say little
        assert torch.equal(a["labels"], b["labels"])
        close(a["boxes"], b["boxes"])
        close(a["scores"], b["scores"])
        if masks:
            assert a["masks"].shape == (DETECTIONS, 1, 28, 28)
            assert a["masks"].std() > 0.01
            close(a["masks"], unpasted[i]["masks"])
            close(paste_masks_in_image(a["masks"], a["boxes"], shapes[i]), b["masks"])

    targets = []
    for h, _ in shapes:
        mask = torch.zeros(2, h, 128, dtype=torch.uint8)
        mask[0, 10:60, 5:50], mask[1, 20:90, 30:100] = 1, 1
        boxes = torch.tensor([[5.0, 10, 50, 60], [30, 20, 100, 90]])
        targets.append({"boxes": boxes, "labels": torch.tensor([7, 90]), "masks": mask})
    torch.manual_seed(5)
    losses = theirs.train()(
        cut, [{**t, "masks": t["masks"][..., :w]} for t, (_, w) in zip(targets, shapes, strict=True)]
    )
    torch.manual_seed(5)
    ours_losses = ours.train()(images, shapes, targets)
    assert ours_losses.keys() == losses.keys()
    assert len(losses) == 4 + masks
    for name, loss in losses.items():
        assert loss > 0
        close(ours_losses[name], loss)


@pytest.mark.parametrize("masks", [False, True])
def test_weights_of_other_depths_load_both_ways(masks: bool, shake: Shake) -> None:
    theirs, ours = pair(18, masks, shake)
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_parameters_are_as_many_as_torchvision_says() -> None:
    """`num_params` of the published weights of the two ResNet-50 FPN models."""
    for masks, published in ((False, 41_755_286), (True, 44_401_393)):
        with torch.device("meta"):
            options = DetectorOptions(norm="frozen", freeze_at=1, masks=masks)
            ours = build(options, build_net(NetOptions(depth=50), 10), 90)
        assert sum(p.numel() for p in ours.parameters()) == published
