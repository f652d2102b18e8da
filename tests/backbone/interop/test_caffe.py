"""MSRA's nets in each of the forms in which they are passed around."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from backbone.errors import UserError
from backbone.interop import keys
from backbone.interop.common import Files
from backbone.interop.convert import convert
from backbone.interop.layouts import Layout
from backbone.options import NetOptions
from tests.backbone.interop.conftest import assert_equal, net_of, photos

MSRA = {"mean": (123.675, 116.28, 103.53), "std": (1.0, 1.0, 1.0)}
DEPTHS = (50, 101)


def answer(net: torch.nn.Module, pixels: np.ndarray) -> dict[str, Tensor]:
    """As Caffe's users feed it: BGR of 0..255 less the mean."""
    bgr = pixels[..., ::-1].astype("float32") - np.array(MSRA["mean"][::-1], "float32")
    x = torch.from_numpy(bgr.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        return {**net(x), "logits": net.classify(x)}


def caffe2(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """As Detectron's pickle_caffe_blobs.py writes: norms merged to scale and bias, a bias for every convolution."""
    blobs = {}
    for name, t in state.items():
        owner, _, part = name.rpartition(".")
        if part == "running_var":
            scale = state[f"{owner}.weight"] / (t + 1e-5).sqrt()
            blobs[keys.caffe2(f"{owner}.weight")] = scale
            blobs[keys.caffe2(f"{owner}.bias")] = state[f"{owner}.bias"] - state[f"{owner}.running_mean"] * scale
        elif t.dim() == 4:
            blobs[keys.caffe2(name)] = t
            blobs[keys.caffe2(name)[:-1] + "b"] = torch.zeros(len(t))
        elif owner == "fc":
            blobs[keys.caffe2(name)] = t
    return {name: t.numpy() for name, t in blobs.items()}


def layers(state: dict[str, Tensor], to_theirs: Callable[[str], str]) -> dict[str, np.ndarray]:
    """As pycaffe gives `net.params[LAYER][INDEX].data`: statistics times a factor, conv1 with a bias."""
    blobs = {}
    for name, t in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        blobs[to_theirs(name)] = t * 999.98 if name.endswith(("running_mean", "running_var")) else t
        if name.endswith("running_var"):
            blobs[to_theirs(name)[:-1] + "2"] = torch.tensor([999.98])
    blobs["conv1.1"] = torch.linspace(-1, 1, len(blobs["conv1.0"]))
    blobs["bn_conv1.0"] = blobs["bn_conv1.0"] + blobs["conv1.1"] * 999.98
    return {name: t.numpy() for name, t in blobs.items()}


def npz(folder: Path, blobs: dict[str, np.ndarray]) -> bytes:
    np.savez(folder / "net.npz", **blobs)
    return (folder / "net.npz").read_bytes()


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("form", ["caffe2", "layers", "torchvision"])
def test_every_form_becomes_the_same_net(tmp_path: Path, form: str, depth: int) -> None:
    net = net_of(NetOptions(depth=depth, stride_in_1x1=True, width=0.25))
    state = net.state_dict()
    letters = keys.caffe if depth == 50 else keys.caffe_numbers
    files: Files = {
        "caffe2": lambda: {"R.pkl": pickle.dumps(caffe2(state))},
        "layers": lambda: {"R.npz": npz(tmp_path, layers(state, letters))},
        "torchvision": lambda: {"R.npz": npz(tmp_path, {name: t.numpy() for name, t in state.items()})},
    }[form]()
    found = convert(Layout("caffe"), files, "R")
    assert found.net.options == NetOptions(depth=depth, stride_in_1x1=True, width=0.25)
    assert found.inputs.channel_order == "BGR"
    assert found.has_head
    pixels, images = photos()
    x = found.inputs.normalize(images)
    with torch.no_grad():
        maps = {**found.net(x), "logits": found.net.classify(x)}
    assert_equal(maps, answer(net, pixels))


def test_what_was_done_is_said() -> None:
    blobs = caffe2(net_of(NetOptions(depth=50, stride_in_1x1=True, width=0.25)).state_dict())
    notes = "\n".join(convert(Layout("caffe", "blobs"), {"R.pkl": pickle.dumps({"blobs": blobs})}, "R").notes)
    assert "53 norms came as scale and bias alone" in notes
    assert "53 biases of convolutions were moved" in notes
    assert "Caffe pools the stem unpadded" in notes


def test_faults_are_named(tmp_path: Path) -> None:
    blobs = caffe2(net_of(NetOptions(depth=50, stride_in_1x1=True, width=0.25)).state_dict())
    extra = {**blobs, "conv_rpn_w": np.zeros(1, "f4")}
    with pytest.raises(
        UserError,
        match=r"1 keys that no net of these names has: conv_rpn_w. To be typed:\n  --source caffe --drop conv_rpn_w$",
    ):
        convert(Layout("caffe"), {"R.pkl": pickle.dumps(extra)}, "R")
    one = layers(net_of(NetOptions(depth=50, stride_in_1x1=True, width=0.25)).state_dict(), keys.caffe)
    del one["bn4c_branch2a.1"]
    with pytest.raises(UserError, match=r"a scale for layer3\.2\.bn1\.running_var, which is not there"):
        convert(Layout("caffe"), {"R.npz": npz(tmp_path, one)}, "R")
    del one["bn4c_branch2a.2"]
    with pytest.raises(UserError, match=r"1 keys missing: layer3\.2\.bn1\.running_var"):
        convert(Layout("caffe"), {"R.npz": npz(tmp_path, one)}, "R")
    del blobs["res4_3_branch2b_bn_s"]
    with pytest.raises(UserError, match=r"a bias for layer3\.3\.conv2\.weight, whose norm is not there"):
        convert(Layout("caffe"), {"R.pkl": pickle.dumps(blobs)}, "R")
