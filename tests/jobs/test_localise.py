"""jobs/localise.py as a user runs it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.detection.localisation.conftest import write_classifier


def test_from_a_classifier_to_errors_and_a_picture(
    run_job: Callable[..., subprocess.CompletedProcess], tmp_path: Path
) -> None:
    words = ["--config", "jobs/recipes/quickstart/localiser.yaml", "--backbone", write_classifier(tmp_path / "net")]
    words += ["--run.storage", tmp_path / "runs", "--scaling.num_workers", 0, "--compute.precision", "fp32"]
    words += ["--data.train_images", 64, "--data.val_images", 8, "--schedule.total", 1, "--run.eval_every", 1]
    planned = run_job("localise", *words, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "64 training, 8 validation" in planned.stdout
    assert not (tmp_path / "runs").exists()
    done = run_job("localise", *words)
    assert done.returncode == 0, done.stderr
    assert "localisation error, %" in done.stdout
    assert "VGG-16, own class 33.1" in done.stdout
    assert (tmp_path / "runs/localiser/results/pictures.png").exists()
    judged = ["--localiser", tmp_path / "runs/localiser/artifact", "--backbone", tmp_path / "net", "--scales", 224]
    alone = run_job("evaluate", *judged, "--data.val_images", 8, "--data.workers", 0)
    assert alone.returncode == 0, alone.stderr
    assert f"  {tmp_path}/runs/localiser/artifact" in alone.stdout
    assert "8 images, 0 unreadable left out" in alone.stdout
    again = run_job("localise", *words)
    assert again.returncode == 0, again.stderr
    assert "localiser is finished" in again.stdout
    other = run_job("localise", *words, "--optim.lr", 0.2)
    assert other.returncode == 2
    assert "optim.lr: the run has 0.1, this recipe 0.2" in other.stderr
