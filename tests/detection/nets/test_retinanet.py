"""RetinaNet with torchvision's weights gives torchvision's losses and detections, under torchvision's keys."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet, retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.retinanet import RetinaNetHead, _default_anchorgen
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from backbone.errors import UserError
from backbone.nets import build as build_net
from backbone.options import NetOptions
from detection.nets import Retina, build, count, summary
from detection.options import RetinaOptions
from tests.detection.nets.conftest import nothing
from tests.detection.nets.test_detector import check_found
from tests.detection.nets.test_torchvision import smooth_images

Shake = Callable[[nn.Module], None]
V2 = {"p6": "C5", "head_norm": "group", "box_loss": "giou"}
CLASSES = 91


def pair(version: str, shake: Shake) -> tuple[Any, Retina]:
    """torchvision's detector, random but with a spread of scores and boxes, and ours loaded with it."""
    torch.manual_seed(3)
    options: dict[str, Any] = V2 if version == "v2" else {}
    top = LastLevelP6P7(512 if version == "v2" else 256, 256)
    body = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=FrozenBatchNorm2d,
        returned_layers=[2, 3, 4],
        extra_blocks=top,
    )
    norm = partial(nn.GroupNorm, 32) if version == "v2" else None
    anchors = _default_anchorgen()
    head = RetinaNetHead(256, anchors.num_anchors_per_location()[0], CLASSES, norm_layer=norm)
    if version == "v2":
        head.regression_head._loss_type = "giou"  # as retinanet_resnet50_fpn_v2 does
    no_scale = {"min_size": 96, "max_size": 160, "image_mean": [0, 0, 0], "image_std": [1, 1, 1], "_skip_resize": True}
    theirs = RetinaNet(body, CLASSES, anchor_generator=anchors, head=head, detections_per_img=300, **no_scale)
    shake(theirs)
    spread(theirs)
    with torch.device("meta"):
        net = build_net(NetOptions(depth=18), 1000)
        ours = build(RetinaOptions(norm="frozen", freeze_at=0, **options), net, CLASSES - 1)
    assert isinstance(ours, Retina)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs, ours


@torch.no_grad()
def spread(theirs: Any) -> None:
    """Bring each level of the maps to unit deviation and the heads' outputs apart, class 0 out of reach as training
    leaves it."""
    for part, bias in ((theirs.head.classification_head, -5.0), (theirs.head.regression_head, 0.0)):
        for layer in part.conv:
            layer[0].weight *= 4
        last = part.cls_logits if bias else part.bbox_reg
        x = part.conv(theirs.backbone(smooth_images(1))["0"])
        last.weight *= (2.0 if bias else 0.5) / last(x).std()
        last.bias.copy_(bias - last(x).mean((0, 2, 3)) + last.bias)
    theirs.head.classification_head.cls_logits.bias.view(-1, CLASSES)[:, 0] = -50


def targets_of(shapes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[5.0, 10, 50, 60], [30, 20, 100, 90]])
    return [{"boxes": boxes, "labels": torch.tensor([7, 90])}, nothing()][: len(shapes)]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_losses_and_detections_are_torchvisions(version: str, shake: Shake) -> None:
    theirs, ours = pair(version, shake)
    shapes, images = [(96, 128), (96, 112)], smooth_images(2)
    images[1, :, :, 112:] = 0
    cut = [image[:, :h, :w] for image, (h, w) in zip(images, shapes, strict=True)]
    with torch.inference_mode():
        expected, found = theirs.eval()(cut), ours.eval()(images, shapes)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        assert len(b["boxes"]) > 100
        assert len(b["labels"].unique()) >= 10
        assert b["scores"].std() > 0.01  # else equality would say little
        torch.testing.assert_close(a["scores"], b["scores"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(a["boxes"], b["boxes"], rtol=1e-4, atol=1e-4)
        assert torch.equal(a["labels"], b["labels"])
    targets = targets_of(shapes)
    losses, own = theirs.train()(cut, targets), ours.train()(images, shapes, targets)
    assert list(own) == list(losses) == ["classification", "bbox_regression"]
    for name, loss in losses.items():
        assert loss > 0
        torch.testing.assert_close(own[name], loss)


def test_weights_of_the_published_models_fit_both_ways() -> None:
    """Key by key, and as many as `num_params` of the published weights."""
    for make, options, published_with, published in (
        (retinanet_resnet50_fpn, {}, "frozen", 34_014_999),
        (retinanet_resnet50_fpn_v2, V2, "trainable", 38_198_935),
    ):
        with torch.device("meta"):
            theirs = make(weights=None, weights_backbone=None)
            net = build_net(NetOptions(depth=50), 10)
            plain = RetinaOptions(norm="trainable", freeze_at=0, **options)
            ours = build(plain, net, 90)
            assert {k: v.shape for k, v in ours.state_dict().items()} == {
                k: v.shape for k, v in theirs.state_dict().items()
            }
            as_published = build(plain.model_copy(update={"norm": published_with}), net, 90)
        assert sum(p.numel() for p in as_published.parameters()) == published


def retina(net: dict[str, Any] | None = None, **fields: Any) -> Retina:
    """A small one of 3 classes."""
    torch.manual_seed(0)
    options = {"norm": "frozen", "freeze_at": 1, "channels": 16, "score": 0.005, "detections": 8} | fields
    body = build_net(NetOptions.model_validate({"depth": 18, "width": 0.25} | (net or {})), 10)
    made = build(RetinaOptions.model_validate(options), body, 3)
    assert isinstance(made, Retina)
    return made


NETS: list[tuple[dict[str, Any], str]] = [
    ({}, "trainable"),
    ({"norm": "group"}, "group"),
    ({"depth": 34, "shortcut": "none"}, "frozen"),
    ({"net": "vgg", "depth": 16, "norm": "none", "width": 0.1, "shortcut": "B"}, "frozen"),
]


@pytest.mark.parametrize(("net", "policy"), NETS, ids=["18", "group", "plain34", "vgg16"])
def test_it_trains_and_finds(net: dict[str, Any], policy: str, batch: Any) -> None:
    made = retina(net, norm=policy)
    for targets in (batch[2], [nothing(), nothing()]):
        made.zero_grad(set_to_none=True)
        losses = made(batch[0], batch[1], targets)
        assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
        assert (losses["bbox_regression"] > 0) == bool(len(targets[0]["boxes"]))
        sum(losses.values()).backward()
        for key, p in made.named_parameters():  # DDP waits for each of them
            assert (p.grad is not None) == p.requires_grad, key
            assert p.grad is None or p.grad.isfinite().all(), key
    with torch.no_grad():
        found = made.eval()(batch[0], batch[1])
    check_found(found, batch[1], 0)
    assert all(len(image["boxes"]) == 8 for image in found)


def test_bfloat16_reaches_no_box(batch: Any) -> None:
    made = retina()
    with torch.autocast("cpu", torch.bfloat16):
        losses = made(*batch)
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = made.eval()(batch[0], batch[1])
    check_found(found, batch[1], 0)
    boxes = torch.cat([image["boxes"] for image in found])
    assert (boxes.bfloat16().float() != boxes).any()


def test_class_0_is_never_found(batch: Any) -> None:
    made = retina(score=0.5).eval()
    with torch.no_grad():
        made.head.classification_head.cls_logits.bias.view(-1, 4)[:, 0] = 10
        assert [len(image["boxes"]) for image in made(*batch[:2])] == [0, 0]
        made.head.classification_head.cls_logits.bias.view(-1, 4)[:, 2] = 10
        assert {k for image in made(*batch[:2]) for k in image["labels"].tolist()} == {2}


def test_p6_is_made_of_what_was_asked_also_where_channels_are_the_same() -> None:
    """torchvision tells C5 from P5 by their channels."""
    for p6 in ("P5", "C5"):
        made = retina({"width": 0.25}, channels=128, p6=p6)  # C5 of a quarter of ResNet-18 has 128
        seen: list[Tensor] = []
        made.backbone.fpn.extra_blocks.p6.register_forward_hook(lambda m, i, o, seen=seen: seen.append(i[0]))
        with torch.no_grad():
            images = torch.randn(1, 3, 96, 64)
            maps = made.backbone(images)
            c5 = made.backbone.body(images)["C5"]
        assert torch.equal(seen[0], c5 if p6 == "C5" else maps["C5"])


def test_multiply_adds_are_those_of_its_convolutions() -> None:
    """Against the sizes of the maps by hand: each head has four layers and a last one on every level."""
    made, cells = retina(), sum(h * w for h, w in ((12, 8), (6, 4), (3, 2), (2, 1), (1, 1)))
    head = cells * 9 * 16 * (8 * 16 + 9 * 4 + 9 * 4)  # four layers twice; 9 anchors of 4 classes; 9 of 4 sides
    total = count.macs(made, 96, 64)
    with torch.device("meta"):
        made = retina(octaves=1)
    assert total - count.macs(made, 96, 64) == cells * 9 * 16 * 6 * 8
    assert total > head


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"kind retinanet: cifar_resnet8 has no C5 .*; use kind fpn"):
        retina({"net": "cifar_resnet", "depth": 8, "width": 1, "shortcut": "A"})
    for fields, says in (
        ({"anchor_sizes": [8, 16]}, "kind retinanet needs 5"),
        ({"bg_iou": 0.6}, "bg_iou must not be above fg_iou"),
        ({"head_norm": "group", "channels": 32}, "channels 32 must be 64, 96"),
        ({"head_norm": "group"}, "channels 16 must be 64, 96"),
    ):
        with pytest.raises(ValueError, match=says):
            retina(**fields)


def test_the_summary_counts_what_is_fixed() -> None:
    made = retina(freeze_at=2)
    fixed = sum(p.numel() for p in made.parameters() if not p.requires_grad)
    total = sum(p.numel() for p in made.parameters())
    told = summary(made)
    assert told.startswith("20 norms frozen, 0 trained; 2 of 5 parts fixed (stem, C2); ")
    assert told.endswith(f"{total - fixed:,} of {total:,} parameters train")
