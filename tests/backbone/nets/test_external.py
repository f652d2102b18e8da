"""timm's nets behind the contract of raybone's own: stages, parts, norms, and what is refused."""

import sys
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from backbone.errors import UserError
from backbone.nets import build
from backbone.nets.contract import run
from backbone.nets.external import External, describe, stage_features
from backbone.options import ExternalNet, net_options

pytest.importorskip("timm", reason="timm's nets are the test")

# Small nets that timm tests itself with, and their norms.
SMALL = {
    "test_resnet": "batch",
    "test_byobnet": "batch",
    "test_efficientnet": "batch",
    "test_efficientnet_gn": "group",
    "test_efficientnet_ln": "layer",
    "test_convnext": "layer",
    "test_mambaout": "layer",  # computes in NHWC
    "test_nfnet": "none",
}


def net_of(model: str, classes: int = 3, **arguments: Any) -> External:
    torch.manual_seed(0)
    net = build(describe(model, arguments), classes)
    assert isinstance(net, External)
    return net.eval()


@torch.no_grad()
@pytest.mark.parametrize("model", SMALL)
def test_maps_and_logits_are_timms(model: str) -> None:
    net, x = net_of(model), torch.randn(2, 3, 64, 96)
    expected = net.model.forward_intermediates(x, indices=4, intermediates_only=True, output_fmt="NCHW")
    maps = net(x)
    for (name, stage), theirs in zip(net.stages.items(), expected, strict=True):
        torch.testing.assert_close(maps[name], theirs)
        assert maps[name].shape == (2, stage.channels, 64 // stage.stride, 96 // stage.stride)
    torch.testing.assert_close(net.classify(x), net.model(x))
    assert [stage.stride for stage in net.stages.values()] == [4, 8, 16, 32]
    assert list(net(x, "C3")) == ["C2", "C3"]


@pytest.mark.parametrize(("model", "norm"), SMALL.items())
def test_parts_hold_every_weight_but_those_behind_the_last_map(model: str, norm: str) -> None:
    net = net_of(model)
    assert net.options.norm == norm
    own = [id(p) for part in net.parts().values() for module in part for p in module.parameters()]
    assert len(own) == len(set(own))
    outside = {name.split(".")[1] for name, p in net.named_parameters() if id(p) not in set(own)}
    assert outside <= {"fc", "head", "classifier", "conv_head", "bn2"}
    assert list(net.parts()) == ["stem", "C2", "C3", "C4", "C5"]
    assert all(any(True for m in part for _ in m.parameters()) for part in net.parts().values())


@torch.no_grad()
@pytest.mark.parametrize("model", SMALL)
def test_the_last_stage_runs_on_regions(model: str) -> None:
    net, x = net_of(model), torch.randn(2, 3, 64, 64)
    layers = net.region_layers()
    maps = net(x)
    torch.testing.assert_close(run(layers.to_map, maps["C4"]), maps["C5"])
    assert run(layers.to_vector, maps["C5"]).shape == (2, layers.features)
    assert run(layers.to_map, torch.randn(3, net.stages["C4"].channels, 14, 14)).shape[2:] == (7, 7)


@torch.no_grad()
def test_group_norm_takes_the_place_of_batch_norm_and_activations_stay() -> None:
    options = describe("test_efficientnet", {}).model_copy(update={"norm": "group"})
    torch.manual_seed(0)
    net = build(options, 3).train()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    other = net_of("test_efficientnet")
    acts = [sum(isinstance(m, nn.SiLU | nn.ReLU) for m in each.modules()) for each in (net, other)]
    assert acts[0] == acts[1] > 5
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(net(x)["C5"][:1], net(x[:1])["C5"])  # no image sees another


def refused(model: str, **arguments: Any) -> str:
    with pytest.raises(UserError) as error:
        describe(model, arguments)
    return str(error.value)


def test_what_cannot_be_a_backbone_is_refused_by_name() -> None:
    assert "test_vit: a backbone has four stages, at strides 4, 8, 16 and 32; this net's are at 16, 16" in refused(
        "test_vit"
    )
    assert "test_coatnet: norms of kinds batch and layer" in refused("test_coatnet")
    assert "test_efficientnet_evos: EvoNorm2dS0: norms are batch, layer or group" in refused("test_efficientnet_evos")
    assert "resnext50_32x4: timm" in (text := refused("resnext50_32x4"))
    assert "there is resnext50_32x4d" in text
    assert "does not build it with {'colour': 1}" in refused("test_resnet", colour=1)
    assert "are at 2, 4, 8, 16, 16" in refused("test_resnet", output_stride=16)
    assert "no name or arguments of a net of timm's: model String should match" in refused("hf-hub:timm/resnet50")
    assert "checkpoint_path: not for a net's builder" in refused("test_resnet", checkpoint_path="x")
    with pytest.raises(UserError, match="x: timm has no stage information"):
        stage_features(nn.Linear(1, 1), "x")


def test_another_timm_and_none(monkeypatch: pytest.MonkeyPatch) -> None:
    options = describe("test_resnet", {})
    with pytest.raises(
        UserError, match=r"test_resnet: built by timm 0.4.12, and .* pip install timm==0.4.12, or import"
    ):
        build(options.model_copy(update={"version": "0.4.12"}), 3)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"not installed: uv sync --inexact --extra timm, or pip install 'timm>="):
        build(options, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "hf-hub:somebody/net"},
        {"model": "local-dir:/tmp"},
        {"arguments": {"checkpoint_path": "/tmp/x.pth"}},
        {"arguments": {"pretrained": True}},
        {"arguments": {"pretrained_cfg": "x"}},
        {"library": "torch.hub"},
        {"depth": 50},
    ],
)
def test_options_that_would_load_or_run_something(change: dict[str, Any]) -> None:
    good = {"net": "external", "version": "1.0.0", "model": "test_resnet", "norm": "batch"}
    assert isinstance(net_options(good), ExternalNet)
    with pytest.raises(ValidationError):
        net_options(good | change)
