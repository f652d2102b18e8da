"""Every command and snippet of the README is one that works."""

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import backbone
import detection
from backbone.analyse.options import Analysis
from backbone.artifact import load, save
from backbone.cli import load as load_recipe
from backbone.cli import parse, read_yaml
from backbone.data.prepare.options import Prepare
from backbone.errors import UserError
from backbone.evaluate.options import BackboneEvaluation
from backbone.inputs import InputConvention
from backbone.interop.options import Export, Import
from backbone.nets import build
from backbone.options import NetOptions
from backbone.sweep.options import Sweep
from backbone.sweep.space import check as check_space
from backbone.training.recipe import Recipe
from detection.alternating import Alternating
from detection.artifact import save as save_detector
from detection.data.contract import Categories
from detection.detecting.options import Detecting
from detection.finetune import FINETUNE
from detection.gains import Gains, plan
from detection.improvements.entry import Entry
from detection.judged import what
from detection.localisation.options import LocaliserEvaluation
from detection.localisation.recipe import Localise
from detection.nets import build as build_detector
from detection.options import DetectorOptions
from detection.recipe import DetectorEvaluation, Finetune
from detection.serving.options import Serving
from detection.submission.options import Submission
from jobs.doctor import Doctor
from tests.conftest import TINY
from tests.detection.conftest import SMALL

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(kind: str) -> list[str]:
    return [text.replace("\\\n", " ") for text in re.findall(rf"```{kind}\n(.*?)```", README, re.DOTALL)]


def test_the_first_two_blocks_are_the_main_job_and_the_tests() -> None:
    main, tests = blocks("bash")
    assert main.splitlines()[0] == tests.splitlines()[0], "each block sets up by itself"
    assert "pytest" in tests.splitlines()[1]
    assert tests.splitlines()[1] in (ROOT / ".ci/run").read_text()


MODELS = {
    "pretrain": Recipe,
    "finetune": Finetune,
    "evaluate": DetectorEvaluation,
    "detect": Detecting,
    "gains": Gains,
    "doctor": Doctor,
    "sweep": Sweep,
    "export": Export,
    "import": Import,
    "prepare": Prepare,
    "analyse": Analysis,
    "localise": Localise,
    "entry": Entry,
    "submit": Submission,
    "alternate": Alternating,
    "serve": Serving,
}
JUDGED = {
    "--detector": DetectorEvaluation,
    "--backbone": BackboneEvaluation,
    "--localiser": LocaliserEvaluation,
}
"""Of jobs/evaluate.py."""


def commands(job: str) -> list[list[str]]:
    """The words after `jobs/JOB.py` of every such command."""
    lines = [line for block in blocks("bash") + blocks("sh") for line in block.splitlines() if f"jobs/{job}.py" in line]
    return [shlex.split(line.split(f"jobs/{job}.py", 1)[1]) for line in lines]


@pytest.mark.parametrize("job", MODELS)
def test_every_command_is_understood(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert commands(job)
    for words in commands(job):
        if any(word.endswith("/best.yaml") for word in words):
            continue  # the sweep before it makes the file; test_tuning trains one
        model = JUDGED[what(words)] if job == "evaluate" else MODELS[job]
        recipe, _ = parse(model, words, {"dry_run": ""})
        if isinstance(recipe, Gains):
            plan(recipe)  # the recipes it names, with what the command changes in them
        if isinstance(recipe, Sweep):
            check_space(recipe)


def test_the_dry_run_of_the_readme(run_job: Callable[..., subprocess.CompletedProcess]) -> None:
    words = next(words for words in commands("pretrain") if "--dry-run" in words)
    done = run_job("pretrain", *words)
    assert done.returncode == 0, done.stderr
    assert "resnet18, 12 classes" in done.stdout


def test_its_yaml_blocks_are_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    comparison, sweep = blocks("yaml")
    (tmp_path / "mine.yaml").write_text(comparison)
    todo = plan(load_recipe(Gains, tmp_path / "mine.yaml"))
    assert len(todo.finetunings) == 15  # 3 pretrainings by 3 seeds, and 3 seeds of each other row
    (tmp_path / "sweep.yaml").write_text(sweep)
    assert len(check_space(load_recipe(Sweep, tmp_path / "sweep.yaml"))) > 10


def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use, in_timm, ask, _ = blocks("python")
    quickstart = NetOptions(depth=34, width=0.25)
    about = {"metrics": {"val_error": 30.0}}
    save(
        tmp_path / "runs/quickstart-residual/artifact",
        build(quickstart, 12),
        InputConvention(size=64),
        tuple("abcdefghijkl"),
        about,
    )
    save(tmp_path / "runs/my-resnet50/artifact", build(NetOptions(), 3), InputConvention(), ("a", "b", "c"), about)
    monkeypatch.chdir(tmp_path)
    names: dict = {"images": torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)}
    exec(use, names)
    assert list(names["maps"]) == ["C2", "C3", "C4", "C5"]
    assert names["logits"].shape == (2, 12)
    assert names["net"].stages["C2"].channels == 16  # as the comment says
    exec("import timm\nnet = " + in_timm, names)
    assert names["net"].num_classes == 3

    options = read_yaml(ROOT / "jobs/recipes/quickstart/detector.yaml")["detector"]
    detector = build_detector(DetectorOptions.model_validate(options), build(quickstart, 12), 12)
    place = tmp_path / "runs/quickstart-residual-seed0/artifact"
    save_detector(
        place, detector, InputConvention(), Categories(tuple("abcdefghijkl"), tuple(range(12))), (128, 128), {}
    )
    photos = [np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)]
    exec(ask, {"photos": photos})


def test_training_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there, but for recipes of its own under the same names, which win over ours: seconds in place of
    minutes, and without Ray."""
    classify = {**TINY, "model": {"net": "resnet", "depth": 18, "width": 0.125}}
    detect = {
        **SMALL,
        "detector": {**SMALL["detector"], "norm": "trainable"},
        "optim": {**SMALL["optim"], "micro_batch": 8},
        "schedule": {"kind": "constant", "unit": "iterations", "total": 2},
    }
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart/residual.yaml").write_text(yaml.safe_dump(classify))
    (tmp_path / "quickstart/detector.yaml").write_text(yaml.safe_dump(detect))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(blocks("python")[3], names)
    run, tuned, told = names["run"], names["tuned"], names["told"]
    assert run.url == str(tmp_path / "runs/mine")
    assert load(run.artifact)[2]["provenance"]["steps"] == 3
    assert 0 <= run.results["val_error"] <= 100
    assert tuned.url == str(tmp_path / "runs/mine-detector")
    assert tuned.results["images"] == detect["data"]["val_images"]
    assert [row["label"] for row in told.report["rows"]] == ["yours", "from-scratch"]
    assert told.failed == {}
    assert (tmp_path / "runs/mine-gains/report.html").exists()
    assert backbone.pretrain("quickstart/residual.yaml", name="mine", schedule={"total": 3}).seconds is None
    with pytest.raises(UserError, match=r"optim\.lr: Input should be greater than 0"):
        backbone.pretrain("quickstart/residual.yaml", name="mine", **{"optim.lr": 0})
    assert detection.finetune.FINETUNE is FINETUNE  # it is a module, too


def test_files_it_names_exist() -> None:
    for name in re.findall(r"(?:docs|jobs)/[\w./-]+\.(?:md|png|py|yaml)", README):
        assert (ROOT / name).exists(), name
