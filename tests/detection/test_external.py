"""A net of timm as a row of a comparison: fine-tuned, trained from scratch, judged, reported."""

import json
from pathlib import Path

import pytest
import yaml

pytest.importorskip("timm", reason="timm builds the net")

from backbone.cli import validate
from backbone.interop.importing import run as bring
from backbone.interop.options import Import
from detection import artifact
from detection.evaluate import evaluate
from detection.evaluate import prepare as prepare_evaluation
from detection.gains import Gains, run
from detection.plan import describe
from detection.recipe import DetectorEvaluation
from detection.report.collect import write_report
from tests.detection.conftest import ALONE, SMALL, recipe


@pytest.fixture
def net(tmp_path: Path) -> str:
    """Folder of its artifact, with random weights."""
    place = str(tmp_path / "net")
    bring(Import(source="timm", model="test_resnet", random=True, output=place))
    return place


def test_a_row_of_it_and_one_of_it_from_scratch(tmp_path: Path, net: str) -> None:
    (tmp_path / "detector.yaml").write_text(yaml.safe_dump(SMALL))
    tree = {
        "name": "compare",
        "baseline": "none",
        "finetune": str(tmp_path / "detector.yaml"),
        "finetune_with": {"schedule": {"total": 2}, "detector": {"freeze_at": 2}},
        "rows": {"timm": {"artifact": net}, "none": {"scratch": "timm"}},
        "storage": str(tmp_path / "runs"),
        "resamples": 100,
    }
    asked = validate(Gains, tree, "gains")
    said: list[str] = []
    todo, failed = run(asked, said.append)
    assert not failed
    told = "\n".join(said)
    assert "faster-rcnn-fpn on test_resnet: 15 norms frozen, 0 trained; 2 of 5 parts fixed (stem, C2); " in told
    assert "faster-rcnn-fpn on test_resnet: 0 norms frozen, 15 trained; 0 of 5 parts fixed; " in told
    folder, markdown = write_report(asked, todo, "")
    rows = json.loads(Path(folder, "report.json").read_text())["rows"]
    assert {row["net"] for row in (rows.values() if isinstance(rows, dict) else rows)} == {"test_resnet"}
    assert "imported from timm: random weights" in markdown

    place = tmp_path / "runs" / "compare-timm-seed0"
    loaded = artifact.load(place / "artifact")
    assert loaded.block["net"] == json.loads(Path(net, "config.json").read_text())["raybone"]["net"]
    assert loaded.block["provenance"]["cost"]["backbone_macs"] > 1e6
    payload = prepare_evaluation(DetectorEvaluation(detector=str(place / "artifact")), lambda text: None)
    again = evaluate(payload, ALONE, lambda record: None)
    assert again["bbox"] == json.loads((place / "results" / "metrics.json").read_text())["bbox"]


def test_the_plan(tmp_path: Path, net: str) -> None:
    lines = describe(recipe(tmp_path / "runs", net))
    assert "\nbackbone   test_resnet of" in lines
    assert "\npolicy     15 norms frozen, 0 trained; 0 of 5 parts fixed; " in lines
