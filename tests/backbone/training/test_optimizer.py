"""Optimizers against those of others, and the weights' moving average."""

import copy
import math

import pytest
import timm.optim
import torch
from torch import nn

from backbone.training.optimizer import average_decay, build_optimizer
from backbone.training.recipe import Optim


def small_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 5))
    nn.init.zeros_(net[3].weight)  # without a trust ratio, at first
    return net


def trained_both(optim: Optim, theirs: type[torch.optim.Optimizer], **options: float) -> tuple[nn.Module, nn.Module]:
    """A net after ten steps of ours, its twin after ten of the reference, decay on weights of layers alone."""
    ours, twin = small_net(), small_net()
    reference = theirs(
        [
            {"params": [twin[0].weight, twin[3].weight], "weight_decay": optim.weight_decay},
            {"params": [twin[1].weight, twin[1].bias, twin[3].bias], "weight_decay": 0.0},
        ],
        lr=optim.peak_lr,
        **options,
    )
    optimizer = build_optimizer(ours, optim)
    for step in range(10):
        images = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        for net, its in ((ours, optimizer), (twin, reference)):
            for group in its.param_groups:
                group["lr"] = optim.peak_lr / (step + 1)
            net(images).square().sum().backward()
            if optim.clip and net is ours:
                norm = nn.utils.get_total_norm([p.grad for p in net.parameters()])
                for parameter in net.parameters():
                    parameter.grad /= (norm / optim.clip).clamp(min=1)
            its.step()
            its.zero_grad()
    return ours, twin


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_lamb_is_timms(clip: float) -> None:
    """timm clips in the optimizer. torch, which the loop clips with, divides by the norm and a millionth."""
    optim = Optim(kind="lamb", lr=0.05, lr_batch=0, weight_decay=0.02, decay="no_norm_bias", clip=clip)
    ours, twin = trained_both(optim, timm.optim.Lamb, max_grad_norm=clip or None)
    assert not torch.equal(twin[3].weight, small_net()[3].weight)
    for mine, expected in zip(ours.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-6)


def test_adamw_is_torchs() -> None:
    optim = Optim(kind="adamw", lr=0.01, lr_batch=0, weight_decay=0.1, decay="no_norm_bias", betas=(0.8, 0.95))
    ours, twin = trained_both(optim, torch.optim.AdamW, betas=(0.8, 0.95))
    for mine, expected in zip(ours.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, expected)


def test_lamb_goes_on_from_its_state() -> None:
    optim = Optim(kind="lamb", lr=0.05, lr_batch=0, weight_decay=0.02)
    net = small_net()
    optimizer = build_optimizer(net, optim)
    for step in range(4):
        if step == 2:
            net, before = copy.deepcopy(net), optimizer.state_dict()
            optimizer = build_optimizer(net, optim)
            optimizer.load_state_dict(copy.deepcopy(before))
        images = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        net(images).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [group["step"] for group in optimizer.param_groups] == [4]
    assert optim.copies == 3


def test_an_average_forgets_the_first_weights_and_comes_to_full_decay():
    kept = math.prod(average_decay(0.9999, step) for step in range(1000))
    assert math.isclose(kept, math.factorial(9) * math.factorial(1000) / math.factorial(1009), rel_tol=1e-9)
    assert kept < 0.01
    assert average_decay(0.9999, 89_980) < average_decay(0.9999, 89_990) == 0.9999
