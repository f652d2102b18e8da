"""Exports of detectors as a whole: what is written, what is refused, and that another detector does not pass."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backbone.errors import UserError
from backbone.inputs import InputConvention
from detection.detections import Detections
from detection.interop import export as exporting
from detection.interop.export import TARGETS, agree, export, is_detector
from detection.interop.source import Source

WIDE = {"width": 1.0, "depth": 50}
RGB = InputConvention(size=96, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def detections(boxes: list[list[float]], labels: list[int], scores: list[float]) -> Detections:
    ids = np.zeros(len(labels), np.int64)
    one = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(np.zeros(1, np.int64), ids, np.array(labels), one, np.array(scores, np.float32), None)


def test_agreement_is_of_the_same_boxes_whatever_their_order() -> None:
    boxes = [[0.0, 0, 10, 10], [5, 5, 20, 20], [5, 5, 20, 20]]
    ours = detections(boxes, [1, 1, 2], [0.9, 0.8, 0.8])
    swapped = detections([boxes[0], boxes[2], boxes[1]], [1, 2, 1], [0.9, 0.800001, 0.8])
    found = agree(ours, swapped, (20, 20), "onnx")
    assert (found.found, found.others, found.boxes) == (3, 0, 0)
    assert 0 < found.scores < 2e-6
    for other in (
        detections(boxes, [1, 1, 1], [0.9, 0.8, 0.8]),
        detections(boxes, [1, 1, 2], [0.9, 0.8, 0.81]),
        detections([boxes[0], boxes[1], [5, 5, 20, 20.01]], [1, 1, 2], [0.9, 0.8, 0.8]),
        detections(boxes[:2], [1, 1], [0.9, 0.8]),
    ):
        with pytest.raises(
            UserError, match="does not find the same: of 3 detections in an image of 20 x 20 pixels it has 2"
        ):
            agree(ours, other, (20, 20), "onnx")
    many = detections(boxes * 34, [1, 1, 2] * 34, [0.9] * 102)
    fewer = detections((boxes * 34)[:100], ([1, 1, 2] * 34)[:100], [0.9] * 100)
    assert agree(many, fewer, (20, 20), "onnx").others == 2
    assert agree(detections([], [], []), detections([], [], []), (20, 20), "onnx").found == 0


def test_kinds_are_told_apart(artifact_of: Callable[..., Path], backbone: str, tmp_path: Path) -> None:
    made = artifact_of("fpn")
    assert is_detector(str(made))
    assert not is_detector(backbone)
    assert not is_detector(str(tmp_path))
    with pytest.raises(
        UserError, match=r"is a detector, and timm takes backbones alone\. Detectors go to onnx and torchvision-"
    ):
        export(str(made), "timm", str(tmp_path / "out"))
    says = "on resnet18, width 0.125 cannot go to torchvision-detection: its constructors have ResNet-50 alone"
    with pytest.raises(UserError, match=says):
        export(str(made), "torchvision-detection", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(artifact_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detection.interop.export.installed", lambda package: False)
    with pytest.raises(
        UserError, match="needs onnx and onnxruntime: uv sync --inexact --extra onnx, or pip install 'onnx"
    ):
        export(str(artifact_of("fpn")), "onnx", "out")


def test_a_whole_export(artifact_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason="it is written and run")
    made, out = artifact_of("fpn"), tmp_path / "out"
    done = export(str(made), "onnx", str(out), license="apache-2.0")
    assert (
        sorted(done.files) == sorted(file.name for file in out.iterdir()) == ["README.md", "model.onnx", "raybone.json"]
    )
    assert len(done.agreements) == 2
    assert all(row.found >= 10 and row.others <= 2 for row in done.agreements)
    card = (out / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert str(done.agreements[0]) in card
    assert done.snippet in card
    assert json.loads((out / "raybone.json").read_text())["provenance"]["made"] == "here"
    names: dict[str, Any] = {}
    exec(done.snippet, names)
    assert names["found"].keys() == {"boxes", "labels", "scores"}

    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write export"):
        export(str(made), "onnx", str(tmp_path / "file"))


def test_nothing_is_written_unless_it_agrees(
    artifact_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detector with another mean stands in for a wrong graph."""
    pytest.importorskip("onnxruntime", reason="it runs what is written")
    right = TARGETS["onnx"]

    def write(source: Source) -> dict[str, bytes]:
        inputs = replace(source.loaded.inputs, mean=(0.45, 0.4, 0.3))
        return right.write(replace(source, loaded=source.loaded._replace(inputs=inputs)))

    monkeypatch.setitem(exporting.TARGETS, "onnx", replace(right, write=write))
    with pytest.raises(UserError, match="onnx does not find the same: of "):
        export(str(artifact_of("fpn")), "onnx", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
