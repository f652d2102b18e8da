# ruff: noqa: E402  (what follows needs a package that may be absent)
"""Nets of timm become artifacts, with timm's own answers, or are refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

timm = pytest.importorskip("timm", reason="timm's own nets are the test")

from backbone import artifact
from backbone.errors import UserError
from backbone.interop import export
from backbone.interop.importing import run
from backbone.interop.options import Import
from tests.backbone.interop.conftest import shaken


def weights(folder: Path, model: str = "test_resnet", classes: int = 4, **config: Any) -> Path:
    """timm's own net, saved as timm does with the config given."""
    torch.manual_seed(0)
    net = shaken(timm.create_model(model, num_classes=classes))
    folder.mkdir(exist_ok=True)
    save_file(net.state_dict(), folder / "model.safetensors")
    if config:
        given = {"num_classes": classes, "input_size": [3, 96, 96], "interpolation": "bicubic", "crop_pct": 0.9}
        tree = {"architecture": model, "pretrained_cfg": {**given, "mean": [0.4, 0.5, 0.6], "std": [0.2] * 3, **config}}
        (folder / "config.json").write_text(json.dumps(tree))
    return folder


def bring(folder: Path, model: str = "test_resnet", **more: Any) -> Any:
    given = {"source": "timm", "model": model, "weights": str(folder), "output": str(folder / "artifact")}
    return run(Import.model_validate(given | more))


@pytest.mark.parametrize("model", ["test_resnet", "test_efficientnet", "test_convnext", "test_mambaout"])
def test_a_file_becomes_an_artifact_that_answers_as_timm_does(tmp_path: Path, model: str) -> None:
    place = weights(tmp_path / "in", model, label_names=["a", "b", "c", "d"])
    done = bring(place, model)
    assert {row.stage for row in done.agreements} == {"C2", "C3", "C4", "C5", "logits"}
    net, inputs, block = artifact.load(place / "artifact")
    assert (inputs.mean, inputs.std, inputs.size, inputs.crop_pct) == ((0.4, 0.5, 0.6), (0.2,) * 3, 96, 0.9)
    assert block["classes"] == ["a", "b", "c", "d"]
    assert (block["net"]["library"], block["net"]["version"]) == ("timm", timm.__version__)
    pixels = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    x = (pixels / 255 - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / 0.2
    # The artifact is a folder of timm's at once, and timm reads it without a converter.
    theirs = timm.create_model(f"local-dir:{place / 'artifact'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(net.classify(inputs.normalize(pixels)), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["pretrained_cfg"].update(mean=[0.45, 0.5, 0.6]), "does not answer its probe"),
        (lambda c: c["raybone"].update(channel_order="BGR"), "does not answer its probe"),
        (lambda c: c["raybone"]["net"].update(version="0.9.1"), "pip install timm==0.9.1"),
        (lambda c: c["raybone"]["net"].update(model="test_byobnet"), "weights are not those of"),
        (lambda c: c["raybone"]["net"].update(model="hf-hub:a/b"), "cannot be read"),
        (lambda c: c["raybone"]["net"]["arguments"].update(checkpoint_path="x"), "cannot be read"),
    ],
)
def test_a_changed_config_does_not_load(tmp_path: Path, change: Any, says: str) -> None:
    place = weights(tmp_path / "in")
    bring(place)
    config = json.loads((place / "artifact" / "config.json").read_text())
    change(config)
    (place / "artifact" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=says):
        artifact.load(place / "artifact")


def test_pixels_of_timm_and_of_the_user(tmp_path: Path) -> None:
    place = weights(tmp_path / "in")
    done = bring(place)
    assert done.found.inputs.mean == (0.5, 0.5, 0.5)  # as timm registers it
    assert any("as timm says of test_resnet and its own weights" in note for note in done.notes)
    done = bring(place, mean=[0.1, 0.2, 0.3], std=[0.3, 0.3, 0.3], size=64)
    assert (done.found.inputs.mean, done.found.inputs.size) == ((0.1, 0.2, 0.3), 64)
    weights(place, std=[0.2, 0.2, 0.2])
    with pytest.raises(UserError, match=r"mean: \(0.1, 0.2, 0.3\) is given, the config beside the weights says \(0.4"):
        bring(place, mean=[0.1, 0.2, 0.3])


def test_keys_are_accounted_for(tmp_path: Path) -> None:
    place = weights(tmp_path / "in")
    state = timm.create_model("test_resnet", num_classes=4).state_dict()
    file = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, file)
    done = bring(file, output=str(tmp_path / "out"), entry="state_dict", prefix=["module."])
    torch.testing.assert_close(done.found.net.model.state_dict(), state)
    with pytest.raises(UserError, match=r"keys missing: .* It lies behind a prefix: --prefix module\., and"):
        bring(file, output=str(tmp_path / "out"), entry="state_dict")
    with pytest.raises(UserError, match=r"holds more than tensors: .*epoch.*\n.* --prefix module\. --entry state_dict"):
        bring(file, output=str(tmp_path / "out"))
    headless = {k: v for k, v in state.items() if not k.startswith("fc.")}
    torch.save(headless, file)
    done = bring(file, output=str(tmp_path / "out"))
    assert (done.found.net.num_classes, done.found.has_head, done.found.classes) == (1, False, ("none",))
    torch.save({k: v for k, v in state.items() if k != "layer2.0.conv1.weight"}, file)
    with pytest.raises(UserError, match=r"1 keys missing: layer2.0.conv1.weight"):
        bring(file, output=str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"not the weights of timm's test_byobnet: .* keys missing: .*; .* keys that"):
        bring(place, "test_byobnet")
    weights(place, mean=[0.5] * 3)
    with pytest.raises(UserError, match=r"config\.json is of test_resnet; give --model test_resnet"):
        bring(place, "test_byobnet")


def test_a_checkpoint_of_timms_script_is_told_what_to_type(tmp_path: Path) -> None:
    net = shaken(timm.create_model("resnet18d", num_classes=3))
    file = tmp_path / "model_best.pth.tar"
    copy = {key: value + 1 for key, value in net.state_dict().items()}
    saved = {"epoch": 3, "arch": "resnet18d", "state_dict": net.state_dict(), "state_dict_ema": copy, "metric": 70.0}
    torch.save(saved, file)
    for model in ("", "resnet18d"):
        with pytest.raises(UserError) as error:
            bring(file, model, output=str(tmp_path / "out"))
        asked = (
            f"python jobs/import.py --source timm --weights {file} --output {tmp_path}/out --model resnet18d --entry"
        )
        told = [" ".join(line.split()) for line in str(error.value).splitlines()[1:]]
        words = [sorted(line.split(" --")) for line in told if line.startswith("python")]
        assert words == [sorted(f"{asked} {entry}".split(" --")) for entry in ("state_dict", "state_dict_ema")]
    torch.save(saved | {"arch": "nobodys_net"}, file)
    with pytest.raises(UserError, match=r"timm's nets come in by --source timm --model NAME$"):
        bring(file, "", output=str(tmp_path / "out"))


def test_another_net_is_not_written_over_one_that_is_there(tmp_path: Path) -> None:
    place = weights(tmp_path / "in")
    bring(place)
    before = (place / "artifact" / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"artifact: holds another net, .*; give another --output"):
        bring(weights(tmp_path / "other", "test_convnext"), "test_convnext", output=str(place / "artifact"))
    assert (place / "artifact" / "config.json").read_bytes() == before
    bring(place)  # the same once more


def test_swin_reads_any_size_and_refuses_to_be_kept_at_one(tmp_path: Path) -> None:
    given = {"source": "timm", "model": "swin_tiny_patch4_window7_224", "random": True, "output": str(tmp_path / "out")}
    done = run(Import.model_validate(given | {"arguments": {"embed_dim": 24}}))
    assert done.found.net.options.arguments == {"embed_dim": 24, "strict_img_size": False}
    assert max(row.relative for row in done.agreements) < 1e-5
    export.export(str(tmp_path / "out"), "timm", str(tmp_path / "timm"))
    again = bring(tmp_path / "timm", given["model"])
    assert again.found.net.options == done.found.net.options  # the arguments lie in its config
    with pytest.raises(UserError, match=r"do not run one after the other on images of 64x96 pixels.*height"):
        run(Import.model_validate(given | {"arguments": {"embed_dim": 24, "strict_img_size": True}}))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"source": "torchvision", "model": "resnet50"}, "give --source timm"),
        ({"source": "timm", "random": True, "weights": ""}, "name one by --model"),
        ({"source": "timm", "model": "resnet50", "random": True}, "give one of them"),
        ({"source": "timm", "model": "resnet50", "stride_in_1x1": "true"}, "of raybone's own nets"),
    ],
)
def test_options_that_do_not_go_together(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Import.model_validate({"weights": "x", "output": "y"} | given)


def test_where_it_can_go(tmp_path: Path) -> None:
    place = weights(tmp_path / "in", "test_efficientnet", mean=[0.3, 0.4, 0.5])
    bring(place, "test_efficientnet")
    with pytest.raises(UserError, match=r"cannot go to detectron2: it has none of timm's nets .* timm, onnx"):
        export.export(str(place / "artifact"), "detectron2", str(tmp_path / "out"))
    done = export.export(str(place / "artifact"), "timm", str(tmp_path / "timm"))
    assert all(row.relative < 1e-4 for row in done.agreements)
    again = bring(tmp_path / "timm", "test_efficientnet")
    torch.testing.assert_close(again.found.net.state_dict(), artifact.load(place / "artifact")[0].state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "channels"),
    [
        ("resnext50_32x4d", [256, 512, 1024, 2048]),
        ("resnet50d", [256, 512, 1024, 2048]),
        ("seresnet50", [256, 512, 1024, 2048]),
        ("regnety_016", [48, 120, 336, 888]),
        ("convnext_tiny", [96, 192, 384, 768]),
        ("mobilenetv3_large_100", [24, 40, 112, 960]),
        ("swin_tiny_patch4_window7_224", [96, 192, 384, 768]),
    ],
)
def test_nets_that_people_use(tmp_path: Path, model: str, channels: list[int]) -> None:
    """Whole, as timm's own answers are, from image to logits; a wrong mean in the artifact does not load."""
    done = run(Import(source="timm", model=model, random=True, output=str(tmp_path)))
    assert [stage.channels for stage in done.found.net.stages.values()] == channels
    assert max(row.relative for row in done.agreements) < 1e-5
    assert artifact.load(tmp_path)[0].options == done.found.net.options
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"]["mean"][0] += 0.05
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="does not answer its probe"):
        artifact.load(tmp_path)


def test_a_net_of_the_same_keys_is_not_taken_for_another(tmp_path: Path) -> None:
    """Its blur has no parameters, so that its keys are those of ResNet-50."""
    place = weights(tmp_path / "in", "resnetaa50", label_names=["a", "b", "c", "d"])
    with pytest.raises(UserError, match=r"is of resnetaa50; .*give --model resnetaa50, which timm builds"):
        bring(place, model="")


@pytest.mark.parametrize(
    ("given", "says"),
    [({"crop_pct": 87.5}, "crop_pct 87.5: a share"), ({"crop_pct": 1.05}, "crop_pct 1.05: a share")],
)
def test_sizes_that_show_scraps_of_images_are_refused(tmp_path: Path, given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        bring(weights(tmp_path / "in"), **given)
