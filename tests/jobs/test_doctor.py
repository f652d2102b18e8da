"""`python jobs/doctor.py` as a user meets it: exit codes, text and JSON."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.backbone.data.test_doctor import make, picture
from tests.detection.data.making import REAL, make_coco, make_voc

Run = Callable[..., subprocess.CompletedProcess]


def test_no_errors(run_job: Run, tmp_path: Path) -> None:
    done = run_job("doctor", "--source", "coco", "--images", make_coco(tmp_path / "coco"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 errors, 0 warnings, 3 notes" in done.stdout
    assert "  dog                        3\n" in done.stdout


def test_errors(run_job: Run, tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc")
    (root / "JPEGImages/000005.jpg").unlink()
    file = tmp_path / "report.json"
    done = run_job("doctor", "--source", "voc", "--images", f"{root}:trainval", "--json-file", file)
    assert (done.returncode, done.stderr) == (1, "")
    assert "images whose file is missing" in done.stdout
    tree = json.loads(file.read_text())
    assert tree["errors"] == 1
    assert tree["findings"][0]["examples"] == ["JPEGImages/000005.jpg"]


def test_a_share_of_the_labels(run_job: Run, tmp_path: Path) -> None:
    words = ["--source", "coco", "--images", make_coco(tmp_path / "coco"), "--share"]
    done = run_job("doctor", *words, "0.5")
    assert (done.returncode, done.stderr) == (0, "")
    assert "       2  images in data.share 0.5\n" in done.stdout
    done = run_job("doctor", *words, "0.1")
    assert done.returncode == 2
    assert "data.share 0.1 of 4 images is no image at all; give 0.25 or more" in done.stderr


def test_labelled_images(run_job: Run, tmp_path: Path) -> None:
    train, val = make(tmp_path / "train"), make(tmp_path / "val", 100)
    words = ["--source", "imagefolder", "--images", train, "--val", val]
    done = run_job("doctor", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 errors, 0 warnings, 0 notes" in done.stdout
    (val / "a/0.png").write_bytes(picture(3))
    file = tmp_path / "report.json"
    done = run_job("doctor", *words, "--json_file", file)
    assert (done.returncode, done.stderr) == (1, "")
    assert "the same image in both splits" in done.stdout
    assert json.loads(file.read_text())["val"] == str(val)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--images", "/nowhere"], "/nowhere: no such folder"),
        (["--source", "coco"], "images: name the folder"),
        (["--source", "imagefolder", "--images", "/nowhere"], "/nowhere: no such directory"),
        (["--images", "x", "--val", "y"], "val is not read by source coco"),
        (["--source", "parquet", "--images", "x", "--annotations", "y"], "annotations is not read by source parquet"),
        (["--source", "parquet", "--images", "x", "--share", "0.1"], "share is not read by source parquet"),
        (["--source", "yolo", "--images", "x"], "source"),
        (["--images", "x", "--imags", "y"], "--imags: unknown option; perhaps you meant --images"),
    ],
)
def test_wrong_usage(run_job: Run, words: list[str], says: str) -> None:
    done = run_job("doctor", *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_report_that_cannot_be_written(run_job: Run, tmp_path: Path) -> None:
    done = run_job("doctor", "--images", make_coco(tmp_path), "--json_file", "/nowhere/report.json")
    assert done.returncode == 2
    assert "json_file /nowhere/report.json: No such file" in done.stderr


@pytest.mark.data
@pytest.mark.skipif(not REAL, reason="RAYBONE_TEST_DATA, the folder of real data, is not set")
def test_real_data(run_job: Run) -> None:
    done = run_job("doctor", "--images", f"{REAL}/coco_tiny/val2017")
    assert done.returncode == 0
    assert "0 errors" in done.stdout
    done = run_job("doctor", "--source", "voc", "--images", f"{REAL}/bccd:trainval")
    assert done.returncode == 0
    assert "BloodImage_00338: RBC [504.0, 337.0, 504.0, 337.0]" in done.stdout
