"""Names are the published ones, and each map can be walked back."""

import pytest
import torch
import torchvision

from backbone.errors import UserError
from backbone.interop import keys

MAPS = [
    keys.same,
    keys.transformers,
    keys.transformers_backbone,
    keys.detectron2,
    keys.caffe2,
    keys.caffe,
    keys.caffe_numbers,
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


def test_an_unknown_key_is_named_and_a_prefix_found() -> None:
    table = keys.inverse(keys.same)
    with pytest.raises(UserError, match=r"here: 1 keys that no residual net has: layer1.0.se.weight"):
        keys.explained(["conv1.weight", "layer1.0.se.weight"], table, "here")
    with pytest.raises(UserError, match=r"--prefix module\.backbone\."):
        keys.explained(["module.backbone.conv1.weight"], table, "here")
