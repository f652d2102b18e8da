"""jobs/alternate.py as a user runs it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.detection.conftest import write_backbone


def test_four_runs_and_a_detector(run_job: Callable[..., subprocess.CompletedProcess], tmp_path: Path) -> None:
    words = ["--name", "steps", "--finetune", "jobs/recipes/quickstart/detector-c4.yaml"]
    words += ["--backbone", write_backbone(tmp_path / "net"), "--storage", tmp_path / "runs"]
    words += ["--finetune_with.scaling.num_workers", 0, "--finetune_with.compute.precision", "fp32"]
    words += ["--finetune_with.schedule.unit", "iterations", "--finetune_with.schedule.total", 1]
    words += ["--finetune_with.schedule.warmup", 0, "--finetune_with.data.train_images", 8]
    words += ["--finetune_with.data.val_images", 2]
    told = run_job("alternate", *words, "--dry-run")
    assert told.returncode == 0, told.stderr
    assert [line.partition(":")[0] for line in told.stdout.splitlines()] == [
        "steps-1-rpn",
        "steps-2-heads",
        "steps-3-rpn",
        "steps-4-heads",
    ]
    assert not (tmp_path / "runs").exists()
    done = run_job("alternate", *words)
    assert done.returncode == 0, done.stderr
    assert f"artifact  {tmp_path}/runs/steps-4-heads/artifact" in done.stdout
    assert (tmp_path / "runs/steps-4-heads/artifact/config.json").exists()
