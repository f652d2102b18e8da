"""A detector as torchvision's own constructors have it: loaded strictly, it finds the same; and what does not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from backbone.inputs import InputConvention
from backbone.nets import build as build_net
from backbone.options import NetOptions
from detection import artifact
from detection.interop import torchvision
from detection.interop.export import verify
from detection.interop.source import Source
from detection.nets import build
from detection.options import detector_options
from tests.detection.interop.conftest import CLASSES, FPN, INPUTS, loaded

FEW = {"rpn": {"pre_nms_test": 60, "post_nms_test": 40}, "roi": {"detections": 20}}
KINDS: dict[str, dict[str, Any]] = {
    "mask": {**FPN, **FEW, "masks": True},
    "retinanet": {"kind": "retinanet", "detections": 20, "anchor_sizes": [8, 16, 24, 48, 64]},
    "retinanet v2": {"kind": "retinanet", "detections": 20, "p6": "C5", "head_norm": "group", "box_loss": "giou"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_loads_strictly_and_finds_the_same(kind: str, tmp_path: Path) -> None:
    source = Source(loaded(KINDS[kind], INPUTS, depth=50, width=1.0), str(tmp_path))
    files = torchvision.write(source)
    rows = list(verify(source, "torchvision-detection", files))
    assert all(row.found >= 10 for row in rows)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    names: dict[str, Any] = {}
    exec(torchvision.snippet(source), names)
    assert len(names["found"]) == 1
    assert any("the channels of the first kernels were reversed" in note for note in torchvision.notes(source))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mask", "retinanet"])
def test_what_finds_nothing_is_compared_without_its_threshold(kind: str) -> None:
    high = {"score": 0.9999}
    options = KINDS[kind] | (high if kind == "retinanet" else {"roi": {**FEW["roi"], **high}})
    source = Source(loaded(options, INPUTS, depth=50, width=1.0), "exported")
    assert sum(row.found for row in verify(source, "torchvision-detection", torchvision.write(source))) >= 10


def source_of(options: dict[str, Any], **net: Any) -> Source:
    """On the meta device: nothing of it is computed."""
    with torch.device("meta"):
        body = build_net(NetOptions.model_validate({"depth": 50} | net), 3)
        norm = "group" if net.get("norm") == "group" else "frozen"
        made = build(detector_options({"norm": norm, "freeze_at": 0} | options), body, len(CLASSES))
    return Source(artifact.Loaded(made, InputConvention(size=96), CLASSES, 150, {}), "exported")


RETINA = {"kind": "retinanet"}


@pytest.mark.parametrize(
    ("options", "net", "says"),
    [
        ({}, {"depth": 101}, "ResNet-50 alone, and this is resnet101"),
        ({}, {"shortcut": "none"}, "ResNet-50 alone, and this is plain50"),
        ({}, {"stride_in_1x1": True}, "stride in the 3x3 only"),
        ({}, {"width": 0.5}, "no width 0.5"),
        ({}, {"norm": "group"}, "batch norm, and this net group"),
        ({}, {"preact": True}, "no pre-activation"),
        ({"channels": 128}, {}, "256 channels, and detector.channels is 128"),
        ({"kind": "c4"}, {}, "no detector on C4; train one of kind fpn"),
        ({"context": True}, {}, "train without detector.context"),
        ({"hidden": 512}, {}, "detector.hidden is 512"),
        ({"rpn": {"channels": 512}}, {}, "detector.rpn.channels is 512"),
        ({"rpn": {"min_size": 16}}, {}, "detector.rpn.min_size is 16"),
        ({"roi": {"size": 14}}, {}, "detector.roi.size is 14"),
        ({"roi": {"canonical": 112}}, {}, "detector.roi.canonical 112"),
        ({**RETINA, "p6": "C5"}, {}, "here it is C5 and none"),
        ({**RETINA, "p6": "C5", "head_norm": "group", "octaves": 2}, {}, "_v2 takes no other anchors"),
    ],
)
def test_what_its_constructors_lack_is_named(options: dict[str, Any], net: dict[str, Any], says: str) -> None:
    assert says in torchvision.obstacle(source_of(options, **net))


@pytest.mark.parametrize("options", [{}, {"masks": True}, RETINA, {**RETINA, "p6": "C5", "head_norm": "group"}])
def test_what_they_have_is_not_refused(options: dict[str, Any]) -> None:
    assert torchvision.obstacle(source_of(options)) == ""


def test_what_only_training_sees_is_said() -> None:
    notes = torchvision.notes(source_of({"rpn": {"beta": 1.0, "inside_only": True}}))
    assert "Left out, since torchvision trains otherwise: detector.rpn.beta, detector.rpn.inside_only." in notes
