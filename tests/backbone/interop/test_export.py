"""What an export writes, what it refuses, and that mistakes in what was written do not pass its probe."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from backbone import artifact
from backbone.errors import UserError
from backbone.inputs import InputConvention
from backbone.interop import probe
from backbone.interop.common import Files, Source
from backbone.interop.export import BLOCK, TARGETS, export, refuse, verify
from backbone.options import NetOptions
from tests.backbone.interop.conftest import BGR, CLASSES, INPUTS, net_of, source_of

STRIDED = NetOptions(depth=50, stride_in_1x1=True, width=0.25)


def edited(files: Files, name: str, old: str, new: str) -> Files:
    text = files[name].decode()
    assert old in text
    return {**files, name: text.replace(old, new).encode()}


def rewritten(files: Files, name: str, change: Callable[[dict], None]) -> Files:
    tree = yaml.safe_load(files[name])
    change(tree)
    return {**files, name: json.dumps(tree).encode()}


def swapped_kernel(files: Files) -> Files:
    tensors = load_safetensors(files["model.safetensors"])
    first = next(name for name in tensors if tensors[name].dim() == 4 and tensors[name].shape[-1] == 7)
    tensors[first] = tensors[first].flip(1).contiguous()
    return {**files, "model.safetensors": save_safetensors(tensors, {"format": "pt"})}


STRIDE, CHANNELS = "its stride lies in the other convolution", "its channels are swapped"
OTHER = "look at mean, std, the range of pixels"
ORDER = "its mean and std lie in the other order"
MISTAKES = {
    "detectron2 stride": (
        "detectron2",
        STRIDED,
        BGR,
        STRIDE,
        lambda f: edited(f, "backbone.yaml", "STRIDE_IN_1X1: true", "STRIDE_IN_1X1: false"),
    ),
    "detectron2 order": (
        "detectron2",
        STRIDED,
        BGR,
        CHANNELS,
        lambda f: edited(f, "backbone.yaml", "FORMAT: BGR", "FORMAT: RGB"),
    ),
    "detectron2 mean": (
        "detectron2",
        STRIDED,
        BGR,
        ORDER,
        lambda f: rewritten(
            f, "backbone.yaml", lambda t: [t["MODEL"][k].reverse() for k in ("PIXEL_MEAN", "PIXEL_STD")]
        ),
    ),
    "detectron2 range": (
        "detectron2",
        NetOptions(depth=18),
        INPUTS,
        OTHER,
        lambda f: rewritten(
            f, "backbone.yaml", lambda t: t["MODEL"].update(PIXEL_MEAN=list(INPUTS.mean), PIXEL_STD=list(INPUTS.std))
        ),
    ),
    "mmdetection style": (
        "mmdetection",
        STRIDED,
        BGR,
        STRIDE,
        lambda f: edited(f, "backbone.py", 'style="caffe"', 'style="pytorch"'),
    ),
    "mmdetection order": (
        "mmdetection",
        NetOptions(depth=18),
        INPUTS,
        CHANNELS,
        lambda f: edited(f, "backbone.py", "bgr_to_rgb=True", "bgr_to_rgb=False"),
    ),
    "transformers stride": (
        "transformers",
        STRIDED,
        INPUTS,
        STRIDE,
        lambda f: edited(f, "config.json", '"downsample_in_bottleneck": true', '"downsample_in_bottleneck": false'),
    ),
    "transformers channels": ("transformers", NetOptions(depth=18), INPUTS, CHANNELS, swapped_kernel),
    "timm mean": ("timm", NetOptions(depth=18), INPUTS, OTHER, lambda f: edited(f, "config.json", "0.31", "0.33")),
    "timm channels": ("timm", NetOptions(depth=18), BGR, CHANNELS, swapped_kernel),
    "torchvision std": (
        "torchvision",
        NetOptions(depth=18),
        INPUTS,
        OTHER,
        lambda f: edited(f, "preprocessing.json", "0.19", "0.229"),
    ),
    "torchvision detection mean": (
        "torchvision-detection",
        NetOptions(depth=18),
        INPUTS,
        OTHER,
        lambda f: edited(f, "detector.json", "0.55", "0.406"),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_do_not_pass_the_probe(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    to, options, inputs, says, change = MISTAKES[mistake]
    source = source_of(options, inputs)
    files = TARGETS[to].write(source)
    monkeypatch.setattr("backbone.interop.export.installed", lambda package: False)  # the way back must see it alone
    assert verify(source, to, files)
    with pytest.raises(UserError, match=rf"read back by raybone does not compute the same: C2|C3 .* {says}"):
        verify(source, to, change(files))


@pytest.mark.parametrize("to", ["torchvision", "torchvision-detection", "timm", "transformers"])
def test_the_framework_itself_is_asked_too(to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its side by its own loader must see a mistake alone, as well."""
    pytest.importorskip(to.partition("-")[0], reason="it answers here")
    source = source_of(NetOptions(depth=18))
    files = TARGETS[to].write(source)
    rows = verify(source, to, files)
    sides = {row.side for row in rows}
    assert len(sides) == 2
    assert max(row.relative for row in rows) < probe.TOLERANCE
    config = next(name for name in ("preprocessor_config.json", *files) if name in files and b"0.42" in files[name])
    wrong = edited(files, config, "0.42", "0.24")
    monkeypatch.setattr("backbone.interop.export.convert", lambda *_: pytest.fail("not to be asked"))
    monkeypatch.setitem(TARGETS, to, replace(TARGETS[to], way_back=""))
    with pytest.raises(UserError, match=rf"{to.partition('-')[0]} [\d.]+\S* does not compute the same: C2 is"):
        verify(source, to, wrong)


def test_a_lost_key_does_not_load() -> None:
    source = source_of(NetOptions(depth=18))
    files = TARGETS["timm"].write(source)
    tensors = load_safetensors(files["model.safetensors"])
    del tensors["layer3.1.bn2.running_mean"]
    with pytest.raises(UserError, match=r"1 keys missing: layer3.1.bn2.running_mean"):
        verify(source, "timm", {**files, "model.safetensors": save_safetensors(tensors)})


REFUSED = [
    (STRIDED, "torchvision", "stride in the 3x3 only"),
    (STRIDED, "torchvision-detection", "stride in the 3x3 only"),
    (STRIDED, "timm", "stride in the 3x3 only"),
    (NetOptions(depth=34, shortcut="A"), "detectron2", "no shortcuts of kind A"),
    (NetOptions(depth=34, shortcut="C"), "torchvision", "no shortcuts of kind C"),
    (NetOptions(depth=34, shortcut="none"), "transformers", "no plain nets"),
    (NetOptions(depth=50, preact=True), "mmdetection", "no pre-activation"),
    (NetOptions(net="cifar_resnet", depth=20), "timm", "no nets for CIFAR"),
    (NetOptions(depth=50, shortcut_scale=0.5), "timm", "scale neither branch"),
    (NetOptions(depth=50, norm="group"), "detectron2", "batch norm"),
    (NetOptions(depth=50, width=0.5), "timm", "no width 0.5"),
    (NetOptions(depth=18, width=0.5), "detectron2", "have 64 channels"),
    (NetOptions(depth=50, width=0.3), "mmdetection", "double from stage to stage"),
    (NetOptions(net="vgg", depth=16), "torchvision-detection", "no VGG"),
]


@pytest.mark.parametrize(("options", "to", "reason"), REFUSED, ids=lambda v: v if isinstance(v, str) else v.name)
def test_what_a_framework_cannot_have_is_refused(options: NetOptions, to: str, reason: str) -> None:
    with pytest.raises(
        UserError, match=rf"{options.name} cannot go to {to}: .*{re.escape(reason)}.*These can"
    ) as error:
        refuse(options, to)
    able = str(error.value).rpartition("These can have it: ")[2].split(", ")
    assert "onnx" in able
    assert to not in able
    if options.stride_in_1x1:
        assert able == ["transformers", "detectron2", "mmdetection", "onnx"]


def test_a_whole_export(artifact_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    done = export(str(artifact_of(NetOptions(depth=18))), "mmdetection", str(folder), license="apache-2.0")
    assert sorted(done.files) == sorted(file.name for file in folder.iterdir())
    assert done.files == ("backbone.pth", "backbone.py", BLOCK, "README.md")
    assert f"{folder}/backbone.pth" in (folder / "backbone.py").read_text()
    assert any("the classifier (fc.weight, fc.bias)" in note for note in done.notes)
    assert set(json.loads((folder / BLOCK).read_text())) == {"probe", "provenance"}


def test_nothing_is_written_unless_it_agrees(
    artifact_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = TARGETS["mmdetection"]

    def write(source: Source) -> Files:
        return edited(right.write(source), "backbone.py", "bgr_to_rgb=True", "bgr_to_rgb=False")

    wrong = replace(right, write=write)
    monkeypatch.setitem(TARGETS, "mmdetection", wrong)
    with pytest.raises(UserError, match="does not compute the same"):
        export(str(artifact_of(NetOptions(depth=18))), "mmdetection", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(artifact_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backbone.interop.export.installed", lambda package: False)
    with pytest.raises(UserError, match=r"onnx: its own side of the probe needs onnxscript and onnxruntime"):
        export(str(artifact_of(NetOptions(depth=18))), "onnx", "out")


def test_a_mean_image_gives_way_and_frozen_norms_get_counters(tmp_path: Path) -> None:
    net = net_of(NetOptions(depth=18, norm="frozen"))
    inputs = InputConvention(size=64).with_mean_image(torch.rand(3, 64, 64))
    artifact.save(tmp_path / "a", net, inputs, CLASSES, {})
    done = export(str(tmp_path / "a"), "torchvision", str(tmp_path / "out"))
    assert any("mean image gives way" in note for note in done.notes)
    weights = torch.load(tmp_path / "out/model.pth", weights_only=True)
    assert sum(name.endswith("num_batches_tracked") for name in weights) == 20
    given = json.loads((tmp_path / "out/preprocessing.json").read_text())
    assert given["mean"] == pytest.approx(list(inputs.mean))


def test_the_table_and_a_source_that_gives_less() -> None:
    source = source_of(NetOptions(depth=18))
    rows = probe.agree(source.net, source.inputs, lambda x: probe.ours(source.net, source.inputs, x), "itself")
    assert [row.stage for row in rows] == ["C2", "C3", "C4", "C5", "logits"]
    assert probe.table(rows).splitlines()[1].split() == ["itself", "C2", "0.00e+00", "0.0e+00"]
    with pytest.raises(UserError, match="half gives no C4, C5"):
        probe.agree(
            source.net,
            source.inputs,
            lambda x: dict(list(probe.ours(source.net, source.inputs, x).items())[:2]),
            "half",
        )
    with pytest.raises(UserError, match="nan of its largest value off"):
        probe.agree(
            source.net,
            source.inputs,
            lambda x: {k: v * float("nan") for k, v in probe.ours(source.net, source.inputs, x).items()},
            "broken",
        )
