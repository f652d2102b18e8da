"""A localiser that trains in seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backbone import artifact
from backbone.cli import validate
from backbone.data.synthetic import CLASSES
from backbone.inputs import InputConvention
from backbone.nets import build
from backbone.options import NetOptions
from detection.localisation.recipe import Localise

TREE: dict[str, Any] = {
    "name": "where",
    "localiser": {"norm": "trainable", "channels": 8, "anchor_sizes": [16, 24, 36], "anchor_ratios": [1.0]},
    "data": {"train_images": 48, "val_images": 14, "workers": 0, "augment": {"kind": "cifar"}},
    "optim": {"batch": 16, "micro_batch": 8, "lr": 0.05, "lr_batch": 16},
    "schedule": {"kind": "cosine", "unit": "iterations", "total": 9},
    "compute": {"precision": "fp32"},
    "scaling": {"num_workers": 0},
    "scales": [224, 256],
    "eval_batch": 4,
    "run": {"log_every": 3, "checkpoint_every": 3, "eval_every": 2},
}

Make = Callable[..., Localise]


def write_classifier(url: Path, classes: tuple[str, ...] = CLASSES, depth: int = 18) -> str:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        inputs = InputConvention(size=48, crop_pct=1.0, mean=(0.5, 0.4, 0.3))
        net = build(NetOptions(net="resnet", depth=depth, width=0.125), len(classes))
        artifact.save(url, net, inputs, classes, {"train_images": 0})
    return str(url)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Artifact of a small net of random weights for 12 classes."""
    return write_classifier(tmp_path_factory.mktemp("classifier") / "artifact")


@pytest.fixture
def where(tmp_path: Path, classifier: str) -> Make:
    """`where({"optim.lr": 0.1}, ...)`: a recipe of 9 steps on 48 scenes, stored under tmp_path/runs."""

    def make(overrides: dict[str, Any] | None = None) -> Localise:
        changes = {"backbone": classifier, "run.storage": str(tmp_path / "runs"), **(overrides or {})}
        return validate(Localise, {k: dict(v) if isinstance(v, dict) else v for k, v in TREE.items()}, "t", changes)

    return make
