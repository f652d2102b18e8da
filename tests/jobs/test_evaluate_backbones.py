"""`python jobs/evaluate.py --backbone ...` as a user meets it."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from backbone.cli import validate
from backbone.training.pretrain import prepare, pretrain
from backbone.training.world import World
from tests.conftest import TINY

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two finished runs of 24 steps on rendered images, of two seeds."""
    from backbone.training.recipe import Recipe

    storage = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        overrides = {"run.storage": str(storage), "name": f"tiny{seed}", "seed": seed}
        pretrain(prepare(validate(Recipe, TINY, "tiny", overrides)), World(0, 1, torch.device("cpu")), lambda r: None)
    return [storage / f"tiny{seed}" / "artifact" for seed in (0, 1)]


def test_the_numbers_of_the_run(trained: list[Path], run_job: Run) -> None:
    """1-crop on the images it was validated on, by default."""
    done = run_job("evaluate", "--backbone", trained[0])
    assert done.returncode == 0, done.stderr
    results = Path(re.findall(r"^results +(.+)$", done.stdout, re.MULTILINE)[0])
    assert results.parent == trained[0].parent
    mine = json.loads((results / "results.json").read_text())
    own = json.loads((trained[0] / "config.json").read_text())["raybone"]["provenance"]["metrics"]
    assert mine["images"] == own["val_images"] == 50
    assert mine["results"][0]["top1_error"] == pytest.approx(own["val_error"])
    assert mine["results"][0]["top5_error"] == pytest.approx(own["val_top5_error"])
    assert mine["paper"] == [], "12 classes are nothing of the paper's"
    assert f"{own['val_error']:.2f} %" in done.stdout
    assert "50 of 50 images" in done.stdout
    assert "no row of the paper's tables 2 to 6" in done.stdout


def test_an_ensemble_by_all_protocols(trained: list[Path], run_job: Run, tmp_path: Path) -> None:
    """The option given twice is the option with two values."""
    a, b = trained
    backbones = ["--backbone", a, "--batch", "10", "--backbone", b]
    output = tmp_path / "out"
    done = run_job("evaluate", *backbones, "--protocols", "1-crop", "10-crop", "multi-scale", "--output", output)
    assert done.returncode == 0, done.stderr
    found = json.loads((output / "results.json").read_text())["results"]
    assert [(r["protocol"], r["nets"]) for r in found] == [
        (p, n) for p in ("1-crop", "10-crop", "multi-scale") for n in (1, 1, 2)
    ]
    assert done.stdout.count("ensemble of 2") == 3


def test_each_has_its_help(run_job: Run) -> None:
    mine = run_job("evaluate", "--backbone", "--help-all", COLUMNS="200")
    assert (mine.returncode, mine.stderr) == (0, "")
    fields = ["--backbone", "--protocols", "--scales", "--by_position", "--data.val", "--scaling.num_workers"]
    assert [field for field in fields if field not in mine.stdout] == []
    assert "--fast" not in mine.stdout
    both = run_job("evaluate", "--help", COLUMNS="200").stdout
    assert "--backbone --help" in both
    assert "--fast" in both, "and the detectors' options, as before"


MISTAKES = [
    pytest.param(lambda a: [a.parent], "config.json is missing", id="a folder"),
    pytest.param(lambda a: [a, a], "named twice", id="twice"),
    pytest.param(lambda a: [a, "--scales", "256"], "read by protocol multi-scale", id="idle scales"),
    pytest.param(lambda a: [a, "--protocols", "5-crop"], "protocols.0", id="protocol"),
    pytest.param(lambda a: [a, "--data.val", "x"], "or give another source", id="no source"),
    pytest.param(lambda a: [a, "--detector", a], "backbone: unknown option", id="both"),
]


@pytest.mark.parametrize(("mistake", "complaint"), MISTAKES)
def test_mistakes_are_named(trained: list[Path], run_job: Run, mistake: Callable, complaint: str) -> None:
    done = run_job("evaluate", "--backbone", *mistake(trained[0]))
    assert done.returncode == 2, done.stdout + done.stderr
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
