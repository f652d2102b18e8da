"""What every detector does: train, find, survive images without objects and bfloat16."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads

from backbone import artifact
from backbone.inputs import InputConvention
from backbone.nets import build as build_net
from backbone.options import NetOptions
from detection.nets import Detector, build
from detection.nets.regions import RegionPool
from detection.options import DetectorOptions

Batch = tuple[Tensor, list[tuple[int, int]], list[dict[str, Tensor]]]
Make = Callable[..., Detector]
NETS: list[dict[str, Any]] = [
    {"depth": 18},
    {"depth": 34, "shortcut": "none"},
    {"depth": 50},
    {"depth": 50, "preact": True},
    {"depth": 18, "norm": "group"},
    {"net": "vgg", "depth": 16, "norm": "none", "width": 0.1},
    {"net": "vgg", "depth": 16, "width": 0.1},
]
ALL = [
    (net, kind, masks)
    for net in NETS
    for kind in ("fpn", "c4")
    for masks in (False, True)
    if not (net.get("net") == "vgg" and kind == "c4" and masks)
]
CIFAR = {"net": "cifar_resnet", "depth": 8, "width": 1}


def label(value: Any) -> str | None:
    return "-".join(map(str, value.values())) if isinstance(value, dict) else None


def check_found(found: list[dict[str, Tensor]], sides: list[tuple[int, int]], masks: int) -> None:
    assert len(found) == len(sides)
    for image, (h, w) in zip(found, sides, strict=True):
        count = len(image["boxes"])
        assert image["boxes"].shape == (count, 4)
        assert image["labels"].shape == image["scores"].shape == (count,)
        assert image["boxes"].dtype == image["scores"].dtype == torch.float32
        assert image["labels"].dtype == torch.int64
        assert all(1 <= k <= 3 for k in image["labels"].tolist())
        assert image["scores"].diff().le(0).all()
        assert image["boxes"].isfinite().all()
        assert (image["boxes"] >= 0).all()
        assert (image["boxes"] <= torch.tensor([w, h, w, h])).all()
        if masks:
            assert image["masks"].shape == (count, 1, masks, masks)
            assert image["masks"].dtype == torch.float32
            assert ((image["masks"] >= 0) & (image["masks"] <= 1)).all()
        else:
            assert "masks" not in image


@pytest.mark.parametrize(("net", "kind", "masks"), [*ALL, (CIFAR, "fpn", True)], ids=label)
def test_every_detector_trains_and_finds(
    net: dict[str, Any], kind: str, masks: bool, detector: Make, batch: Batch, empty: Any
) -> None:
    policy = "group" if net.get("norm") == "group" else "trainable"
    sizes = {"anchor_sizes": (8, 16, 32, 64)} if net is CIFAR else {}
    made = detector(net, kind=kind, masks=masks, norm=policy, freeze_at=1, **sizes)
    names = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"} | (
        {"loss_mask"} if masks else set()
    )
    for targets in (batch[2], empty):
        made.zero_grad(set_to_none=True)
        losses = made(batch[0], batch[1], targets)
        assert losses.keys() == names
        assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
        if targets is empty:
            assert losses["loss_rpn_box_reg"] == losses["loss_box_reg"] == losses.get("loss_mask", 0) == 0
        sum(losses.values()).backward()
        for key, p in made.named_parameters():  # DDP waits for each of them
            assert (p.grad is not None) == p.requires_grad, key
            assert p.grad is None or p.grad.isfinite().all(), key
    with torch.no_grad():
        for p in made.parameters():
            p -= 0.001 * p.grad if p.grad is not None else 0
        found = made.eval()(batch[0], batch[1])
    assert all(b.isfinite().all() for b in made.buffers())
    side = 28 if kind == "fpn" else 14  # regions of 14x14, C5 of 7x7
    check_found(found, batch[1], side if masks else 0)
    assert sum(len(image["boxes"]) for image in found) > 0


@pytest.mark.parametrize(("net", "kind"), [(NETS[0], "fpn"), (NETS[2], "c4"), (NETS[5], "c4")], ids=label)
def test_bfloat16_reaches_no_box(net: dict[str, Any], kind: str, detector: Make, batch: Batch) -> None:
    masks = "net" not in net
    made = detector(net, kind=kind, masks=masks)
    with torch.autocast("cpu", torch.bfloat16):
        losses = made(*batch)
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())
    seen: list[Tensor] = []
    made.rpn.anchor_generator.register_forward_hook(lambda module, inputs, output: seen.extend(output))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = made.eval()(batch[0], batch[1])
    check_found(found, batch[1], (28 if kind == "fpn" else 14) if masks else 0)
    assert seen[0].dtype == torch.float32
    boxes = torch.cat([image["boxes"] for image in found])
    assert (boxes.bfloat16().float() != boxes).any()


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_nothing_found_is_no_rows(kind: str, masks: bool, detector: Make, batch: Batch) -> None:
    made = detector(NETS[0], kind=kind, masks=masks, roi={"score": 0.999}).eval()
    with torch.no_grad():
        found = made(batch[0], batch[1])
    check_found(found, batch[1], (28 if kind == "fpn" else 14) if masks else 0)
    assert [len(image["boxes"]) for image in found] == [0, 0]


def test_training_without_targets_is_refused(detector: Make, batch: Batch) -> None:
    with pytest.raises(ValueError, match="targets"):
        detector(NETS[0])(batch[0], batch[1])


@pytest.mark.parametrize("net", [NETS[0], NETS[2], NETS[3], NETS[6]], ids=label)
def test_c4_gives_the_stage_maps_of_the_artifacts_net(
    net: dict[str, Any], shake: Callable[..., None], tmp_path: Any
) -> None:
    torch.manual_seed(0)
    pretrained = build_net(NetOptions(**{"width": 0.25, **net}), 5)
    shake(pretrained)
    inputs = InputConvention(size=64)
    artifact.save(tmp_path, pretrained, inputs, tuple("abcde"), {})
    loaded, inputs, block = artifact.load(tmp_path)
    made = build(DetectorOptions(norm="frozen", freeze_at=1, kind="c4"), loaded, 3)
    body = made.backbone.body

    x = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected, found = loaded(x), body(x)  # ours in training mode
        assert list(found) == list(expected) == ["C2", "C3", "C4", "C5"]
        for name, stage_map in expected.items():
            torch.testing.assert_close(found[name], stage_map, rtol=1e-4, atol=1e-5 * stage_map.abs().max().item())
        shared = made.backbone(x)
        assert list(shared) == ["C4"]
        assert torch.equal(shared["C4"], found["C4"])
        if "net" not in net:
            assert torch.equal(made.roi_heads.box_head.to_map(shared["C4"]), found["C5"])

    body.classify = loaded.classify  # the probe asks for logits too
    for name, values in artifact.probe(body, inputs).items():
        assert values == pytest.approx(block["probe"][name], rel=1e-3, abs=1e-4)


def test_backbone_weights_keep_their_names_and_are_there_once(detector: Make) -> None:
    for net, head in ((NETS[2], "fc."), (NETS[6], "classifier.6.")):
        own = set(build_net(NetOptions(**net), 10).state_dict())
        made = detector(net, kind="c4", norm="trainable")
        state = made.state_dict(keep_vars=True)
        body = {key.removeprefix("backbone.body.") for key in state if key.startswith("backbone.body.")}
        assert body == {key for key in own if not key.startswith(head)}
        assert {key for key in state if key.startswith("roi_heads")} == {
            f"roi_heads.box_predictor.{layer}.{kind}"
            for layer in ("cls_score", "bbox_pred")
            for kind in ("weight", "bias")
        }
        assert len({id(tensor) for tensor in state.values()}) == len(state)


def test_a_copy_is_its_own(detector: Make, batch: Batch) -> None:
    """C5 lies in the backbone and runs in the head: a copy's head must run the copy's (as the EMA does)."""
    made = detector(NETS[0], kind="c4").eval()
    twin = copy.deepcopy(made)
    with torch.no_grad():
        for p in twin.backbone.body.layer4.parameters():
            p.zero_()
        assert not torch.equal(made(*batch[:2])[0]["scores"], twin(*batch[:2])[0]["scores"])


@pytest.mark.parametrize("policy", ["frozen", "trainable"])
def test_shared_mask_maps_give_what_roi_heads_would(policy: str, detector: Make, batch: Batch) -> None:
    """torchvision's RoIHeads with the same pool and C5 as a mask branch; without batch statistics both are the same."""
    made = detector(NETS[0], kind="c4", masks=True, norm=policy)
    ours = made.roi_heads

    class C5(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ours.box_head.to_map(x)

    settings = (0.5, 0.5, 32, 0.25, None, 0.05, 0.5, 8)
    theirs = RoIHeads(
        ours.box_roi_pool, ours.box_head, ours.box_predictor, *settings, ours.box_roi_pool, C5(), ours.mask_predictor
    )
    images, shapes, targets = batch
    features = made.backbone(images)
    torch.manual_seed(2)
    proposals, _ = made.rpn(ImageList(images, shapes), features, targets)
    torch.manual_seed(3)
    _, losses = ours(features, list(proposals), shapes, targets)
    updates = [b.item() for key, b in made.named_buffers() if "layer4" in key and key.endswith("tracked")]
    assert set(updates) == ({1} if policy == "trainable" else set())  # the statistics of C5 saw these regions once
    if policy == "frozen":
        torch.manual_seed(3)
        _, expected = theirs(features, list(proposals), shapes, targets)
        assert losses.keys() == expected.keys()
        assert expected["loss_mask"] > 0
        for name, loss in expected.items():
            torch.testing.assert_close(losses[name], loss)
    with torch.no_grad():
        found, _ = ours.eval()(features, list(proposals), shapes)
        expected_found, _ = theirs.eval()(features, list(proposals), shapes)
    for a, b in zip(found, expected_found, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_regions_are_pooled_where_the_boxes_are() -> None:
    """On a map that rises by 1 a cell to the right, a bin's mean is its centre's column, its maximum the last."""
    ramp = {"C4": torch.arange(16.0).expand(1, 1, 16, 16)}
    boxes, shapes = [torch.tensor([[64.0, 64, 176, 176]])], [(256, 256)]
    pooled = RegionPool(7, "align", 16)(ramp, boxes, shapes)[0, 0]
    torch.testing.assert_close(pooled, torch.arange(4.5, 11).expand(7, 7))  # cells 4..11, seven bins of one cell
    pooled = RegionPool(4, "max", 16)(ramp, boxes, shapes)[0, 0]
    # 2015's pooling rounds the box to cells 4..11, both in: eight cells, two a bin.
    torch.testing.assert_close(pooled, torch.tensor([5.0, 7, 9, 11]).expand(4, 4))


def test_a_small_first_batch_does_not_set_the_scale(detector: Make, batch: Batch) -> None:
    """torchvision's pooling takes 40 px padded to 64 for maps of half their stride, and that for good."""
    fresh = detector(NETS[0]).eval()
    used = copy.deepcopy(fresh)
    with torch.no_grad():
        used(torch.randn(1, 3, 64, 64), [(40, 40)])
        expected, found = fresh(*batch[:2]), used(*batch[:2])
    assert len(expected[0]["boxes"]) > 0
    for a, b in zip(found, expected, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in b)


def test_pyramid_levels_follow_equation_1_of_the_fpn_paper(detector: Make) -> None:
    """Side s goes to level 4 + log2(s / canonical), cut to P2..P5 (arXiv:1612.03144)."""
    mapper = detector(NETS[0], roi={"canonical": 64.0}, masks=True).roi_heads.mask_roi_pool.map_levels
    sides = [10.0, 31, 33, 63, 65, 127, 129, 1000]
    boxes = torch.tensor([[0, 0, s, s] for s in sides])
    assert (mapper([boxes]) + 2).tolist() == [2, 2, 3, 3, 4, 4, 5, 5]
