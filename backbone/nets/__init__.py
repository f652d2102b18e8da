"""Backbones: residual, plain and VGG nets, and those of timm, behind one contract."""

from collections.abc import Callable
from typing import Any

from backbone.nets.contract import Backbone, RegionLayers, Stage
from backbone.nets.external import External
from backbone.nets.resnet import ResNet
from backbone.nets.vgg import VGG
from backbone.options import AnyNet

__all__ = ["NETS", "Backbone", "RegionLayers", "Stage", "build"]

NETS: dict[str, Callable[[Any, int], Backbone]] = {
    "resnet": ResNet,
    "cifar_resnet": ResNet,
    "vgg": VGG,
    "external": External,
}


def build(options: AnyNet, num_classes: int) -> Backbone:
    """Build the net on torch's current default device, with random weights from torch's current generator.

    Raises:
        UserError: it is a net of another library, which is not here as the options want it.
    """
    return NETS[options.net](options, num_classes)
