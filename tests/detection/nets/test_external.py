# ruff: noqa: E402  (what follows needs a package that may be absent)
"""Detectors on timm's nets: what is fixed is counted right and does not move, and the maps stay those of the net."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

timm = pytest.importorskip("timm", reason="timm's nets are the test")

from backbone.errors import UserError
from backbone.nets import build as build_net
from backbone.nets.external import External, describe
from backbone.options import ExternalNet
from detection.nets import Detector, build, summary
from detection.options import DetectorOptions
from tests.detection.nets.conftest import FEW, NARROW

# Norms of stem, C2, C3, C4, C5 by the papers' tables: units times the norms of each, projections, stems of three.
NAMED: dict[str, tuple[str, list[int]]] = {
    "resnext50_32x4d": ("batch", [1, 3 * 3 + 1, 4 * 3 + 1, 6 * 3 + 1, 3 * 3 + 1]),
    "resnet50d": ("batch", [3, 3 * 3 + 1, 4 * 3 + 1, 6 * 3 + 1, 3 * 3 + 1]),
    "seresnet50": ("batch", [1, 3 * 3 + 1, 4 * 3 + 1, 6 * 3 + 1, 3 * 3 + 1]),
    "regnety_016": ("batch", [1, 2 * 3 + 1, 6 * 3 + 1, 17 * 3 + 1, 2 * 3 + 1]),
    "convnext_tiny": ("layer", [1, 3, 3 + 1, 9 + 1, 3 + 1]),
    "mobilenetv3_large_100": ("batch", [1 + 2, 2 * 3, 3 * 3, 6 * 3, 3 * 3 + 1]),
    "swin_tiny_patch4_window7_224": ("layer", [1, 2 * 2, 2 * 2 + 1, 6 * 2 + 1, 2 * 2 + 1]),
}
SMALL = ("test_resnet", "test_efficientnet", "test_convnext", "test_mambaout", "test_nfnet")
PARTS = ("stem", "C2", "C3", "C4", "C5")


def net_of(model: str, **arguments: Any) -> External:
    torch.manual_seed(0)
    net = build_net(describe(model, arguments), 3)
    assert isinstance(net, External)
    for name, tensor in net.state_dict().items():  # nothing zero or one, as of a net that was trained
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.uniform_(*((0.5, 1.5) if name.endswith(("weight", "running_var", "gamma")) else (-0.2, 0.2)))
    return net.eval()


def detector_of(net: External, **fields: Any) -> Detector:
    small = NARROW if fields.get("kind", "fpn") == "fpn" else {}
    return build(DetectorOptions(**{"norm": "trainable", "freeze_at": 0, **FEW, **small, **fields}), net, 3)


@pytest.mark.parametrize("model", NAMED)
def test_the_summary_counts_what_is_fixed(model: str) -> None:
    norm, norms = NAMED[model]
    with torch.device("meta"):
        net = build_net(ExternalNet(version=timm.__version__, model=model, norm=norm), 1)  # ty: ignore
        own = timm.create_model(model, num_classes=0)
        behind = sum(
            p.numel() for name in ("head", "norm", "conv_head") for p in getattr(own, name, nn.Module()).parameters()
        )
        for k in (0, 1, 2, 5):
            detector = detector_of(net, freeze_at=k)
            frozen = sum(norms[:k])
            which = f" ({', '.join(PARTS[:k])})" if k else ""
            told = summary(detector)
            assert told.startswith(
                f"{frozen} norms frozen, {sum(norms) - frozen} trained; {k} of 5 parts fixed{which}; "
            )
            fixed = sum(
                p.numel()
                for part in list(detector.backbone.body.parts().values())[:k]
                for m in part
                for p in m.parameters()
            )
            trains, total = (int(word.replace(",", "")) for word in told.split("; ")[2].split() if word[0].isdigit())
            assert total - trains == fixed
        body = detector_of(net).backbone.body
        assert sum(p.numel() for p in body.parameters()) == sum(p.numel() for p in own.parameters()) - behind
        told = summary(detector_of(net, norm="frozen", freeze_at=1))
        assert told.startswith(f"{sum(norms)} norms frozen, 0 trained; 1 of 5 parts fixed (stem); ")


@torch.no_grad()
@pytest.mark.parametrize("policy", ["frozen", "trainable", "sync"])
@pytest.mark.parametrize("model", SMALL)
def test_maps_stay_those_of_the_net(model: str, policy: str) -> None:
    net, x = net_of(model), torch.randn(2, 3, 64, 64)
    if policy == "sync" and net.options.norm != "batch":
        with pytest.raises(UserError, match=f"{model} with model.norm {net.options.norm} takes frozen or trainable"):
            detector_of(net, norm=policy)
        return
    body = detector_of(net, norm=policy, freeze_at=1).eval().backbone.body
    for name, expected in net(x).items():
        torch.testing.assert_close(body(x)[name], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["fpn", "c4"])
@pytest.mark.parametrize("model", SMALL)
def test_what_is_fixed_does_not_move(model: str, kind: str, batch: tuple[Tensor, Any, Any]) -> None:
    images, sizes, targets = batch
    detector = detector_of(net_of(model), kind=kind, freeze_at=3).train()
    body = detector.backbone.body
    fixed = {
        id(t) for part in list(body.parts().values())[:3] for m in part for t in m.state_dict(keep_vars=True).values()
    }
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        losses = detector(images, sizes, targets)
        assert isinstance(losses, dict)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)  # or DDP would stop
        optimizer.step()
    for name, tensor in detector.state_dict(keep_vars=True).items():
        assert torch.equal(tensor, before[name]) == (id(tensor) in fixed), name


def test_nothing_is_dropped_at_random_where_it_is_fixed() -> None:
    net = net_of("swin_tiny_patch4_window7_224", embed_dim=24, drop_path_rate=0.9)
    detector, x = detector_of(net, freeze_at=4).train(), torch.randn(4, 3, 64, 64)
    body = detector.backbone.body
    one, other = body(x), body(x)
    assert [torch.equal(one[name], other[name]) for name in one] == [True, True, True, False]


def test_frozen_layer_norm_is_fixed_and_convolutions_train() -> None:
    detector = detector_of(net_of("test_convnext"), norm="frozen")
    norms = [m for m in detector.backbone.body.modules() if isinstance(m, nn.LayerNorm)]
    assert norms
    assert not any(p.requires_grad for m in norms for p in m.parameters())
    assert sum(p.requires_grad for p in detector.backbone.body.parameters()) > 20


def test_c4_is_refused_where_the_last_stage_cannot_run_on_the_regions() -> None:
    with pytest.raises(UserError, match=r"kind c4: the last stage of test_convnext cannot run on regions of 1x1 cells"):
        detector_of(net_of("test_convnext"), kind="c4", roi={**FEW["roi"], "size": 1})
