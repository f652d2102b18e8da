"""torchvision's weights give torchvision's numbers, under torchvision's keys."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from backbone.nets import build
from backbone.options import NetOptions

RESNETS = (18, 34, 50, 101, 152)
Shake = Callable[[nn.Module], None]
VGGS = [(depth, bn) for depth in (11, 13, 16, 19) for bn in (False, True)]


def vgg_options(depth: int, bn: bool) -> NetOptions:
    return NetOptions(net="vgg", depth=depth, norm="batch" if bn else "none")


def shapes(net: nn.Module) -> list[tuple[str, torch.Size]]:
    """Keys in their order: the state of an optimizer is numbered by it."""
    return [(key, tensor.shape) for key, tensor in net.state_dict().items()]


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("depth", RESNETS)
def test_resnets_equal_torchvision(depth: int, shake: Shake) -> None:
    torch.manual_seed(depth)
    theirs = torchvision.models.get_model(f"resnet{depth}").eval()
    shake(theirs)
    with torch.device("meta"):
        ours = build(NetOptions(depth=depth), 1000)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    ours.eval()
    expected: dict[str, Tensor] = {}
    for name in ("C2", "C3", "C4", "C5"):
        layer = theirs.get_submodule(f"layer{int(name[1]) - 1}")
        layer.register_forward_hook(lambda _, __, output, name=name: expected.update({name: output.clone()}))

    x = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        logits, maps = theirs(x), ours(x)
        assert logits.std() > 1e-3  # else equality would say little
        close(ours.classify(x), logits)
    assert list(maps) == list(expected)
    for name, stage_map in maps.items():
        close(stage_map, expected[name])


@pytest.mark.parametrize("bn", [False, True])
def test_vgg16_equals_torchvision(bn: bool, shake: Shake) -> None:
    torch.manual_seed(16)
    with torch.device("meta"):
        theirs: Any = torchvision.models.get_model("vgg16_bn" if bn else "vgg16")
        ours = build(vgg_options(16, bn), 1000)
    theirs = theirs.to_empty(device="cpu").eval()
    for m in theirs.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            bound = (6 / m.weight[0].numel()) ** 0.5  # uniform is the fastest way to fill 138M weights
            nn.init.uniform_(m.weight, -bound, bound)
            nn.init.uniform_(m.bias, -0.1, 0.1)
    shake(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    ours.eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        close(ours.classify(x), theirs(x))
        ends = {"C2": 16, "C3": 23, "C4": 30, "C5": 31} if not bn else {"C2": 23, "C3": 33, "C4": 43, "C5": 44}
        maps = ours(x)
        assert list(maps) == list(ends)
        for name, end in ends.items():
            close(maps[name], theirs.features[:end](x))


@pytest.mark.parametrize(("depth", "bn"), VGGS)
def test_vgg_keys_and_shapes_are_torchvisions(depth: int, bn: bool) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(f"vgg{depth}" + "_bn" * bn)
        ours = build(vgg_options(depth, bn), 1000)
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
        (k, v.shape) for k, v in theirs.state_dict().items()
    ]
    assert [m.p for m in ours.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]


@pytest.mark.parametrize("depth", RESNETS)
@pytest.mark.parametrize("norm", ["batch", "sync"])
def test_resnet_keys_and_shapes_are_torchvisions(depth: int, norm: Any) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(f"resnet{depth}")
        ours = build(NetOptions(depth=depth, norm=norm), 1000)
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
        (k, v.shape) for k, v in theirs.state_dict().items()
    ]


def test_zero_init_is_torchvisions() -> None:
    theirs = torchvision.models.resnet50(zero_init_residual=True)
    ours = build(NetOptions(depth=50, zero_init_residual=True), 1000)
    zeros = [{k for k, v in net.state_dict().items() if k.endswith("weight") and not v.any()} for net in (theirs, ours)]
    assert zeros[0] == zeros[1]
    assert len(zeros[0]) == 16


def test_random_weights_are_spread_like_torchvisions() -> None:
    torch.manual_seed(0)
    theirs, ours = torchvision.models.resnet18(), build(NetOptions(depth=18), 1000)
    for (key, a), b in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        if a.std() == 0:
            assert torch.equal(a, b), key
        else:
            assert b.std().item() == pytest.approx(a.std().item(), rel=0.1), key


def test_random_vgg_weights_are_spread_as_torchvision_says() -> None:
    """torchvision.models.VGG: He et al. with fan out in convolutions, 0.01 in fully connected layers, no bias."""
    torch.manual_seed(0)
    for module in build(NetOptions(net="vgg", depth=11, norm="none", width=0.25), 1000).modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            spread = (2 / (9 * module.out_channels)) ** 0.5 if isinstance(module, nn.Conv2d) else 0.01
            assert module.weight.std().item() == pytest.approx(spread, rel=0.1)
            assert module.bias is not None
            assert not module.bias.any()
