"""The semantic head against a plain computation, written out, of what Panoptic FPN's section 3 says."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from backbone.nets import build as build_net
from backbone.nets.count import macs
from backbone.options import NetOptions
from detection.nets import Semantic, build, count, summary
from detection.nets.semantic import loss
from detection.options import SemanticOptions, detector_options

CLASSES = 3


def semantic(net: dict[str, Any] | None = None, **fields: Any) -> Semantic:
    torch.manual_seed(1)
    body = build_net(NetOptions.model_validate({"depth": 18, "width": 0.125, **(net or {})}), 2)
    options = {"kind": "semantic", "norm": "frozen", "freeze_at": 1, "channels": 32, "head_channels": 64, **fields}
    made = build(detector_options(options), body, CLASSES)
    assert isinstance(made, Semantic)
    return made


def doubled(maps: np.ndarray) -> np.ndarray:
    """Bilinear doubling of [C, h, w], pixel centres kept in place: 3/4 of the nearest and 1/4 of the next."""
    for axis in (1, 2):
        before = np.take(maps, np.maximum(np.arange(maps.shape[axis]) - 1, 0), axis)
        after = np.take(maps, np.minimum(np.arange(maps.shape[axis]) + 1, maps.shape[axis] - 1), axis)
        pair = np.stack([0.75 * maps + 0.25 * before, 0.75 * maps + 0.25 * after], axis + 1)
        maps = pair.reshape(*maps.shape[:axis], 2 * maps.shape[axis], *maps.shape[axis + 1 :])
    return maps


def block(maps: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    """3x3 convolution without bias, group norm of 32 groups, ReLU; [C, h, w]."""
    kernel = weights[f"{name}.weight"]
    index = int(name.rpartition(".")[2]) + 1
    norm = f"{name.rpartition('.')[0]}.{index}"
    height, width = maps.shape[1:]
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(kernel), height, width))
    for dy in range(3):
        for dx in range(3):
            out += np.einsum("oc,chw->ohw", kernel[:, :, dy, dx], padded[:, dy : dy + height, dx : dx + width])
    groups = out.reshape(32, -1)
    groups = (groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + 1e-5)
    out = groups.reshape(out.shape) * weights[f"{norm}.weight"][:, None, None] + weights[f"{norm}.bias"][:, None, None]
    return np.maximum(out, 0)


@torch.no_grad()
def test_the_head_is_the_plain_computation() -> None:
    """In NumPy: per level convolution, norm, ReLU and doubling until 1/4, the sum, 1x1, four times as large."""
    net = semantic().eval()
    for name, parameter in net.head.named_parameters():
        if parameter.dim() == 1:  # affine parameters and bias that are not 1 and 0
            count_ = len(parameter)
            parameter.copy_(torch.linspace(0.5, 1.5, count_) if "weight" in name else torch.rand(count_))
    images = torch.rand(1, 3, 64, 96)
    weights = {name: value.double().numpy() for name, value in net.head.state_dict().items()}
    maps = {name: level[0].double().numpy() for name, level in net.backbone(images).items()}
    total = 0.0
    for name, doublings in {"C2": 0, "C3": 1, "C4": 2, "C5": 3}.items():
        level = maps[name]
        for k in range(max(1, doublings)):
            level = block(level, weights, f"levels.{name}.{4 * k if doublings else 0}")
            level = doubled(level) if doublings else level
        total = total + level
    logits = np.einsum("oc,chw->ohw", weights["predictor.weight"][:, :, 0, 0], total)
    logits += weights["predictor.bias"][:, None, None]
    assert logits.shape == (CLASSES + 1, 16, 24)
    expected = F.interpolate(torch.tensor(logits)[None], scale_factor=4, mode="bilinear", align_corners=False)
    (found,) = net(images, [(50, 90)])
    assert found["logits"].shape == (CLASSES + 1, 50, 90)
    torch.testing.assert_close(found["logits"].double(), expected[0, :, :50, :90], rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_mean_over_pixels_that_are_not_ignored() -> None:
    logits = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    classes = torch.randint(0, 4, (2, 5, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    classes[0, :2] = 255
    classes[1, 0, 0] = 255
    terms = []
    for n, y, x in np.argwhere(classes.numpy() != 255).tolist():
        row = logits[n, :, y, x].detach().numpy()
        terms.append(np.log(np.exp(row).sum()) - row[int(classes[n, y, x])])
    found = loss(logits, classes)
    assert len(terms) == 60 - 13
    assert float(found) == pytest.approx(np.mean(terms), rel=1e-12)
    (gradient,) = torch.autograd.grad(found, logits)
    ignored = (classes == 255)[:, None].expand_as(gradient)
    assert not gradient[ignored].any()
    assert gradient[~ignored].abs().min() > 0
    nothing = loss(logits, torch.full_like(classes, 255))
    assert float(nothing) == 0
    assert not torch.autograd.grad(nothing, logits)[0].any()


def test_multiply_adds_and_what_trains() -> None:
    net = semantic()
    assert summary(net).startswith("20 norms frozen, 7 trained; 1 of 5 parts fixed (stem); ")
    side, width = 128, 64
    head = sum(  # a convolution at 1/32, 1/16 and 1/8 of C5, at 1/16 and 1/8 of C4, at 1/8 of C3, and at 1/4 of C2
        9 * inputs * width * (side // stride) ** 2
        for inputs, stride in ((32, 32), (64, 16), (64, 8), (32, 16), (64, 8), (32, 8), (32, 4))
    )
    head += width * (CLASSES + 1) * (side // 4) ** 2
    with torch.device("meta"):
        whole = semantic()
    body = count.macs(whole, side, side) - head
    cells = [(side // 4 // 2**k) ** 2 for k in range(4)]
    pyramid = sum((8 * 2**k * 32 + 9 * 32 * 32) * cells[k] for k in range(4))
    assert body == macs(build_net(NetOptions(depth=18, width=0.125), 1), side) - 64 + pyramid


def test_gradients_reach_all_that_trains() -> None:
    net = semantic(freeze_at=0, norm="trainable")
    classes: Tensor = torch.zeros(2, 64, 64, dtype=torch.uint8)
    classes[:, :32] = 2
    losses = net(torch.rand(2, 3, 64, 64), [(64, 64)] * 2, [{"classes": each} for each in classes])
    assert isinstance(losses, dict)
    assert list(losses) == ["loss_semantic"]
    losses["loss_semantic"].backward()
    assert [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


def test_what_it_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"head_channels 80: its norms have 32 groups; give 64, 96"):
        SemanticOptions(norm="frozen", freeze_at=0, head_channels=80)
    with pytest.raises(ValueError, match="is read by kind fpn, c4 or retinanet, not by semantic"):
        semantic(anchor_sizes=[8])
