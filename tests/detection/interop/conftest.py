"""Detectors that find plenty in any image: random ones whose heads tell places and classes apart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backbone.inputs import InputConvention
from backbone.nets import build as build_net
from backbone.options import NetOptions
from detection import artifact
from detection.data.contract import Categories
from detection.data.loader import pad
from detection.data.synthetic import SyntheticScenes
from detection.evaluate import prepared
from detection.nets import Detector, Rcnn, Retina, build
from detection.options import detector_options

CLASSES = Categories(("ant", "bee", "cat", "dog", "elk"), (3, 1, 2, 9, 7))
INPUTS = InputConvention(size=96, channel_order="BGR", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
LONGER = 150
SMALL = {"norm": "frozen", "freeze_at": 0}
FPN = {"kind": "fpn", "anchor_sizes": [8, 16, 24, 48, 64]}
NARROW = {"channels": 16, "hidden": 32}
KINDS: dict[str, dict[str, Any]] = {
    "fpn": {**FPN, **NARROW},
    "fpn masks": {**FPN, **NARROW, "masks": True},
    "fpn context": {**FPN, **NARROW, "context": True},
    "c4 masks": {"kind": "c4", "masks": True, "anchor_sizes": [16, 32, 64]},
    "c4 of 2015": {"kind": "c4", "anchor_sizes": [16, 32, 64], "roi": {"pooling": "max", "size": 7}},
    "retinanet": {"kind": "retinanet", "channels": 16, "anchor_sizes": [8, 16, 24, 48, 64]},
}


def scene(height: int, width: int, number: int = 0) -> np.ndarray:
    """A rendered image uint8 [height, width, 3], with edges and gradients as photographs have them."""
    return np.ascontiguousarray(SyntheticScenes(0, 8, max(height, width), (2, 4), "val").image(number)[:height, :width])


def loaded(options: dict[str, Any], inputs: InputConvention = INPUTS, **net: Any) -> artifact.Loaded:
    """A detector as `artifact.load` gives it, of a net whose norms have statistics of their own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = build_net(NetOptions.model_validate({"depth": 18, "width": 0.125} | net), 4)
        for module in body.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
        detector = build(detector_options(SMALL | options), body, len(CLASSES)).eval()
        spread(detector, inputs)
    return artifact.Loaded(detector, inputs, CLASSES, LONGER, {"provenance": {}})


@torch.no_grad()
def spread(detector: Detector, inputs: InputConvention) -> None:
    """Centre and scale the last layers, so that scores and boxes differ from place to place."""
    pixels, sizes = pad([scene(96, 128)])
    maps = detector.backbone(prepared(inputs, {"images": pixels, "sizes": sizes}))
    if isinstance(detector, Rcnn):
        corners = torch.rand(100, 2) * torch.tensor([80.0, 60])
        boxes = torch.cat([corners, corners + 8 + torch.rand(100, 2) * 36], 1)
        predictor: Any = detector.roi_heads.box_predictor
        vectors = detector.roi_heads.vectors(maps, [boxes], [(96, 128)])
        _centre(predictor.cls_score, vectors, 2.0, 0)
        _centre(predictor.bbox_pred, vectors, 0.5, 0)
        predictor.cls_score.bias[0] += 2
        head: Any = detector.rpn.head
        level = next(iter(maps.values()))
        _centre(head.cls_logits, head.conv(level), 1.0, 0)
    elif isinstance(detector, Retina):
        level = maps["C3"]
        head = detector.head
        for part, last, deviation, bias in (
            (head.classification_head, head.classification_head.cls_logits, 1.5, -4.0),
            (head.regression_head, head.regression_head.bbox_reg, 0.5, 0.0),
        ):
            for layer in part.conv:
                layer[0].weight *= 8
            _centre(last, part.conv(level), deviation, bias)


def _centre(layer: Any, given: Tensor, deviation: float, mean: float) -> None:
    layer.weight *= deviation / layer(given).transpose(0, 1).flatten(1).std(1).mean()
    layer.bias += mean - layer(given).transpose(0, 1).flatten(1).mean(1)


@pytest.fixture(scope="session")
def artifact_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`artifact_of("fpn", depth=50)`: the folder of such a detector's artifact."""

    def make(kind: str, **net: Any) -> Path:
        made, folder = loaded(KINDS[kind], **net), tmp_path_factory.mktemp("detector")
        artifact.save(folder, made.detector, INPUTS, CLASSES, (INPUTS.size, LONGER), {"made": "here"})
        return folder

    return make
