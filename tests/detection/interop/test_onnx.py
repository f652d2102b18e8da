# ruff: noqa: E402  (what follows needs a package that may be absent)
"""A detector's ONNX file finds what the detector finds, in images of any size."""

import json
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle

pytest.importorskip("onnx", reason="its metadata are written with it")
onnxruntime = pytest.importorskip("onnxruntime", reason="it runs what was exported")

from detection.evaluate import detect, detect_one
from detection.interop import onnx as ours
from detection.interop.export import agree, verify
from detection.interop.source import Source
from tests.detection.interop.conftest import CLASSES, KINDS, loaded, scene

# One that shrinks, one that grows, one as it is, one that is cut by the longer side, one that is tall.
SIZES = [(192, 180), (60, 81), (96, 128), (70, 200), (210, 120)]


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k == "fpn" else pytest.mark.slow) for k in KINDS])
def test_it_finds_the_same(kind: str, tmp_path: Any) -> None:
    source = Source(loaded(KINDS[kind]), "exported")
    files = ours.write(source)
    (tmp_path / "model.onnx").write_bytes(files["model.onnx"])
    session = onnxruntime.InferenceSession(files["model.onnx"], providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == ("image", "tensor(uint8)", ["height", "width", 3])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(CLASSES.names)
    assert json.loads(about["category_ids"]) == list(CLASSES.ids)
    answer = ours.answers(tmp_path, source)
    found, masked = [], 0
    for i, (height, width) in enumerate(SIZES):
        image = scene(height, width, i)
        mine, theirs = detect_one(source.loaded, image), answer(image)
        agreement = agree(mine, theirs, (height, width), "onnx")
        found.append(agreement.found)
        assert (np.diff(theirs.scores) <= 0).all()
        assert theirs.boxes.max() > 0.9 * min(height, width)  # in the image's own pixels
        if mine.masks and agreement.others == 0:  # some are empty, and rows of one score may have changed places
            shown = [mask for mask in mine.masks if rle.area(mask)]
            assert len(shown) > len(mine) / 2
            assert rle.iou(shown, theirs.masks, [0] * len(theirs)).max(1).min() > 0.99
            masked += 1
    assert masked or "masks" not in kind
    assert min(found) > 10  # else agreement would say little
    assert len(set(detect(source.loaded, [scene(96, 128)])[0]["labels"].tolist())) >= 3


@pytest.mark.parametrize(
    "options",
    [
        {**KINDS["fpn"], "roi": {"score": 0.9999}},
        pytest.param({**KINDS["retinanet"], "score": 0.9999}, marks=pytest.mark.slow),
    ],
    ids=["fpn", "retinanet"],
)
def test_what_finds_nothing_is_compared_without_its_threshold(options: dict[str, Any]) -> None:
    source = Source(loaded(options), "exported")
    files = ours.write(source)
    assert len(detect_one(source.loaded, scene(96, 128))) == 0
    assert sum(row.found for row in verify(source, "onnx", files)) > 10
    assert len(detect_one(source.loaded, scene(96, 128))) == 0


def test_nothing_found_is_no_rows() -> None:
    source = Source(loaded({**KINDS["fpn masks"], "roi": {"score": 0.9999}}), "exported")
    session = onnxruntime.InferenceSession(ours.write(source)["model.onnx"], providers=["CPUExecutionProvider"])
    boxes, labels, scores, masks = session.run(None, {"image": np.zeros((64, 64, 3), np.uint8)})
    assert boxes.shape == (0, 4)
    assert labels.shape == scores.shape == (0,)
    assert masks.shape == (0, 28, 28)
