"""What a fine-tuning recipe refuses before anything slow is imported, and what its identity is."""

import subprocess
import sys
from typing import Any

import pytest

from backbone.cli import validate
from backbone.errors import UserError
from backbone.training.recipe import identity, recipe_hash
from backbone.training.run import open_run
from detection.recipe import DetectorEvaluation, Finetune
from tests.conftest import ROOT
from tests.detection.conftest import Make

VOC = {"source": "voc", "train": "VOC2007:trainval", "val": "VOC2007:test"}

MISTAKES = [
    pytest.param({"from_scratch": True}, "from_scratch: what is random must train", id="random norms frozen"),
    pytest.param(
        {"from_scratch": True, "detector.norm": "trainable"}, r"over 4 image.*; --detector\.norm group", id="few images"
    ),
    pytest.param({"from_scratch": True, "detector.norm": "group", "detector.freeze_at": 1}, "freeze_at 0", id="stem"),
    pytest.param({"data": VOC, "detector.masks": True}, "detector.masks: Pascal VOC", id="masks of VOC"),
    pytest.param({"data": {**VOC, "train": ""}}, "data.train is empty", id="nothing to train on"),
    pytest.param({"compute.compile": "default"}, "compute.compile", id="compile"),
    pytest.param({"schedule.hold_lr": 0.01}, "schedule.hold_lr", id="hold"),
    pytest.param({"detector.nrom": "frozen"}, "detector.nrom: unknown key; perhaps you meant detector.norm", id="typo"),
    pytest.param({"detector.roi.size": -1}, "detector.roi.size", id="size"),
    pytest.param({"optim.batch": 6}, "micro_batch 4 does not divide batch 6", id="batch"),
    pytest.param({"eval_batch": 0}, "eval_batch", id="empty batches"),
    pytest.param({"compute.precision": "fp16"}, "fp16 needs scaling.use_gpu", id="fp16"),
    pytest.param({"data": {"seed": 2**64}}, "data.seed: .*less than 9223372036854775808", id="seed of the scenes"),
    pytest.param(
        {"detector.norm": "trainable", "optim.micro_batch": 1, "data.shorter_side": [32]},
        "one value a channel; set optim.micro_batch to 2",
        id="one value",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "complaint"), MISTAKES)
def test_mistakes_are_named(small: Make, change: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        small(change)


def test_norm_and_freeze_must_be_given() -> None:
    """What becomes of the backbone's norms is never assumed."""
    with pytest.raises(UserError) as error:
        validate(Finetune, {"backbone": "x", "detector": {}}, "file.yaml")
    assert "file.yaml: detector.norm: Field required" in str(error.value)
    assert "file.yaml: detector.freeze_at: Field required" in str(error.value)


def test_places_are_no_part_of_a_runs_identity(small: Make) -> None:
    """Data may move, and so may the backbone, which is identified by its weights."""
    moved = {"backbone": "elsewhere", "data.workers": 3, "eval_batch": 4, "scaling.num_workers": 2, "name": "another"}
    assert recipe_hash(small()) == recipe_hash(small(moved))
    learns = {"seed": 1, "detector.roi.canonical": 64, "data.shorter_side": [32, 64], "optim.lr": 1}
    hashes = {recipe_hash(small({field: value})) for field, value in learns.items()}
    assert len(hashes | {recipe_hash(small())}) == 1 + len(learns)
    assert not {"backbone", "data.workers", "eval_batch"} & identity(small()).keys()


CHANGED: dict[str, Any] = {
    "optim.kind": "lamb",
    "optim.betas": [0.9, 0.95],
    "data.augment.canvas": 64,
    "data.augment.scales": [0.5, 1.0],
    "data.augment.paste": 0.5,
}
NEEDED: dict[str, dict[str, Any]] = {
    "new_heads": {"backbone": "", "from_detector": "elsewhere"},
    "optim.betas": {"optim.kind": "adamw"},
    "data.augment.scales": {"data.augment.canvas": 64},
}


def test_fields_that_came_later_leave_the_identity_of_older_runs_alone(small: Make) -> None:
    """At what was done before; anything else is another run, and says so."""
    assert not Finetune.LATER.keys() & identity(small()).keys()
    tree = small().model_dump(mode="json")
    for field, before in Finetune.LATER.items():
        section, _, name = field.rpartition(".")
        place = tree
        for part in filter(None, section.split(".")):
            place = place[part]
        assert place[name] == before, field
        words = {"uniform": "normal", "joint": "rpn"}
        if field in CHANGED:
            other = CHANGED[field]
        else:
            other = words.get(before, not before if before is False else 0.5 if before == 1 else 7)
        changed = small({field: other, **NEEDED.get(field, {})})
        assert identity(changed)[field] == other
        assert recipe_hash(changed) != recipe_hash(small())


@pytest.mark.parametrize("before", [True, False])
def test_a_field_that_came_later_tells_runs_apart_all_the_same(before: bool, small: Make) -> None:
    recipes = [small(), small({"detector.roi.beta": 1.0})]
    one, other = recipes if before else reversed(recipes)
    open_run(one, {}, 1)
    open_run(one, {}, 1)
    was, now = (r"0.111\d+", "1.0") if before else ("1.0", r"0.111\d+")
    with pytest.raises(UserError, match=f"detector.roi.beta: the run has {was}, this recipe {now}"):
        open_run(other, {}, 1)


def test_titles(small: Make) -> None:
    assert small().title == "faster-rcnn-fpn"
    assert small({"detector.masks": True}).title == "mask-rcnn-fpn"
    assert small({"name": ""}).run_name.startswith("faster-rcnn-fpn-")
    assert small({"detector": {"kind": "retinanet", "norm": "frozen", "freeze_at": 1}}).title == "retinanet-fpn"


def test_what_one_family_reads_another_refuses_by_name(small: Make) -> None:
    retina = {"kind": "retinanet", "norm": "frozen", "freeze_at": 1}
    for field, value in (("masks", True), ("hidden", 512), ("rpn", {"batch": 64}), ("roi", {"batch": 64})):
        says = rf"detector\.{field}: is read by kind fpn or c4, not by retinanet"
        with pytest.raises(UserError, match=says):
            small({"detector": {**retina, field: value}})
    with pytest.raises(UserError, match=r"detector\.octaves: is read by kind retinanet, not by fpn"):
        small({"detector.octaves": 2})
    # What says nothing is no fault: a recipe may be turned into the other on the command line.
    turned = small({"detector": {**retina, "masks": False, "rpn": "", "hidden": 1024}})
    assert turned.detector == small({"detector": retina}).detector


@pytest.mark.parametrize(
    ("change", "complaint"), [({"compile": "default"}, "compile"), ({"precision": "fp16"}, "use_gpu")]
)
def test_an_evaluation_refuses_what_it_would_not_do(change: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        validate(DetectorEvaluation, {"detector": "x", "compute": change}, "file")


@pytest.mark.parametrize("scales", [[64], [64, 64], [8, 64]])
def test_scales_that_are_none(scales: list[int]) -> None:
    with pytest.raises(UserError, match="give two or more different shorter sides"):
        validate(DetectorEvaluation, {"detector": "x", "scales": scales}, "file")


@pytest.mark.parametrize("scales", [[], [96, 64]])
def test_maxout_wants_ascending_scales(scales: list[int]) -> None:
    with pytest.raises(UserError, match="maxout wants scales in ascending order"):
        validate(DetectorEvaluation, {"detector": "x", "scales": scales, "maxout": True}, "file")


def test_reading_recipes_imports_nothing_slow() -> None:
    """Errors and --help come at once."""
    code = "import sys, detection.recipe, detection.gains; print(*{'torch', 'ray', 'cv2', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


UNREAD = [
    ({}, {"train": "a"}, "train: is read by source coco, voc or det, not by synthetic"),
    ({}, {"val_annotations": "a"}, "val_annotations: is read by source coco, not by synthetic"),
    (VOC, {"train_annotations": "a"}, "train_annotations: is read by source coco, not by voc"),
    (VOC, {"objects": [1, 2]}, "objects: is read by source synthetic, not by voc"),
    (VOC, {"seed": 1}, "seed: is read by source synthetic, not by voc"),
    ({"source": "coco"}, {}, "val: source coco needs it"),
]


@pytest.mark.parametrize(("given", "more", "complaint"), UNREAD)
def test_what_another_source_reads_is_refused(given: dict, more: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=f"^file: data.{complaint}"):
        validate(DetectorEvaluation, {"detector": "x", "data": given | more}, "file")


def test_data_recorded_when_all_sources_had_all_fields_are_read_as_they_were_meant() -> None:
    places = {"train": "", "val": "", "train_annotations": "", "val_annotations": "", "cache": ""}
    scenes = {"seed": 0, "train_images": 2000, "val_images": 500, "objects": [1, 4], "render": 128}
    for given in ({}, VOC, {"source": "coco", "train": "a", "val": "b", "val_annotations": "c"}):
        old, new = (
            validate(DetectorEvaluation, {"detector": "x", "data": d}, "") for d in (places | scenes | given, given)
        )
        assert old == new
