"""`python jobs/finetune.py` as a user meets it: kills, what it says to mistakes, its plan and its help."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from detection import artifact
from tests.conftest import ROOT
from tests.detection.conftest import SMALL, coco, write_backbone, write_scenes

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A small recipe on rendered scenes, its backbone, and a place for its runs."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    url = write_backbone(tmp_path / "backbone")
    return ["--config", f"{tmp_path}/small.yaml", "--backbone", url, "--run.storage", f"{tmp_path}/runs"]


@pytest.mark.slow
def test_kill_resume_is_bit_exact_and_finished_is_finished(tmp_path: Path, words: list[str], run_job: Run) -> None:
    """kill -9 at no particular moment; the artifact's weights are those of a run left alone, byte for byte."""
    words = [*words, "--schedule.total", "40", "--run.checkpoint_every", "2", "--run.eval_every", "20"]
    whole = run_job("finetune", *words, "--name", "whole")
    assert whole.returncode == 0, whole.stderr
    assert "20 norms frozen, 0 trained; 0 of 5 parts fixed;" in whole.stdout
    assert "learning rate 0.02 for 8 images a step" in whole.stdout
    command = [sys.executable, "jobs/finetune.py", *words, "--name", "killed"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoints = tmp_path / "runs" / "killed" / "checkpoints"
    while not list(checkpoints.glob("step-00000012")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    last = run_job("finetune", *words, "--name", "killed")
    assert re.search(r"resuming at step (1[2-9]|2\d|3[0-8]) of 40", last.stdout), last.stdout + last.stderr
    folders = [tmp_path / "runs" / name for name in ("whole", "killed")]
    one, two = ((folder / "artifact" / "model.safetensors").read_bytes() for folder in folders)
    assert one == two
    one, two = ((folder / "results" / "detections.json").read_bytes() for folder in folders)
    assert one == two
    again = run_job("finetune", *words, "--name", "killed")
    assert again.returncode == 0
    assert f"{folders[1]} is finished; another --name or --seed begins another run" in again.stdout
    assert "AP50" in again.stdout
    assert "step" not in again.stdout.replace("a step", "")
    other = run_job("finetune", *words, "--name", "killed", "--optim.lr", "0.2", "--detector.roi.score", "0.1")
    assert other.returncode == 2
    assert "optim.lr: the run has 0.02, this recipe 0.2" in other.stderr
    assert "detector.roi.score: the run has 0.01, this recipe 0.1" in other.stderr


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path, words: list[str], run_job: Run) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = run_job("finetune", *words, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "steps      12 of 8 images: 3.0 epochs" in done.stdout
    assert "policy     20 norms frozen, 0 trained" in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_a_corrupt_image(tmp_path: Path, words: list[str], run_job: Run) -> None:
    images = write_scenes(tmp_path / "data", "train", 16)
    (images / "9.jpg").write_bytes((images / "9.jpg").read_bytes()[:60])
    tree = {**SMALL, "data": coco(images, images)}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(tree))
    stopped = run_job("finetune", *words, "--name", "stops")
    assert stopped.returncode == 2
    assert f"{images}/9.jpg" in stopped.stderr
    assert "set data.on_bad: skip" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    skipped = run_job("finetune", *words, "--name", "skips", "--data.on_bad", "skip", "--schedule.total", "4")
    assert skipped.returncode == 0, skipped.stderr
    assert "unreadable, judged as an image without detections" in skipped.stdout
    about = artifact.load(tmp_path / "runs" / "skips" / "artifact").block["provenance"]
    assert ["9.jpg" in name for name in about["bad_images"]] == [True]


def a_detector(folder: Path) -> list[str]:
    (folder / "detector").mkdir()
    (folder / "detector" / "config.json").write_text('{"raybone_detector": {"format": 1}}')
    return ["--backbone", f"{folder}/detector"]


def damaged(folder: Path) -> list[str]:
    file = folder / "backbone" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\1\2\3")
    return []


def no_norm(folder: Path) -> list[str]:
    detector = {k: v for k, v in SMALL["detector"].items() if k != "norm"}
    (folder / "small.yaml").write_text(yaml.safe_dump({**SMALL, "detector": detector}))
    return []


def no_objects(folder: Path) -> list[str]:
    images = write_scenes(folder / "data", "train", 4)
    file = folder / "data" / "annotations" / "instances_train.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    tree = {**SMALL, "data": coco(images, images)}
    (folder / "small.yaml").write_text(yaml.safe_dump(tree))
    return []


MISTAKES = [
    pytest.param(a_detector, "this is a detector's artifact", id="a detector as backbone"),
    pytest.param(lambda folder: ["--backbone", str(folder)], "config.json is missing", id="a folder as backbone"),
    pytest.param(damaged, "model.safetensors: SHA-256 is not the one", id="damaged weights"),
    pytest.param(no_norm, "give --detector.norm: frozen, trainable, sync or group", id="no norm"),
    pytest.param(no_objects, "no object to train on", id="no objects"),
    pytest.param(lambda folder: ["--from_scratch"], "what is random must train", id="random and frozen"),
    pytest.param(lambda folder: ["--detector.knd", "c4"], "perhaps you meant --detector.kind", id="unknown option"),
]


@pytest.mark.parametrize(("mistake", "complaint"), MISTAKES)
def test_mistakes_are_named_before_anything_is_trained(
    tmp_path: Path, words: list[str], run_job: Run, mistake: Callable, complaint: str
) -> None:
    done = run_job("finetune", *words, *mistake(tmp_path))
    assert done.returncode == 2, done.stdout + done.stderr
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert "loss" not in done.stdout


FIELDS = {
    "pretrain": ["--model.net", "--optim.lr", "--dry-run", "--config"],
    "finetune": ["--backbone", "--detector.norm", "--detector.rpn.nms", "--data.shorter_side", "--dry-run", "--config"],
    "evaluate": ["--detector", "--batch", "--data.val", "--compute.precision", "--output"],
    "gains": ["--baseline", "--finetune", "--seeds", "--parallel", "--resamples", "rows: {LABEL:"],
    "doctor": ["--source", "--images", "--annotations"],
}


@pytest.mark.parametrize("job", FIELDS)
def test_help(job: str, run_job: Run) -> None:
    done = run_job(job, "--help-all", COLUMNS="200")
    assert (done.returncode, done.stderr) == (0, "")
    assert [field for field in FIELDS[job] if field not in done.stdout] == []
