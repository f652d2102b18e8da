"""Names are the published ones, and each map can be walked back."""

import pytest
import torch
import torchvision
from torch import nn

from backbone.errors import UserError
from backbone.interop import keys
from backbone.nets import build
from backbone.options import NetOptions

MAPS = [
    keys.same,
    keys.transformers,
    keys.transformers_backbone,
    keys.detectron2,
    keys.caffe2,
    keys.caffe,
    keys.caffe_numbers,
    keys.sequential,
]


@pytest.mark.parametrize("to_theirs", MAPS, ids=lambda f: f.__name__)
def test_no_two_of_our_names_become_one(to_theirs) -> None:
    assert len(keys.inverse(to_theirs)) == len(keys.ours())


def test_ours_are_torchvisions() -> None:
    for depth in (18, 34, 50, 101, 152):
        with torch.device("meta"):
            names = set(getattr(torchvision.models, f"resnet{depth}")().state_dict())
        assert names <= set(keys.ours()), depth


PUBLISHED = [
    (keys.transformers, "conv1.weight", "resnet.embedder.embedder.convolution.weight"),
    (keys.transformers, "bn1.running_var", "resnet.embedder.embedder.normalization.running_var"),
    (keys.transformers, "layer3.5.conv2.weight", "resnet.encoder.stages.2.layers.5.layer.1.convolution.weight"),
    (
        keys.transformers,
        "layer2.0.downsample.1.bias",
        "resnet.encoder.stages.1.layers.0.shortcut.normalization.bias",
    ),
    (keys.transformers, "fc.bias", "classifier.1.bias"),
    (keys.transformers_backbone, "bn1.weight", "embedder.embedder.normalization.weight"),
    (keys.detectron2, "conv1.weight", "stem.conv1.weight"),
    (keys.detectron2, "bn1.running_mean", "stem.conv1.norm.running_mean"),
    (keys.detectron2, "layer3.5.bn2.weight", "res4.5.conv2.norm.weight"),
    (keys.detectron2, "layer1.0.downsample.0.weight", "res2.0.shortcut.weight"),
    (keys.detectron2, "layer1.0.downsample.1.running_var", "res2.0.shortcut.norm.running_var"),
    (keys.caffe2, "bn1.weight", "res_conv1_bn_s"),
    (keys.caffe2, "layer3.22.conv3.weight", "res4_22_branch2c_w"),
    (keys.caffe2, "layer1.0.downsample.1.bias", "res2_0_branch1_bn_b"),
    (keys.caffe2, "fc.weight", "fc1000_w"),
    (keys.caffe, "conv1.weight", "conv1.0"),
    (keys.caffe, "bn1.running_var", "bn_conv1.1"),
    (keys.caffe, "layer2.3.bn1.bias", "scale3d_branch2a.1"),
    (keys.caffe_numbers, "layer3.22.conv2.weight", "res4b22_branch2b.0"),
    (keys.caffe_numbers, "layer3.0.downsample.1.running_mean", "bn4a_branch1.0"),
]


@pytest.mark.parametrize(("to_theirs", "ours", "theirs"), PUBLISHED, ids=lambda v: v if isinstance(v, str) else "")
def test_published_names(to_theirs, ours: str, theirs: str) -> None:
    assert to_theirs(ours) == theirs
    assert keys.inverse(to_theirs)[theirs] == ours


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(UserError, match=r"here: 1 keys that no net of these names has: layer1.0.se.weight"):
        keys.explained(["conv1.weight", "layer1.0.se.weight"], keys.inverse(keys.same), "here")


@torch.no_grad()
def test_names_of_a_sequential_are_those_of_torch() -> None:
    model = torchvision.models.resnet18()
    names = nn.Sequential(*list(model.children())[:-1]).state_dict().keys()
    table = keys.inverse(keys.sequential)
    assert {table[name] for name in names} == {n for n in model.state_dict() if not n.startswith("fc.")}


def test_names_of_cifar_nets() -> None:
    with torch.device("meta"):
        ours = build(NetOptions(net="cifar_resnet", depth=56), 10).state_dict().keys()
    table = keys.cifar()
    assert ours <= table.keys()
    assert "layer3.199.conv2.weight" in table, "of 1,202 layers"
    assert table["linear.weight"] == table["fc.weight"] == "fc.weight"
    assert table["layer2.0.shortcut.1.running_var"] == "layer2.0.downsample.1.running_var"
    assert "layer4.0.conv1.weight" not in table


def test_names_of_vggs() -> None:
    for name in ("vgg11", "vgg19_bn"):
        with torch.device("meta"):
            assert getattr(torchvision.models, name)().state_dict().keys() <= keys.vgg().keys()
