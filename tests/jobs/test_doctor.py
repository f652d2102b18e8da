"""`python jobs/doctor.py` as a user meets it: exit codes, text and JSON."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--images", "/nowhere"], "/nowhere: no such folder"),
        ([], "images: name the folder"),
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
