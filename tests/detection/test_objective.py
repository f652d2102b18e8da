"""A sweep's trial in detection: fine-tuned once, judged by pycocotools, by the recipe that the sweep names."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from backbone.cli import validate
from backbone.errors import UserError
from backbone.sweep.options import Sweep
from detection.objective import DetectionAP, intervals
from detection.report.stored import load
from tests.detection.conftest import SMALL, coco, write_backbone, write_scenes
from tests.detection.report.simulated import average_precision

SCENES = ("objects", "render", "train_images", "val_images")
"""Fields that data of files do not have."""


def judge(folder: Path, objectives: list[str] | None = None, **changes: object) -> DetectionAP:
    (folder / "detector.yaml").write_text(yaml.safe_dump(SMALL))
    tree = {
        "name": "s",
        "base": "none.yaml",
        "space": {"model.depth": {"choice": [18]}},
        "objectives": objectives or ["AP"],
        "finetune": str(folder / "detector.yaml"),
        "finetune_with": {"schedule": {"total": 5}, **changes},
    }
    return DetectionAP.of(validate(Sweep, tree, "sweep.yaml"))


def test_a_runs_backbone_is_fine_tuned_once(tmp_path: Path) -> None:
    write_backbone(tmp_path / "run" / "artifact", seed=0)
    mine = judge(tmp_path, ["AP_masks", "macs", "AP"], detector={"masks": True})
    mine.check()
    found = mine(str(tmp_path / "run"))
    results = tmp_path / "run" / "detector" / "results" / "metrics.json"
    metrics = json.loads(results.read_text())
    assert (found["AP_masks"], found["AP"]) == (metrics["segm"]["AP"], metrics["bbox"]["AP"])
    assert found.keys() == {f"{name}{end}" for name in ("AP", "AP_masks") for end in ("", "_low", "_high")}
    before = results.stat().st_mtime_ns
    assert mine(str(tmp_path / "run")) == found
    assert results.stat().st_mtime_ns == before


def test_the_interval_is_that_of_other_images(trained: Path) -> None:
    """Against images drawn one by one; the spread alone, as percentiles are moved onto the value."""
    found = intervals(str(trained / "results"), ("AP",))
    matches = load(str(trained / "results"))["bbox"]
    rng, n = np.random.default_rng(5), len(matches.image_ids)
    counts = [np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(400)]
    low, high = np.percentile([average_precision(matches, count).AP for count in counts], [2.5, 97.5])
    value = json.loads((trained / "results" / "metrics.json").read_text())["bbox"]["AP"]
    assert found["AP_low"] < value < found["AP_high"]
    assert found["AP_high"] - found["AP_low"] == pytest.approx(high - low, rel=0.2)


def test_mistakes_come_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"detector.yaml: optim.lrr: unknown key"):
        judge(tmp_path, optim={"lrr": 1}).check()
    with pytest.raises(UserError, match=r"AP_masks: .*detector.masks false; add --finetune_with.detector.masks true"):
        judge(tmp_path, ["AP_masks"]).check()
    boxes = write_scenes(tmp_path / "data", "train", 3)
    file = tmp_path / "data" / "annotations" / "instances_train.json"
    tree = json.loads(file.read_text())
    for annotation in tree["annotations"]:
        del annotation["segmentation"]
    file.write_text(json.dumps(tree))
    changes = {"detector": {"masks": True}, "data": coco(boxes, boxes, **dict.fromkeys(SCENES))}
    with pytest.raises(UserError, match=r"not every object of data.train and data.val has a segmentation"):
        judge(tmp_path, ["AP_masks"], **changes).check()
