"""Exact batch statistics against all images put through at once."""

import torch
from torch import nn

from backbone.nets import build
from backbone.options import NetOptions
from backbone.training.precise_bn import precise_bn
from backbone.training.world import World

ALONE = World(0, 1, torch.device("cpu"))


def net() -> nn.Module:
    torch.manual_seed(0)
    return build(NetOptions(net="cifar_resnet", depth=8, shortcut="A"), 4)


def test_the_first_layer_gets_mean_and_variance_of_all_images() -> None:
    """What enters the first norm does not depend on other norms: its statistics have a closed form."""
    model = net()
    batches = [torch.randn(6, 3, 16, 16) * (1 + i) + i for i in range(5)]  # batches that differ in mean and spread
    assert precise_bn(model, batches, ALONE) == 5
    inputs = model.conv1(torch.cat(batches)).double()
    torch.testing.assert_close(model.bn1.running_mean.double(), inputs.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    expected = inputs.var((0, 2, 3), correction=0)
    torch.testing.assert_close(model.bn1.running_var.double(), expected, rtol=1e-5, atol=1e-6)


def test_one_batch_makes_evaluation_equal_training() -> None:
    model = net()
    images = torch.randn(32, 3, 16, 16)
    precise_bn(model, [images], ALONE)
    torch.testing.assert_close(model.eval().classify(images), model.train().classify(images), rtol=1e-4, atol=1e-4)


def test_nothing_else_changes() -> None:
    model = net().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    momentum = [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    precise_bn(model, [torch.randn(8, 3, 16, 16)], ALONE)
    after = model.state_dict()
    assert {k for k in before if not torch.equal(before[k], after[k])} == {
        k for k in before if k.split(".")[-1] in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert momentum == [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert model.training
