"""Imports account for every key and every fact, and name what they cannot."""

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save as save_safetensors
from torch import Tensor
from torchvision.models.detection import fasterrcnn_resnet50_fpn

import backbone
from backbone import artifact
from backbone.errors import UserError
from backbone.inputs import IMAGENET_MEAN
from backbone.interop import keys, origins
from backbone.interop.common import Facts, Files, safetensors, saved
from backbone.interop.convert import Imported, convert
from backbone.interop.export import export
from backbone.interop.importing import run
from backbone.interop.layouts import Layout
from backbone.interop.options import Import
from backbone.nets import build
from backbone.options import NetOptions
from tests.backbone.interop.conftest import (
    BGR,
    CLASSES,
    INPUTS,
    assert_equal,
    maps_of,
    net_of,
    photos,
    shaken,
    source_of,
)

TAKEN = "as torchvision documents of its own weights, for nothing else says it: channel_order, mean, std"
SAID = Facts(channel_order="RGB", mean=INPUTS.mean, std=INPUTS.std, stride_in_1x1=False)


@torch.no_grad()
def logits(found: Imported, images: Tensor) -> Tensor:
    return found.net.classify(found.inputs.normalize(images))


@torch.no_grad()
@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_torchvisions_own_weights(depth: int, suffix: str) -> None:
    model = shaken(getattr(torchvision.models, f"resnet{depth}")(num_classes=7))
    state = model.state_dict()
    files = {f"net.{suffix}": saved(state) if suffix == "pth" else safetensors(state)}
    found = convert(Layout("torchvision"), files, "net")
    assert (found.net.options, found.classes, found.notes) == (NetOptions(depth=depth), tuple("0123456"), (TAKEN,))
    assert found.inputs.mean == IMAGENET_MEAN  # as torchvision documents for all its weights
    images = photos()[1]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (found.inputs.mean, found.inputs.std))
    theirs = model((images.float() / 255 - mean) / std)
    assert_equal({"logits": logits(found, images)}, {"logits": theirs})


def test_the_backbone_of_a_torchvision_detector() -> None:
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2)
    files = {"detector.pth": saved({"epoch": torch.tensor(3)} | model.state_dict())}
    drop = ("epoch", "backbone.fpn.", "rpn.", "roi_heads.")
    found = convert(Layout("torchvision", prefix=("backbone.body.",), drop=drop), files, "d.pth")
    assert not found.has_head
    assert found.classes == ("none",)
    assert torch.equal(found.net.state_dict()["layer4.2.conv3.weight"], model.backbone.body.layer4[2].conv3.weight)
    notes = "\n".join(found.notes)
    assert "left out, as asked: rpn.* (6 keys)" in notes
    assert "not in the file: the classifier (fc.*)" in notes
    with pytest.raises(UserError, match=r"--prefix backbone.body.: \d+ keys do not begin so: .*Keys to leave out"):
        convert(Layout("torchvision", prefix=("backbone.body.",)), files, "d.pth")
    with pytest.raises(
        UserError,
        match=r"keys that no net of these names has: .*\n  --source torchvision --prefix backbone.body. --drop epoch",
    ):
        convert(Layout("torchvision"), files, "d.pth")
    with pytest.raises(UserError, match=r"--drop mask.: no key begins so"):
        convert(Layout("torchvision", drop=("mask.",)), files, "d.pth")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "backbone.", "model."])
def test_prefixes_only_by_name(prefix: str) -> None:
    state = net_of(NetOptions(depth=18)).state_dict()
    files = {"net.pth": saved({prefix + name: t for name, t in state.items()})}
    with pytest.raises(UserError, match=rf"--prefix {prefix.replace('.', '[.]')}"):
        convert(Layout("torchvision"), files, "net.pth")
    assert convert(Layout("torchvision", prefix=(prefix,)), files, "net.pth").net.options.depth == 18


def test_a_training_checkpoint_needs_the_entry() -> None:
    buffer = io.BytesIO()
    torch.save({"state_dict": net_of(NetOptions(depth=18)).state_dict(), "epoch": 3}, buffer)
    with pytest.raises(
        UserError,
        match=r"holds more than tensors: state_dict, epoch. To be typed:\n  --source torchvision --entry state_dict$",
    ):
        convert(Layout("torchvision"), {"c.pth": buffer.getvalue()}, "c.pth")
    assert convert(Layout("torchvision", "state_dict"), {"c.pth": buffer.getvalue()}, "c.pth").notes == (
        "not read, beside state_dict: epoch",
        TAKEN,
    )


@torch.no_grad()
def test_transformers_own_folders(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="its own save_pretrained writes the folder")
    config = transformers.ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic")
    shaken(transformers.ResNetForImageClassification(config)).save_pretrained(tmp_path)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 96}, crop_pct=0.9).save_pretrained(tmp_path)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    found = convert(Layout("transformers"), files, str(tmp_path))
    assert (found.inputs.size, found.inputs.crop_pct, found.inputs.channel_order) == (96, 0.9, "RGB")
    assert found.classes == ("0", "1")  # transformers leaves its own default names out
    model = transformers.ResNetForImageClassification.from_pretrained(tmp_path).eval()
    images = photos()[1]
    theirs = model(found.inputs.normalize(images)).logits
    assert_equal({"logits": logits(found, images)}, {"logits": theirs})
    # A bare backbone has other names and no head.
    shaken(transformers.ResNetBackbone(config)).save_pretrained(tmp_path)
    bare = {**files, "model.safetensors": (tmp_path / "model.safetensors").read_bytes()}
    assert not convert(Layout("transformers"), bare, "bare").has_head


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
def test_timms_own_weights(name: str) -> None:
    timm = pytest.importorskip("timm", reason="its own net gives the weights")
    if name == "vgg11_bn":  # keys and shapes; its head alone has 0.5 GB, which need not be filled
        with torch.device("meta"):
            state = timm.create_model(name, num_classes=3).state_dict()
        state = {
            k: torch.zeros(1).expand(v.shape) if v.is_floating_point() else torch.tensor(0) for k, v in state.items()
        }
        named, _ = origins.convert("timm", state, "x")
        with torch.device("meta"):
            own = build(NetOptions(net="vgg", depth=11), 3).state_dict()
        assert {k: v.shape for k, v in named.items()} == {k: v.shape for k, v in own.items()}
        return
    model = shaken(timm.create_model(name, num_classes=3))
    files = {"net.safetensors": safetensors(model.state_dict())}
    with pytest.raises(UserError, match=r"channel_order, mean, std: no config beside the weights says"):
        convert(Layout("timm"), files, "net")
    found = convert(Layout("timm"), files, "net", Facts(channel_order="RGB", mean=INPUTS.mean, std=INPUTS.std))
    images = photos()[1]
    assert_equal({"logits": logits(found, images)}, {"logits": model(INPUTS.normalize(images))})
    config = {"architecture": name, "pretrained_cfg": {**model.pretrained_cfg}}
    beside = convert(Layout("timm"), {**files, "config.json": json.dumps(config).encode()}, "net")
    assert beside.inputs.crop_pct == model.pretrained_cfg["crop_pct"]


def state_of(options: NetOptions) -> dict[str, Tensor]:
    return dict(net_of(options).state_dict())


def without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: t for name, t in state.items() if name not in names}


FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "missing": (lambda s: without(s, "layer2.0.bn1.bias"), r"1 keys missing: layer2.0.bn1.bias"),
    "missing counterpart": (lambda s: without(s, "fc.bias"), r"1 keys missing: fc.bias"),
    "extra": (
        lambda s: {**s, "layer1.0.se.fc1.weight": torch.zeros(1)},
        r"the weights of a ResNet with squeeze-and-excitation",
    ),
    "extra of a deeper net": (
        lambda s: {**s, "layer1.0.downsample.0.weight": torch.zeros(1)},
        r"that resnet18 has not: layer1.0.downsample.0.weight",
    ),
    "shape": (
        lambda s: {**s, "layer2.0.bn1.bias": torch.zeros(7)},
        r"of another shape: layer2.0.bn1.bias \[7\] instead of \[128\]",
    ),
    "a unit": (
        lambda s: {k: v for k, v in s.items() if not k.startswith("layer3.1.")},
        r"stages of 2, 2, 1, 2 units: not a residual net",
    ),
    "stem": (lambda s: without(s, "conv1.weight"), r"without the stem \(conv1.weight\)"),
    "not finite": (
        lambda s: {**s, "layer2.0.bn1.bias": torch.full((128,), float("nan"))},
        r"values that are not finite in layer2.0.bn1.bias",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault: str) -> None:
    change, says = FAULTS[fault]
    files = {"net.safetensors": save_safetensors(change(state_of(NetOptions(depth=18))))}
    with pytest.raises(UserError, match=says):
        convert(Layout("torchvision"), files, "net")


def test_what_nothing_says_must_be_given() -> None:
    state = {keys.detectron2(k): v.numpy() for k, v in state_of(NetOptions(depth=50)).items() if "tracked" not in k}
    files: Files = {"R-50.pkl": pickle.dumps({"model": state})}
    with pytest.raises(
        UserError, match=r"channel_order, mean, std, stride_in_1x1: no config .*typed:\n.*\n  --stride_in_1x1 true -"
    ):
        convert(Layout("detectron2"), files, "R-50.pkl")
    found = convert(Layout("detectron2"), files, "R-50.pkl", SAID)
    assert found.has_head
    # detectron2's own files of torchvision weights were made by a tool that calls the classifier so.
    tool = {name.replace("linear.", "stem.fc."): array for name, array in state.items()}
    assert convert(Layout("detectron2"), {"R.pkl": pickle.dumps({"model": tool})}, "R", SAID).has_head
    assert "53 counters of batches" in found.notes[0]
    config = b"MODEL: {RESNETS: {STRIDE_IN_1X1: true}}"
    with pytest.raises(UserError, match="stride_in_1x1: False is given, the config beside the weights says True"):
        convert(Layout("detectron2"), {**files, "c.yaml": config}, "x", SAID)
    with pytest.raises(UserError, match=r"PIXEL_MEAN without INPUT.FORMAT, so of unknown order"):
        convert(Layout("detectron2"), {**files, "c.yaml": b"MODEL: {PIXEL_MEAN: [1, 2, 3]}"}, "x", SAID)
    with pytest.raises(UserError, match="the config beside the weights cannot be read"):
        convert(Layout("detectron2"), {**files, "c.yaml": b"MODEL: ["}, "x", SAID)


def test_torchvision_cannot_mean_stride_in_the_1x1() -> None:
    files = {"net.safetensors": save_safetensors(state_of(NetOptions(depth=50)))}
    with pytest.raises(UserError, match="torchvision has no such nets; name weights of its names --source mmdetection"):
        convert(Layout("torchvision"), files, "net", Facts(stride_in_1x1=True))
    said = Facts(stride_in_1x1=True, channel_order="BGR", mean=INPUTS.mean, std=INPUTS.std)
    assert convert(Layout("mmdetection"), files, "net", said).net.options.stride_in_1x1


def test_half_precision_becomes_fp32_and_is_said() -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in state_of(NetOptions(depth=18)).items()}
    found = convert(Layout("torchvision"), {"net.pth": saved(state)}, "net")
    assert found.notes == (TAKEN, "torch.float16 became float32")
    assert {t.dtype for t in found.net.parameters()} == {torch.float32}


ROUND = ["torchvision", "torchvision-detection", "timm", "transformers", "detectron2", "mmdetection"]


@pytest.mark.parametrize("to", ROUND)
def test_there_and_back(to: str, artifact_of: Callable[..., Path], tmp_path: Path) -> None:
    """Artifact, export, import: the same maps, provenance kept; and a changed config does not pass."""
    source = to.partition("-")[0]
    if source in ("timm", "transformers"):
        pytest.importorskip(source, reason="an export asks its own side")
    strided = to == "detectron2"
    options = NetOptions(depth=50, stride_in_1x1=True, width=0.25) if strided else NetOptions(depth=18)
    made = str(artifact_of(options, bgr=strided))
    out, back = tmp_path / "out", str(tmp_path / "back")
    export(made, to, str(out))
    done = run(Import(source=source, weights=str(out), output=back))
    net, inputs, block = backbone.load(back)
    images = photos()[1]
    expected = maps_of(source_of(options, BGR if strided else INPUTS), images)
    with torch.no_grad():
        maps = net(inputs.normalize(images))
    assert_equal(maps, expected)
    assert net.options == options
    assert block["provenance"]["metrics"] == {"val_error": 12.5}
    assert block["provenance"]["imported"]["source"] == source
    headless = to in ("torchvision-detection", "detectron2", "mmdetection")
    assert done.found.has_head is not headless
    if source in ("timm", "transformers"):
        assert block["classes"] == list(CLASSES)
    assert {row.stage for row in done.agreements} >= {"C2", "C3", "C4", "C5"}

    config, old, new = {
        "torchvision": ("preprocessing.json", "0.31", "0.35"),
        "torchvision-detection": ("detector.json", "0.31", "0.35"),
        "timm": ("config.json", "0.31", "0.35"),
        "transformers": ("preprocessor_config.json", "0.31", "0.35"),
        "detectron2": ("backbone.yaml", "STRIDE_IN_1X1: true", "STRIDE_IN_1X1: false"),
        "mmdetection": ("backbone.py", "bgr_to_rgb=True", "bgr_to_rgb=False"),
    }[to]
    text = (out / config).read_text()
    assert old in text
    (out / config).write_text(text.replace(old, new))
    with pytest.raises(UserError, match=r"of C\d is .*, was .* when raybone exported this"):
        run(Import(source=source, weights=str(out), output=str(tmp_path / "wrong")))
    assert not (tmp_path / "wrong").exists()


def test_classes_from_a_file_and_their_count(tmp_path: Path) -> None:
    weights = tmp_path / "net.safetensors"
    weights.write_bytes(save_safetensors(state_of(NetOptions(depth=18, width=0.25))))
    names = tmp_path / "names.txt"
    names.write_text("\n".join(CLASSES) + "\n")
    given = {"source": "torchvision", "weights": str(weights), "output": str(tmp_path / "a")}
    run(Import.model_validate({**given, "classes": str(names), "size": 96}))
    _, inputs, block = artifact.load(tmp_path / "a")
    assert block["classes"] == list(CLASSES)
    assert inputs.size == 96
    assert block["provenance"]["imported"]["file"] == str(weights)
    names.write_text("one\n")
    with pytest.raises(UserError, match="1 classes are named, the head has 5"):
        run(Import.model_validate({**given, "classes": str(names)}))
    with pytest.raises(UserError, match=r"divide those of the 0\.\.255 scale by 255"):
        run(Import.model_validate({**given, "mean": (123.7, 116.3, 103.5)}))


def test_of_several_files_the_safe_one_is_read(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(save_safetensors(state_of(NetOptions(depth=18, width=0.25))))
    (tmp_path / "pytorch_model.bin").write_bytes(saved({"a": torch.ones(1)}))
    done = run(Import(source="torchvision", weights=str(tmp_path), output=str(tmp_path / "a")))
    assert done.notes[0] == "not read, model.safetensors was: pytorch_model.bin"
    assert done.notes[2:] == ("not asked: torchvision, which has no such net",)  # as narrow as this one
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "other.pth").write_bytes(saved({"a": torch.ones(1)}))
    with pytest.raises(UserError, match=r"more than one file with weights; give one: --weights .*/other.pth or --wei"):
        run(Import(source="torchvision", weights=str(tmp_path), output=str(tmp_path / "a")))
    with pytest.raises(UserError, match="cannot be read"):
        run(Import(source="torchvision", weights=str(tmp_path / "nowhere"), output=str(tmp_path / "a")))


def test_a_bomb_leaves_nothing_behind(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/fired",)

    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"model": Bomb()}))
    with pytest.raises(UserError, match=r"R-50.pkl: holds posix.system \(not run\) at --entry model, not named"):
        run(Import(source="detectron2", weights=str(tmp_path / "R-50.pkl"), output=str(tmp_path / "artifact")))
    assert [file.name for file in tmp_path.iterdir()] == ["R-50.pkl"]
