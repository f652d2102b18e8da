"""Every next step is a command that its job takes, with nothing left out but what is in capitals."""

import re
import shlex
from pathlib import Path

import pytest

from backbone import next_steps as steps
from backbone.cli import parse
from detection.gains import Gains, plan
from tests.test_readme import MODELS, ROOT

VOC = {"source": "voc", "train": "boxes:train", "val": "boxes:val"}
COCO = {"source": "coco", "train": "a b/train", "val": "a b/val", "train_annotations": "x.json", "val_annotations": ""}


@pytest.mark.parametrize(
    "said",
    [
        steps.after_doctor("imagefolder", "photos/train", "photos/val", 900),
        steps.after_doctor("imagefolder", "photos/train", "", 30_000),
        steps.after_doctor("parquet", "train-*.parquet", "test-*.parquet", 900),
        steps.after_doctor("ilsvrc", "ILSVRC2012_img_val.tar", "", 900),
        steps.after_doctor("coco", "coco/train2017", "", 900),
        steps.after_doctor("voc", "VOC2007:trainval,VOC2012:trainval", "", 900),
        steps.after_preparing("shards/train"),
        steps.after_backbone("runs/mine/artifact"),
        steps.after_backbone("runs/mine/artifact", synthetic=True),
        steps.after_detector("runs/a detector/artifact"),
        steps.after_evaluation({"recipe": {"backbone": "runs/mine/artifact", "data": VOC}}),
        steps.after_evaluation({"recipe": {"backbone": "runs/mine/artifact", "data": COCO}}),
        steps.after_evaluation({"recipe": {"backbone": "runs/mine/artifact", "data": {"source": "synthetic"}}}),
        steps.after_gains("runs/mine/artifact", "timm"),
    ],
)
def test_it_can_be_typed(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for line in said.splitlines():
        label, python, job, *words = shlex.split(line)
        assert (label, python) == ("next", "python")
        name = re.fullmatch(r"jobs/(\w+)\.py", job)
        assert name
        options, _ = parse(MODELS[name[1]], words, {"dry_run": ""})
        if isinstance(options, Gains):
            assert {recipe.backbone for recipe in plan(options).finetunings.values()} == {"runs/mine/artifact"}


def test_paths_are_as_short_as_they_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--backbone runs/mine/artifact " in steps.after_backbone(f"{tmp_path}/runs/mine/artifact")
    assert "--backbone /elsewhere/artifact " in steps.after_backbone("/elsewhere/artifact")
    assert "--backbone s3://bucket/artifact " in steps.after_backbone("s3://bucket/artifact")


def test_begun_by_the_console_it_is_said_in_that_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYBONE_CONSOLE", "1")
    assert steps.after_backbone("a", synthetic=True) == (
        "next      raybone finetune --config quickstart/detector.yaml --backbone a"
    )
