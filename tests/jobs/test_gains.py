"""`python jobs/gains.py` as a user meets it. The comparison itself: tests/detection/test_gains.py."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.detection.conftest import SMALL, write_backbone

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A comparison of a backbone and the same net from scratch, three steps each."""
    (tmp_path / "detector.yaml").write_text(yaml.safe_dump(SMALL))
    tree = {
        "name": "compare",
        "baseline": "none",
        "finetune": str(tmp_path / "detector.yaml"),
        "rows": {"one": {"artifact": write_backbone(tmp_path / "backbone")}, "none": {"scratch": "one"}},
        "storage": str(tmp_path / "runs"),
    }
    (tmp_path / "gains.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return tmp_path / "gains.yaml"


def test_the_report(file: Path, run_job: Run) -> None:
    words = ["--config", file, "--finetune_with.schedule.total", "3", "--resamples", "100"]
    done = run_job("gains", *words)
    assert done.returncode == 0, done.stderr
    folder = file.parent / "runs" / "compare"
    assert f"report    {folder}/report.html" in done.stdout
    assert (folder / "report.md").read_text() in done.stdout
    report = json.loads((folder / "report.json").read_text())
    assert [row["label"] for row in report["rows"]] == ["one", "none"]
    assert f"python jobs/gains.py --config {file}" in (folder / "report.html").read_text()
    again = run_job("gains", *words)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("is finished") == 2
    assert "loss" not in again.stdout
    other = run_job("gains", *words, "--finetune_with.optim.lr", "0.5")
    assert other.returncode == 2
    assert "optim.lr: the run has 0.02, this recipe 0.5" in other.stderr
    assert "Traceback" not in other.stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--baseline", "two"], "baseline 'two' is not among the rows one, none"),
        (["--rows.one.artifact", "/nowhere"], "/nowhere: no backbone artifact here"),
        (["--finetune_with.detector.norm", "frosen"], "detector.norm"),
        (["--seed", "1"], "--seed: unknown option; perhaps you meant --seeds"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(
    file: Path, run_job: Run, words: list[str], complaint: str
) -> None:
    done = run_job("gains", "--config", file, *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert not (file.parent / "runs").exists()


def test_what_a_shipped_comparison_will_take_is_told_by_its_recipe_alone(run_job: Run) -> None:
    done = run_job("gains", "--config", "jobs/recipes/gains/coco-paper.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "runs       2 pretraining, 970,000 steps; 3 fine-tuning, 1,600,000 steps" in done.stdout
    assert "benchmarks/cost_model.py of the repository measures them" in done.stdout
