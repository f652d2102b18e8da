"""What does not go together is refused before anything is trained or written, with what to type instead."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from backbone import artifact as backbones
from backbone.cli import validate
from backbone.errors import UserError
from backbone.evaluate.evaluation import prepare as prepare_backbones
from backbone.evaluate.options import BackboneEvaluation
from backbone.interop.importing import run as bring
from backbone.interop.options import Import
from detection import artifact
from detection.data.contract import Categories
from detection.detecting.options import Detecting
from detection.detecting.run import detect_all
from detection.evaluate import prepare as prepare_evaluation
from detection.finetune import prepare
from detection.nets import build
from detection.options import detector_options
from detection.recipe import DetectorEvaluation
from tests.detection.conftest import SMALL, Make, coco, write_backbone, write_scenes
from tests.detection.localisation.conftest import write_classifier

CIFAR = {"net": "cifar_resnet", "depth": 8, "width": 1, "shortcut": "A"}


def quiet(text: str) -> None:
    pass


@pytest.fixture
def detector(small: Make, tmp_path: Path, backbone: str) -> str:
    """Folder of a detector of random weights, of two classes that no scene has."""
    net, inputs, _ = backbones.load(backbone)
    made = build(detector_options(SMALL["detector"]), net, 2)
    told = {"recipe": small().model_dump(mode="json")}
    artifact.save(tmp_path / "detector", made, inputs, Categories(("cat", "dog"), (1, 2)), (64, 64), told)
    return str(tmp_path / "detector")


def test_a_net_without_stage_information(tmp_path: Path) -> None:
    """One that timm builds, which says nothing of its stages."""
    models = pytest.importorskip("timm.models", reason="timm builds the net")

    def stageless(pretrained: bool = False, num_classes: int = 1, **more: Any) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, 4), torch.nn.Flatten(), torch.nn.LazyLinear(num_classes))

    stageless.__module__ = "timm.models.resnet"  # whose nets are listed there
    models.register_model(stageless)
    with pytest.raises(UserError) as error:
        bring(Import(source="timm", model="stageless", random=True, output=str(tmp_path / "net")))
    assert str(error.value) == (
        "model stageless: timm has no stage information (feature_info) for it, by which a backbone is cut up; "
        "name a net that has it, such as --model resnet50d"
    )
    assert not (tmp_path / "net").exists()


HEADS: list[tuple[dict[str, Any], str]] = [
    (
        {"kind": "c4", "anchor_sizes": [8]},
        "detector.kind c4: cifar_resnet8 has no C5 to run on regions of C4; use kind fpn",
    ),
    (
        {"kind": "retinanet", "channels": 16},
        "detector.kind retinanet: cifar_resnet8 has no C5 to make P3 to P7 of; it has C2, C3, C4; use kind fpn",
    ),
    (
        {"channels": 16, "anchor_sizes": [8, 16, 24, 32, 48]},
        "detector.anchor_sizes has 5 sizes; kind fpn on cifar_resnet8 needs 4, one for each of its 3 stages and "
        "one for the level above",
    ),
    ({"kind": "semantic", "freeze_at": 5}, "detector.freeze_at 5: cifar_resnet8 has 4 parts"),
]


@pytest.mark.parametrize(("head", "says"), HEADS, ids=["c4", "retinanet", "fpn", "semantic"])
def test_a_head_that_does_not_fit(small: Make, tmp_path: Path, head: dict[str, Any], says: str) -> None:
    chosen = {
        "backbone": write_backbone(tmp_path / "cifar", **CIFAR),
        "detector": {"norm": "frozen", "freeze_at": 0, **head},
    }
    with pytest.raises(UserError) as error:
        prepare(small(chosen), quiet)
    assert str(error.value).startswith(says)
    assert not (tmp_path / "runs").exists()


def test_a_missing_extra(small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="timm builds the net")
    wanted = Import(source="timm", model="test_resnet", random=True, output=str(tmp_path / "net"))
    bring(wanted)
    monkeypatch.setitem(sys.modules, "timm", None)
    says = "nets of timm need it, and it is not installed: uv sync --inexact --extra timm, or pip install 'timm>="
    for asked in (
        lambda: bring(wanted),
        lambda: prepare(small({"backbone": str(tmp_path / "net")}), quiet),
    ):
        with pytest.raises(UserError) as error:
            asked()
        assert says in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_classes_that_match_by_no_name(small: Make, detector: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        prepare(small({"backbone": "", "from_detector": detector}), quiet)
    said = str(error.value)
    assert said.startswith(
        f"from_detector {detector}: none of its classes (cat, dog) is called as one of data.train (disc-stripes, "
    )
    assert said.endswith("--class_names.disc-stripes cat, or begin their heads anew, --new_heads true")
    assert not (tmp_path / "runs").exists()


def test_an_empty_folder(detector: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError) as error:
        detect_all(Detecting(detector=detector, images=str(empty), output=str(tmp_path / "out")), quiet)
    assert str(error.value).startswith(f"{empty}: no image in this folder or below it. Their names must end in .jpg")
    assert "--images takes a folder of images, a COCO list" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written(small: Make, detector: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place, scenes = str(tmp_path / "file/out"), write_scenes(tmp_path / "data", "val", 6, (7, 3))
    data = coco(scenes, scenes)
    judged = {"detector": detector, "output": place, "data": {name: data[name] for name in ("source", "val", "cache")}}
    scene = {"source": "synthetic", "val_images": 2, "size": 48}
    classes = {"backbone": (write_classifier(tmp_path / "classifier"),), "output": place, "data": scene}
    config = Path(detector, "config.json")
    tree = json.loads(config.read_text())
    tree["raybone_detector"]["categories"]["names"] = ["blue", "red"]  # as the scenes'
    config.write_text(json.dumps(tree))
    cases: list[tuple[Callable[[], Any], str, str]] = [
        (lambda: prepare(small({"run.storage": place}), quiet), f"run.storage {place}/small cannot", "run.storage"),
        (
            lambda: detect_all(Detecting(detector=detector, images=str(scenes), output=place), quiet),
            f"{place}: cannot be written (Not a directory)",
            "output",
        ),
        (
            lambda: prepare_evaluation(validate(DetectorEvaluation, judged, "t")),
            f"output {place} cannot be written",
            "output",
        ),
        (
            lambda: prepare_backbones(validate(BackboneEvaluation, classes, "t"), quiet),
            f"output {place} cannot be written",
            "output",
        ),
    ]
    for asked, begins, option in cases:
        with pytest.raises(UserError) as error:
            asked()
        assert str(error.value).startswith(begins)
        assert f"ame another: --{option} FOLDER" in str(error.value)
