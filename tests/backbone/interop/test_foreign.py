"""Nets that raybone has not are called by their names, however their checkpoints wrap them."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from backbone.errors import UserError
from backbone.interop.importing import run
from backbone.interop.options import Import


def torchvision_state(name: str) -> dict[str, torch.Tensor]:
    """Names and shapes, in the fewest bytes."""
    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    return {key: torch.zeros(t.shape, dtype=torch.int8) for key, t in state.items()}


def kuangliu() -> dict[str, torch.Tensor]:
    """pytorch-cifar's ResNet-18: torchvision's stages behind a stem of one 3x3, other names of projection and head."""
    state = {}
    for key, t in torchvision_state("resnet18").items():
        state[key.replace("downsample", "shortcut").replace("fc.", "linear.")] = t
    return {**state, "conv1.weight": torch.zeros(64, 3, 3, 3)}


def wide_for_cifar() -> dict[str, torch.Tensor]:
    state = {"conv1.weight": torch.zeros(16, 3, 3, 3)}
    for stage, channels in ((1, 64), (2, 128), (3, 256)):
        for unit in range(2):
            inputs = {1: 16, 2: 64, 3: 128}[stage] if unit == 0 else channels
            state[f"layer{stage}.{unit}.conv1.weight"] = torch.zeros(channels, inputs, 3, 3)
            state[f"layer{stage}.{unit}.conv2.weight"] = torch.zeros(channels, channels, 3, 3)
    return state


def with_keys(*names: str) -> dict[str, torch.Tensor]:
    return torchvision_state("resnet18") | {name: torch.zeros(1) for name in names}


NETS = {
    "resnext50_32x4d": (lambda: torchvision_state("resnext50_32x4d"), r"resnext50_32x4d \(32 groups"),
    "resnext101_64x4d": (lambda: torchvision_state("resnext101_64x4d"), r"resnext101_64x4d \(64 groups"),
    "wide_resnet50_2": (lambda: torchvision_state("wide_resnet50_2"), r"wide_resnet50_2 \(3x3 convolutions 2 times"),
    "regnet": (lambda: torchvision.models.regnet_y_400mf().state_dict(), "RegNet"),
    "vit": (lambda: torchvision_state("vit_b_32") | {"cls_token": torch.zeros(1)}, "a vision transformer"),
    "densenet": (lambda: torchvision_state("densenet121"), "DenseNet"),
    "mobilenet": (lambda: torchvision_state("mobilenet_v2"), "MobileNet"),
    "squeeze": (lambda: with_keys("layer1.0.se.fc1.weight"), "a ResNet with squeeze-and-excitation"),
    "deformable": (lambda: with_keys("layer2.0.conv2_offset.weight"), "a ResNet with deformable convolutions"),
    "kuangliu": (kuangliu, r"resnet18 for small images \(a stem of one 3x3"),
    "wide for cifar": (wide_for_cifar, r"a wide ResNet for CIFAR \(4 times as wide\)"),
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_by_its_name(name: str, wrapped: bool, tmp_path: Path) -> None:
    make, says = NETS[name]
    state = make()
    tree = {"epoch": 3, "state_dict": {f"module.{key}": t for key, t in state.items()}} if wrapped else state
    torch.save(tree, tmp_path / "net")
    source = "cifar" if "cifar" in name else "torchvision"
    with pytest.raises(UserError, match=rf"net: the weights of {says}.*which no net of raybone computes") as error:
        run(Import.model_validate({"source": source, "weights": str(tmp_path / "net"), "output": "a"}))
    assert "--drop" not in str(error.value)


def test_norms_without_statistics(tmp_path: Path) -> None:
    model = torchvision.models.resnet18(norm_layer=lambda channels: nn.GroupNorm(32, channels))
    torch.save(model.state_dict(), tmp_path / "gn.pth")
    with pytest.raises(UserError, match=r"resnet18 whose norms have no statistics \(group norm\?\)"):
        run(Import(source="torchvision", weights=str(tmp_path / "gn.pth"), output="a"))
