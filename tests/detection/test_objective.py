"""A sweep's trial in detection: fine-tuned once, judged by pycocotools, by the recipe that the sweep names."""

import json
from pathlib import Path

import pytest
import yaml

from backbone.cli import validate
from backbone.errors import UserError
from backbone.sweep.options import Sweep
from detection.objective import DetectionAP
from tests.detection.conftest import SMALL, write_backbone


def judge(folder: Path, **changes: object) -> DetectionAP:
    (folder / "detector.yaml").write_text(yaml.safe_dump(SMALL))
    tree = {
        "name": "s",
        "base": "none.yaml",
        "space": {"model.depth": {"choice": [18]}},
        "objectives": ["AP"],
        "finetune": str(folder / "detector.yaml"),
        "finetune_with": {"schedule": {"total": 5}, **changes},
    }
    return DetectionAP.of(validate(Sweep, tree, "sweep.yaml"))


def test_a_runs_backbone_is_fine_tuned_once(tmp_path: Path) -> None:
    write_backbone(tmp_path / "run" / "artifact", seed=0)
    mine = judge(tmp_path)
    mine.check()
    found = mine(str(tmp_path / "run"))
    results = tmp_path / "run" / "detector" / "results" / "metrics.json"
    assert found == json.loads(results.read_text())["bbox"]["AP"]
    before = results.stat().st_mtime_ns
    assert mine(str(tmp_path / "run")) == found
    assert results.stat().st_mtime_ns == before


def test_mistakes_come_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"detector.yaml: optim.lrr: unknown key"):
        judge(tmp_path, optim={"lrr": 1}).check()
