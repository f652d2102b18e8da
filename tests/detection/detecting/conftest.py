"""A small Mask R-CNN of random weights, which finds something everywhere."""

import copy
from pathlib import Path

import pytest
import torch

from backbone.inputs import InputConvention
from backbone.nets import build as build_backbone
from backbone.options import NetOptions
from detection import artifact
from detection.data.contract import Categories
from detection.nets import build
from detection.options import DetectorOptions
from tests.detection.conftest import SMALL

CATEGORIES = Categories(("cat", "traffic light", "a/b"), (7, 3, 20))


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of its artifact."""
    options = DetectorOptions.model_validate({**copy.deepcopy(SMALL["detector"]), "masks": True})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_backbone(NetOptions(net="resnet", depth=18, width=0.125), 3)
        made = build(options, net, len(CATEGORIES))
    folder = tmp_path_factory.mktemp("masks") / "artifact"
    artifact.save(folder, made, InputConvention(size=64), CATEGORIES, (64, 96), {})
    return folder
