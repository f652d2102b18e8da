"""Costs against counts made from the paper's tables, and against closed forms."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from backbone.nets import Backbone, build, count
from backbone.options import NetOptions

EXACT = json.loads((Path(__file__).parent / "exact_counts.json").read_text())


def on_meta(options: NetOptions, classes: int) -> Any:
    with torch.device("meta"):
        return build(options, classes)


def named(name: str, cifar: bool) -> NetOptions:
    """The options that a key of exact_counts.json stands for."""
    match = re.fullmatch(r"(plain|resnet|vgg)(\d+)(_bn)?(?:_([ABC]))?(?:_stride_(.x.))?", name)
    assert match, name
    parts: Any = match.groups()
    family, depth, bn, shortcut, stride = parts
    if family == "vgg":
        return NetOptions(net="vgg", depth=int(depth), norm="batch" if bn else "none")
    net = "cifar_resnet" if cifar else "resnet"
    return NetOptions(net=net, depth=int(depth), shortcut=shortcut or "none", stride_in_1x1=stride == "1x1")


def layers(net: Backbone) -> tuple[int, int]:
    """Weighted layers as the paper counts them, and projections, which it does not count among them."""
    weighted = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    projections = [name for name in weighted if "downsample" in name]
    return len(weighted) - len(projections), len(projections)


@pytest.mark.parametrize("name", EXACT["imagenet"])
def test_imagenet_nets_have_the_exact_counts(name: str) -> None:
    exact, net = EXACT["imagenet"][name], on_meta(named(name, cifar=False), 1000)
    assert count.parameters(net) == exact["params"]
    assert count.macs(net, 224) / 1e9 == pytest.approx(exact["gmacs"], rel=1e-3)
    assert layers(net) == (exact["weighted_layers"], exact["projections"])


@pytest.mark.parametrize("name", EXACT["cifar"])
def test_cifar_nets_have_the_exact_counts(name: str) -> None:
    exact, net = EXACT["cifar"][name], on_meta(named(name, cifar=True), 10)
    assert count.parameters(net) == exact["params"]
    norms = sum(count.parameters(m) for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert count.parameters(net) - norms == exact["params_excl_bn"]
    assert count.macs(net, 32) / 1e6 == pytest.approx(exact["mmacs"], rel=1e-3)
    assert layers(net) == (exact["weighted_layers"], exact["projections"])


def test_exact_counts_round_to_those_of_table_6() -> None:
    for depth, paper, digits in [
        (20, 0.27, 2),
        (32, 0.46, 2),
        (44, 0.66, 2),
        (56, 0.85, 2),
        (110, 1.7, 1),
        (1202, 19.4, 1),
    ]:
        assert round(EXACT["cifar"][f"resnet{depth}_A"]["params"] / 1e6, digits) == paper


def test_preactivation_moves_norms_and_adds_none() -> None:
    """Units norm inputs, not outputs: 16 + 32 channels fewer where stages begin, 16 at the stem, 64 more at the end."""
    options = NetOptions(net="cifar_resnet", depth=20, shortcut="A", preact=True)
    net = on_meta(options, 10)
    assert count.parameters(net) == EXACT["cifar"]["resnet20_A"]["params"]
    assert count.macs(net, 32) == count.macs(on_meta(options.model_copy(update={"preact": False}), 10), 32)
    keys = net.state_dict().keys()
    assert "norm.weight" in keys
    assert "layer1.0.bn1.weight" not in keys
    assert "layer1.1.bn1.weight" in keys


def test_bottlenecks_with_option_a_lose_their_four_projections() -> None:
    a, b = (on_meta(NetOptions(depth=50, shortcut=kind), 1000) for kind in "AB")
    pairs = [(64, 256), (256, 512), (512, 1024), (1024, 2048)]
    assert count.parameters(b) - count.parameters(a) == sum(i * o + 2 * o for i, o in pairs)
    assert layers(a) == (50, 0)


def test_width_scales_every_channel_but_image_and_classes() -> None:
    """Halved inputs and outputs of a layer are a quarter of its weights; the ends of the net halve once."""
    whole, half = (on_meta(NetOptions(depth=18, shortcut="A", width=w), 1000) for w in (1, 0.5))
    assert [s.channels for s in half.stages.values()] == [32, 64, 128, 256]
    for a, b in zip(whole.parameters(), half.parameters(), strict=True):
        ends = a.ndim == 1 or a.shape[1] == 3 or a.shape[0] == 1000
        assert b.numel() == (1000 if a.shape == (1000,) else a.numel() // (2 if ends else 4))
    vgg = on_meta(NetOptions(net="vgg", depth=11, norm="none", width=0.25), 10)
    assert [m.out_features for m in vgg.classifier if isinstance(m, nn.Linear)] == [1024, 1024, 10]
    assert vgg.classifier[0].in_features == 128 * 49


@pytest.mark.parametrize(("shortcut", "batch"), [("none", 1), ("none", 4), ("A", 4)])
def test_activation_bytes_closed_form(shortcut: Any, batch: int) -> None:
    """A convolution keeps its input, a norm its input and two floats a channel, ReLU its output, fc its input."""
    net = build(NetOptions(net="cifar_resnet", depth=20, shortcut=shortcut), 10)
    maps = [(16, 32)] * 7 + [(32, 16)] * 6 + [(64, 8)] * 6  # of all 19 convolutions: 2 x kept, before and after norm
    numbers = batch * (3 * 32 * 32 + sum(2 * c * s * s for c, s in maps) + 64) + sum(2 * c for c, _ in maps)
    assert count.activation_bytes(net, 32, batch) == 4 * numbers
    assert count.activation_bytes(net.bfloat16(), 32, batch) < 4 * numbers


def test_counting_neither_computes_nor_changes_the_net() -> None:
    net = build(NetOptions(net="cifar_resnet", depth=8), 10).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    count.macs(net, 32)
    count.activation_bytes(net, 32, 2)
    assert net.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_memory_of_cifar_nets_grows_linearly_with_depth_up_to_1202() -> None:
    kept = [count.activation_bytes(on_meta(NetOptions(net="cifar_resnet", depth=d, shortcut="A"), 10), 32, 2)
            for d in (20, 26, 1202)]  # fmt: skip
    assert kept[2] - kept[0] == 197 * (kept[1] - kept[0])
