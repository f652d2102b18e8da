"""`python jobs/evaluate.py` as a user meets it."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from detection.finetune import finetune, prepare
from tests.detection.conftest import ALONE, coco, recipe, write_backbone, write_scenes

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on scenes of several sizes; the backbone is beside it."""
    root = tmp_path_factory.mktemp("evaluate")
    images = write_scenes(root / "data", "val", 12)
    changes = {"data": coco(images, images), "schedule.total": 12, "detector.norm": "trainable", "optim.lr": 0.05}
    made = recipe(root, write_backbone(root / "backbone"), changes)
    finetune(prepare(made, lambda text: None), ALONE, lambda record: None)
    return root / "small"


def test_the_numbers_of_the_run(run_folder: Path, run_job: Run) -> None:
    done = run_job("evaluate", "--detector", run_folder / "artifact", "--batch", "4")
    assert done.returncode == 0, done.stderr
    written = json.loads((run_folder / "results" / "metrics.json").read_text())
    results = Path(re.findall(r"^results +(.+)$", done.stdout, re.MULTILINE)[0])
    assert results == run_folder / f"results-{written['provenance']['data']['val'][:8]}"
    assert done.stdout.splitlines()[-1].startswith("next      python jobs/gains.py --config ")
    mine = json.loads((results / "metrics.json").read_text())
    assert mine["bbox"] == written["bbox"]
    assert mine["detections"] == written["detections"] > 20
    row = next(line for line in done.stdout.splitlines() if line.startswith("bbox"))
    assert float(row.split()[1]) == pytest.approx(100 * mine["bbox"]["AP"], abs=0.051)
    assert "12 of about 12 images" in done.stdout


def foreign(folder: Path) -> list[str]:
    images = write_scenes(folder, "zoo", 4)
    file = folder / "annotations" / "instances_zoo.json"
    file.write_text(file.read_text().replace('"red"', '"zebra"'))
    return ["--data.source", "coco", "--data.val", str(images), "--data.cache", str(folder)]


MISTAKES = [
    pytest.param(lambda a, t: ["--detector", a.parents[1] / "backbone"], "this is a backbone artifact", id="backbone"),
    pytest.param(lambda a, t: ["--detector", t], "config.json is missing", id="a folder"),
    pytest.param(lambda a, t: ["--detector", a, *foreign(t)], "not trained on: zebra", id="unknown class"),
    pytest.param(lambda a, t: ["--batch", "2"], "detector: Field required; give --detector", id="no detector"),
    pytest.param(lambda a, t: ["--detector", a, "--data.val", "x"], "or give another source", id="no source"),
    pytest.param(lambda a, t: ["--detector", a, "--data.shorter_side", "200"], "longer_side 96 is below", id="sizes"),
    pytest.param(lambda a, t: ["--detector", a, "--compute.compile", "default"], "compute.compile", id="compile"),
]


@pytest.mark.parametrize(("mistake", "complaint"), MISTAKES)
def test_mistakes_are_named(run_folder: Path, tmp_path: Path, run_job: Run, mistake: Callable, complaint: str) -> None:
    done = run_job("evaluate", *mistake(run_folder / "artifact", tmp_path))
    assert done.returncode == 2, done.stdout + done.stderr
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
