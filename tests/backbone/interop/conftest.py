"""Nets whose half is not zeros and ones, and artifacts of them, made once."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded, and a test that would fails

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backbone import artifact
from backbone.inputs import InputConvention
from backbone.interop.common import Source
from backbone.nets import Backbone, build
from backbone.options import NetOptions

CLASSES = ("ant", "bee", "cat", "dog", "elk")
# No two channels alike, none of ImageNet's, so that a default or a swap cannot pass.
INPUTS = InputConvention(size=64, crop_pct=0.8, mean=(0.31, 0.42, 0.55), std=(0.19, 0.23, 0.29))
BGR = InputConvention(size=64, channel_order="BGR", mean=(0.31, 0.42, 0.55), std=(1 / 255, 1.1 / 255, 1.3 / 255))


def shaken(model: nn.Module) -> nn.Module:
    """A framework's own net, in eval mode, with statistics that are not 0 and 1."""
    torch.manual_seed(1)
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            value.uniform_(-0.2, 0.2)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2)
    return model.eval()


@cache
def net_of(options: NetOptions) -> Backbone:
    """A net in eval mode whose statistics, gammas and betas are random, by a fixed seed."""
    torch.manual_seed(3)
    net = build(options, len(CLASSES))
    for module in net.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            for name, low, high in (("running_mean", -0.3, 0.3), ("running_var", 0.5, 2), ("weight", 0.3, 1)):
                torch.nn.init.uniform_(getattr(module, name), low, high)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    return net.eval()


def source_of(options: NetOptions, inputs: InputConvention = INPUTS, place: str = "exported") -> Source:
    return Source(net=net_of(options), inputs=inputs, classes=CLASSES, place=place)


@pytest.fixture(scope="session")
def artifact_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`artifact_of(options, inputs)`: the folder of an artifact, written once a session."""

    @cache
    def make(options: NetOptions, bgr: bool = False) -> Path:
        folder = tmp_path_factory.mktemp("artifact")
        provenance = {
            "recipe": {"data": {"source": "imagefolder", "train": "/data/pets/train", "val": "/data/pets/val"}},
            "data": {"train": "1234", "val": "5678"},
            "metrics": {"val_error": 12.5},
        }
        artifact.save(folder, net_of(options), BGR if bgr else INPUTS, CLASSES, provenance)
        return folder

    return make


def photos() -> tuple[np.ndarray, Tensor]:
    """The same two random images as uint8 RGB [N, H, W, 3] and [N, 3, H, W]."""
    pixels = np.random.default_rng(5).integers(0, 256, (2, 64, 96, 3), np.uint8)
    return pixels, torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


@torch.no_grad()
def maps_of(source: Source, images: Tensor) -> dict[str, Tensor]:
    """What our net makes of them: stage maps and logits."""
    x = source.inputs.normalize(images)
    return {**source.net(x), "logits": source.net.classify(x)}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Every map of `found` within 1e-5 of the largest value of ours."""
    for stage, value in found.items():
        scale = expected[stage].abs().max()
        assert (value - expected[stage]).abs().max() <= 1e-5 * scale, stage
