"""Backbones: residual, plain and VGG nets behind one contract."""

from collections.abc import Callable

from backbone.nets.contract import Backbone, RegionLayers, Stage
from backbone.nets.resnet import ResNet
from backbone.nets.vgg import VGG
from backbone.options import NetOptions

__all__ = ["NETS", "Backbone", "RegionLayers", "Stage", "build"]

NETS: dict[str, Callable[[NetOptions, int], Backbone]] = {"resnet": ResNet, "cifar_resnet": ResNet, "vgg": VGG}


def build(options: NetOptions, num_classes: int) -> Backbone:
    """Build the net on torch's current default device, with random weights from torch's current generator."""
    return NETS[options.net](options, num_classes)
