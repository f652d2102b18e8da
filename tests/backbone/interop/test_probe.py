"""What fp32 alone explains passes the probe, in nets of any noise; mistakes do not."""

import copy
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from backbone.errors import UserError
from backbone.inputs import InputConvention
from backbone.interop import probe
from backbone.nets import Backbone, build
from backbone.noise import NOISE_FACTOR, noise
from backbone.options import NetOptions
from tests.backbone.interop.conftest import INPUTS, net_of


@cache
def noisy(offset: float = 40.0) -> Backbone:
    """A net whose maps are small differences of large sums, as training makes them in deep nets: fp32 errs by 1e-5."""
    torch.manual_seed(7)
    net = build(NetOptions(depth=50, width=0.25), 5).train()
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain average, so that one batch is enough
            nn.init.constant_(module.bias, offset if name.endswith(("bn1", "bn2")) else 0.0)
    with torch.no_grad():
        net.classify(INPUTS.normalize(probe.images(net)).repeat(4, 1, 1, 1) * torch.rand(8, 1, 1, 1))
    return net.eval()


def folded(net: Backbone, inputs: InputConvention):
    """The same function in other sums: each norm's factor in its convolution's weights."""
    twin = copy.deepcopy(net)
    for module in list(twin.modules()):
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1")):
            pair = [getattr(module, part, None) for part in (conv, norm)]
            if isinstance(pair[0], nn.Conv2d) and isinstance(pair[1], nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(pair[0], pair[1]))
                setattr(module, norm, nn.Identity())
    assert not [m for m in twin.modules() if isinstance(m, nn.BatchNorm2d)]
    return lambda images: probe.ours(twin, inputs, images)


def test_other_sums_pass_and_the_old_bound_would_not() -> None:
    rows = probe.agree(noisy(), INPUTS, folded(noisy(), INPUTS), "folded")
    assert max(row.relative for row in rows) > probe.TOLERANCE
    quiet = net_of(NetOptions(depth=18, width=0.25))
    assert max(row.relative for row in probe.agree(quiet, INPUTS, folded(quiet, INPUTS), "folded")) < probe.TOLERANCE


def strided(net: Backbone) -> Backbone:
    twin = build(net.options.model_copy(update={"stride_in_1x1": True}), net.num_classes)
    twin.load_state_dict(net.state_dict())
    return twin.eval()


@pytest.mark.parametrize(
    ("net", "inputs"),
    [
        (noisy, InputConvention(mean=INPUTS.mean, std=INPUTS.std, channel_order="BGR")),
        (noisy, InputConvention(mean=(0.314, *INPUTS.mean[1:]), std=INPUTS.std)),  # a hundredth of its 0.31
        (noisy, InputConvention(mean=INPUTS.mean, std=(0.192, *INPUTS.std[1:]))),
        (lambda: strided(noisy()), INPUTS),
    ],
    ids=["channels", "mean", "std", "stride"],
)
def test_mistakes_are_beyond_the_noise(net, inputs: InputConvention) -> None:
    def answer(images: Tensor) -> dict[str, Tensor]:
        return probe.ours(net(), inputs, images)

    with pytest.raises(UserError, match=r"other does not compute the same: C[23] is .* of its largest value off, "):
        probe.agree(noisy(), INPUTS, answer, "other")


def test_noise_is_that_of_fp32_and_leaves_the_net_alone() -> None:
    net = copy.deepcopy(noisy()).train()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    images = probe.images(net)
    found = noise(net, INPUTS, images)
    assert list(found) == ["C2", "C3", "C4", "C5", "logits"]
    assert net.training
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    other = folded(noisy(), INPUTS)(images)
    mine = probe.ours(noisy(), INPUTS, images)
    for stage, error in found.items():
        assert 0 < (other[stage] - mine[stage]).abs().max() <= NOISE_FACTOR * error, stage


def test_a_net_that_is_all_noise_is_no_excuse() -> None:
    """Where fp32 leaves no digit, nothing can be said to agree."""
    net = noisy(1e5)
    with pytest.raises(UserError, match=r"0\.001 allowed"):
        probe.agree(net, INPUTS, lambda images: probe.ours(strided(net), INPUTS, images), "other")
