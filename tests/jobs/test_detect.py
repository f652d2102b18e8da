"""`python jobs/detect.py` as a user meets it: mistakes."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.detection.conftest import write_backbone

Run = Callable[..., subprocess.CompletedProcess]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ["--detector", "{}/backbone", "--images", "{}", "--output", "{}/o"],
            "is a backbone artifact; put it into",
        ),
        (["--detector", "{}", "--images", "list.json", "--output", "o"], "images: --image_folder FOLDER"),
    ],
)
def test_mistakes_are_named(run_job: Run, tmp_path: Path, words: list[str], complaint: str) -> None:
    write_backbone(tmp_path / "backbone")
    done = run_job("detect", *(word.format(tmp_path) for word in words))
    assert done.returncode == 2, done.stdout + done.stderr
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists()
