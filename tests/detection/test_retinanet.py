"""RetinaNet through the jobs: rows of a comparison, judged, test-time steps, its plan, and detecting in a folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from backbone.cli import validate
from backbone.errors import UserError
from detection import artifact
from detection.detecting.options import Detecting
from detection.detecting.run import detect_all
from detection.evaluate import evaluate
from detection.evaluate import prepare as prepare_evaluation
from detection.gains import Gains, run
from detection.nets import Retina
from detection.plan import describe
from detection.recipe import DetectorEvaluation
from detection.report.collect import write_report
from tests.detection.conftest import ALONE, SMALL, Make, coco, write_scenes
from tests.detection.test_finetune import RETINA


def judge(url: Path, output: Path, **steps: Any) -> dict[str, Any]:
    asked = DetectorEvaluation(detector=str(url), output=str(output), **steps)
    return evaluate(prepare_evaluation(asked, lambda text: None), ALONE, lambda record: None)


def test_rows_of_a_comparison_and_what_follows(tmp_path: Path, backbone: str) -> None:
    images = write_scenes(tmp_path / "data", "train", 12)
    tree = {**SMALL, "detector": RETINA, "data": coco(images, images)}
    (tmp_path / "detector.yaml").write_text(yaml.safe_dump(tree))
    rows = {"given": {"artifact": backbone}, "none": {"scratch": "given"}}
    asked = validate(
        Gains,
        {
            "name": "compare",
            "baseline": "none",
            "finetune": str(tmp_path / "detector.yaml"),
            "finetune_with": {"schedule": {"total": 2}},
            "rows": rows,
            "storage": str(tmp_path / "runs"),
            "resamples": 100,
        },
        "gains",
    )
    said: list[str] = []
    todo, failed = run(asked, said.append)
    assert not failed
    told = "\n".join(said)
    assert "retinanet-fpn on resnet18: 20 norms frozen, 0 trained; 1 of 5 parts fixed (stem); " in told
    assert "retinanet-fpn on resnet18: 0 norms frozen, 20 trained; 0 of 5 parts fixed; " in told
    folder, markdown = write_report(asked, todo, "")
    assert Path(folder, "report.html").exists()
    assert "given" in markdown

    made = tmp_path / "runs" / "compare-given-seed0"
    assert isinstance(artifact.load(made / "artifact").detector, Retina)
    written = json.loads((made / "results" / "metrics.json").read_text())
    assert judge(made / "artifact", tmp_path / "again")["bbox"] == written["bbox"]
    judge(made / "artifact", tmp_path / "steps", vote=True, flip=True, scales=[48, 64])
    with pytest.raises(UserError, match=r"refine: .* is of kind retinanet, which has no regions to look at again"):
        judge(made / "artifact", tmp_path / "never", refine=True)
    with pytest.raises(UserError, match=r"maxout: .* is of kind retinanet"):
        judge(made / "artifact", tmp_path / "never", maxout=True, scales=[48, 64])
    detect_all(Detecting(detector=str(made / "artifact"), images=str(images), output=str(tmp_path / "found")))
    found = json.loads((tmp_path / "found" / "detections.json").read_text())
    theirs = json.loads((made / "results" / "detections.json").read_text())
    assert len(found) == len(theirs) > 12
    assert np.allclose(sorted(row["score"] for row in found), sorted(row["score"] for row in theirs), atol=1e-6)


def test_the_plan(small: Make) -> None:
    lines = describe(small({"detector": RETINA})).splitlines()
    assert any(line.startswith("detector   retinanet-fpn, 12 classes: ") for line in lines)
    assert any(line.startswith("policy     20 norms frozen, 0 trained; 1 of 5 parts fixed (stem); ") for line in lines)
