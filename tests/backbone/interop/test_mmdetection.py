"""An mmdetection export has the published names and shapes, and in its own blocks, by its own config, our maps."""

import io

import pytest
import torch

from backbone.interop import mmdetection as ours
from backbone.interop.common import Source
from backbone.options import NetOptions
from tests.backbone.interop.conftest import BGR, INPUTS, assert_equal, maps_of, photos, source_of
from tests.backbone.interop.published import MMDetection
from tests.backbone.interop.test_detectron2 import NETS


def theirs(source: Source) -> MMDetection:
    """Their net by our config, run as Python as they do, with our file; every key and every shape must fit."""
    files = ours.write(source)
    config: dict = {}
    exec(files["backbone.py"].decode(), config)
    assert ours.literal_model(files["backbone.py"].decode()) == config["model"]
    weights = torch.load(io.BytesIO(files["backbone.pth"]), weights_only=True)
    net = MMDetection(config["model"]).eval()
    published = {name: t.shape for name, t in net.state_dict().items()}
    assert {name: t.shape for name, t in weights.items()} == published
    net.load_state_dict(weights)
    return net


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "inputs"), NETS, ids=lambda v: f"{v.depth}-{v.stride_in_1x1}" if hasattr(v, "depth") else ""
)
def test_keys_shapes_and_maps(options: NetOptions, inputs) -> None:
    source = source_of(options, inputs)
    pixels, images = photos()
    assert_equal(theirs(source)(pixels), maps_of(source, images))


@torch.no_grad()
@pytest.mark.parametrize("wrong", ["style", "bgr_to_rgb", "mean", "range"])
def test_another_config_gives_other_maps(wrong: str) -> None:
    """Else the test above would not tell."""
    source = source_of(NetOptions(depth=50, width=0.25), INPUTS)
    net = theirs(source)
    pixels, images = photos()
    if wrong == "style":
        model = ours.literal_model(ours.write(source)["backbone.py"].decode())
        model["backbone"]["style"] = "caffe"
        other = MMDetection(model).eval()
        other.load_state_dict(net.state_dict())
        net = other
    elif wrong == "bgr_to_rgb":
        net.given["bgr_to_rgb"] = False
    elif wrong == "mean":
        net.given["mean"] = net.given["mean"][::-1]
    else:
        net.given["std"] = [v / 255 for v in net.given["std"]]
    with pytest.raises(AssertionError):
        assert_equal(net(pixels), maps_of(source, images))


def test_the_config_says_style_norms_and_the_necks_channels() -> None:
    caffe = ours.literal_model(ours.model_text(source_of(NetOptions(depth=50, stride_in_1x1=True), BGR)))
    assert caffe["backbone"]["style"] == "caffe"
    assert caffe["data_preprocessor"]["bgr_to_rgb"] is False
    basic = ours.literal_model(ours.model_text(source_of(NetOptions(depth=18))))
    assert basic["neck"] == {"in_channels": [64, 128, 256, 512]}
    assert basic["backbone"]["init_cfg"] == {"type": "Pretrained", "checkpoint": "exported/backbone.pth"}
    assert basic["backbone"]["norm_cfg"] == {"type": "BN", "requires_grad": False}


def test_a_config_with_code_in_it_is_not_run() -> None:
    with pytest.raises(ValueError, match="malformed node"):
        ours.literal_model("model = dict(depth=__import__('os').getpid())")
    with pytest.raises(ValueError, match="no `model"):
        ours.literal_model("depth = 50")


def test_configs_with_dicts_in_lists_are_read() -> None:
    """As those of Cascade R-CNN, and of anything with batch_augments."""
    text = """
model = dict(
    data_preprocessor=dict(
        mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False, batch_augments=[dict(type='Pad')]),
    backbone=dict(type='ResNet', depth=50, style='caffe'),
    roi_head=dict(bbox_head=[dict(type='A'), {'type': dict(name='B')}]))
"""
    found = ours.facts({"config.py": text.encode()})
    assert (found.channel_order, found.stride_in_1x1) == ("BGR", True)
