"""A small backbone, a detector that trains in seconds, and annotated scenes of several sizes on disk."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from backbone import artifact
from backbone.cli import validate
from backbone.inputs import InputConvention
from backbone.nets import build
from backbone.options import NetOptions
from backbone.training.world import World
from detection.data.synthetic import SyntheticScenes
from detection.recipe import Finetune

ALONE = World(0, 1, torch.device("cpu"))
Make = Callable[..., Finetune]

SMALL: dict[str, Any] = {
    "name": "small",
    "detector": {
        "norm": "frozen",
        "freeze_at": 0,
        "channels": 16,
        "hidden": 32,
        "anchor_sizes": [8, 16, 24, 32, 48],
        "anchor_ratios": [1.0],
        "rpn": {"batch": 32, "pre_nms_train": 50, "pre_nms_test": 50, "post_nms_train": 30, "post_nms_test": 20},
        "roi": {"canonical": 32, "batch": 16, "detections": 5, "score": 0.01},
    },
    "data": {
        "train_images": 32,
        "val_images": 10,
        "render": 64,
        "objects": [1, 2],
        "shorter_side": [64],
        "longer_side": 64,
        "workers": 0,
    },
    "optim": {"batch": 8, "micro_batch": 4, "lr": 0.02, "lr_batch": 8},
    "schedule": {"kind": "cosine", "unit": "iterations", "total": 12},
    "compute": {"precision": "fp32"},
    "scaling": {"num_workers": 0},
    "run": {"log_every": 4, "checkpoint_every": 3, "eval_every": 2},
}
SIZES = (64, 80, 96, 112)
NAMES, COLOURS = ("blue", "red", "green"), ((30, 60, 220), (220, 40, 30), (20, 200, 60))


def write_backbone(url: Path, seed: int = 0, **net: Any) -> str:
    """A backbone artifact of random weights, its input convention no default, so that who ignores it is seen."""
    options = NetOptions(**{"net": "resnet", "depth": 18, "width": 0.125, **net})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inputs = InputConvention(size=64, channel_order="BGR", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
        artifact.save(url, build(options, 3), inputs, ("a", "b", "c"), {"train_images": 0})
    return str(url)


def write_scenes(root: Path, split: str, count: int, ids: tuple[int, ...] = (7, 3, 20)) -> Path:
    """Rendered scenes of eleven sizes as a COCO data set; returns the folder of images.

    `ids` are the numbers of the classes blue, red and green, or of the first of them, then without the others' objects.
    """
    folder = root / split
    folder.mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        width = SIZES[i % len(SIZES)]
        height = width - i % 3 * 8
        scenes = SyntheticScenes(0, count, width, (1, 2), split)
        image, objects = scenes.image(i)[:height], scenes.objects(i)
        images.append({"id": 100 - i, "file_name": f"{i}.jpg", "height": height, "width": width})
        for box, label in zip(objects.boxes.tolist(), objects.labels.tolist(), strict=True):
            x, y, x2, y2 = map(int, (*box[:3], min(box[3], height)))
            if label % 3 >= len(ids) or y2 - y < 6:
                continue
            image[y:y2, x:x2] = COLOURS[label % 3]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 - i,
                    "category_id": ids[label % 3],
                    "bbox": [x, y, x2 - x, y2 - y],
                    "area": (x2 - x) * (y2 - y),
                    "iscrowd": 0,
                    "segmentation": [[x, y, x2, y, x2, y2, x, y2]],
                }
            )
        # PNG inside, whatever the name: what is read is what was drawn.
        (folder / f"{i}.jpg").write_bytes(cv2.imencode(".png", image[:, :, ::-1])[1].tobytes())
    categories = [{"id": id_, "name": name} for id_, name in zip(ids, NAMES, strict=False)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(tree))
    return folder


def coco(train: Path, val: Path, **fields: Any) -> dict[str, Any]:
    """The `data:` section that reads what `write_scenes` has written."""
    places = {"train": str(train), "val": str(val), "cache": str(train.parent / "cache")}
    return {"source": "coco", **places, "shorter_side": [64], "longer_side": 96, "workers": 0} | fields


def recipe(storage: Path, backbone: str, overrides: dict[str, Any] | None = None) -> Finetune:
    """The small recipe of 12 steps on 32 rendered scenes, in two micro-batches a step."""
    changes = {"backbone": backbone, "run.storage": str(storage), **(overrides or {})}
    return validate(Finetune, copy.deepcopy(SMALL), "small", changes)


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a small ResNet-18's artifact."""
    return write_backbone(tmp_path_factory.mktemp("backbone") / "artifact")


@pytest.fixture
def small(tmp_path: Path, backbone: str) -> Make:
    """`small({"optim.lr": 0.1}, ...)`: see `recipe`; stored under tmp_path/runs."""
    return lambda overrides=None: recipe(tmp_path / "runs", backbone, overrides)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, backbone: str) -> Path:
    """A finished run: 80 steps on 24 scenes of several sizes, evaluated on the same, so that AP is far from 0.

    A high rate, with the gradient clipped against a blow-up of the first steps, and no mirror images to learn besides:
    AP comes out above 0.2 whatever the seed and the CPU's rounding.
    """
    from detection.finetune import finetune, prepare

    root = tmp_path_factory.mktemp("trained")
    images = write_scenes(root / "data", "train", 24)
    changes = {
        "data": coco(images, images, augment={"flip": 0.0}),
        "detector.norm": "trainable",
        "detector.roi.score": 0.05,
        "detector.channels": 32,
        "detector.hidden": 64,
        "optim.lr": 0.1,
        "optim.clip": 1.0,
        "optim.micro_batch": 8,
        "schedule.total": 80,
        "schedule.warmup": 5,
        "run.eval_every": 100,
        "run.checkpoint_every": 0,
        "run.log_every": 20,
    }
    with torch.random.fork_rng():
        finetune(prepare(recipe(root, backbone, changes), lambda text: None), ALONE, lambda record: None)
    return root / "small"
