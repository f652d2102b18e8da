"""Frozen norms within convolutions, against convolution and norm one after the other."""

import contextlib
import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from backbone.nets import build
from backbone.options import NetOptions
from detection.nets import folding, policy
from detection.options import DetectorOptions

FROZEN = DetectorOptions(norm="frozen", freeze_at=2)


def nets(**options: object) -> tuple[nn.Module, nn.Module]:
    """The same net with norms that have seen images: frozen and folded, and frozen alone."""
    torch.manual_seed(0)
    net = build(NetOptions.model_validate(options), 10)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 2)
    plain = copy.deepcopy(net)
    policy.apply(FROZEN, net)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "fold", lambda net: None)
        policy.apply(FROZEN, plain)
    return net, plain


@contextlib.contextmanager
def folded_in_fp32() -> Iterator[None]:
    """As under autocast, but in the precision that differences show in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "is_autocast_enabled", lambda device: True)
        yield


@pytest.mark.parametrize(
    ("options", "folded"),
    [
        ({"depth": 18, "width": 0.25}, 20),
        ({"depth": 50, "width": 0.25}, 53),
        ({"depth": 50, "width": 0.25, "shortcut": "A"}, 49),
        ({"net": "vgg", "depth": 11, "width": 0.25, "norm": "batch"}, 8),
        ({"depth": 18, "width": 0.25, "preact": True}, 0),
    ],
)
def test_maps_and_gradients_are_those_of_two_operations(options: dict[str, object], folded: int) -> None:
    net, plain = nets(**options)
    assert sum(isinstance(m, folding.FoldedBatchNorm2d) for m in net.modules()) == folded
    assert sum(isinstance(m, folding.NormedConv2d) for m in net.modules()) == folded
    assert list(net.state_dict()) == list(plain.state_dict())
    assert policy.count_norms(net) == policy.count_norms(plain)
    images = torch.rand(2, 3, 64, 64)
    assert all(
        torch.equal(one, theirs) for one, theirs in zip(net(images).values(), plain(images).values(), strict=True)
    )
    with folded_in_fp32():
        found = net(images)
    wanted = plain(images)
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        torch.testing.assert_close(found[name], one, rtol=1e-4, atol=1e-5 * one.abs().max().item())
    for maps in (found, wanted):
        sum(one.square().mean() for one in maps.values()).backward()
    theirs = dict(plain.named_parameters())
    trained = [
        (name, p.grad, theirs[name].grad)
        for name, p in net.named_parameters()
        if p.requires_grad and p.grad is not None
    ]
    assert len(trained) >= 6
    for name, ours, own in trained:
        torch.testing.assert_close(ours, own, rtol=1e-3, atol=1e-4 * own.abs().max().item(), msg=name)


def test_copies_and_loaded_weights_are_folded_by_their_own_norms() -> None:
    net, plain = nets(depth=18, width=0.25)
    other, images = copy.deepcopy(net), torch.rand(1, 3, 64, 64)
    state = {k: v * 1.1 if v.is_floating_point() else v for k, v in net.state_dict().items()}
    other.load_state_dict(state, strict=True)
    plain.load_state_dict(state, strict=True)
    with folded_in_fp32():
        found, first = other(images), net(images)
    for name, one in plain(images).items():
        torch.testing.assert_close(found[name], one, rtol=1e-4, atol=1e-5 * one.abs().max().item())
    assert not torch.allclose(first["C5"], found["C5"])


def test_autocast_keeps_maps_in_its_precision() -> None:
    net, plain = nets(depth=18, width=0.25)
    images = torch.rand(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = net(images)
    assert all(one.dtype == torch.bfloat16 for one in found.values())
    exact = plain(images)["C5"]
    assert (found["C5"] - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_norms_alone_are_left_as_they_are() -> None:
    net, _ = nets(depth=18, width=0.25, preact=True)
    assert any(type(m) is FrozenBatchNorm2d for m in net.modules())
