"""Fine-tuning on data and backbones that are not what they should be."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from backbone.errors import UserError
from detection import artifact
from detection.finetune import prepare
from tests.detection.conftest import ALONE, Make, coco, write_backbone, write_scenes
from tests.detection.test_finetune import folder, run, task_of


def test_nothing_readable_to_evaluate_on(small: Make, scenes: tuple[Path, Path]) -> None:
    """Before anything is trained; one intact image is enough. Where files vanish later, no AP of 0 is made up."""
    for file in scenes[1].iterdir():
        file.write_bytes(b"no image")
    chosen = small({"data": coco(*scenes, on_bad="skip")})
    says = r"data\.val: none of its 8 images can be read, so nothing can be evaluated: .*\.jpg"
    with pytest.raises(UserError, match=says):
        prepare(chosen, lambda text: None)
    task = task_of(chosen)
    with pytest.raises(UserError, match=says):
        task.evaluate(task.model.eval(), ALONE)
    shutil.copy(scenes[0] / "3.jpg", scenes[1] / "3.jpg")
    prepare(chosen, lambda text: None)
    assert task.evaluate(task.model.eval(), ALONE)["images"] == 8


@pytest.fixture
def scenes(tmp_path: Path) -> tuple[Path, Path]:
    return write_scenes(tmp_path / "data", "train", 16), write_scenes(tmp_path / "data", "val", 8)


def break_image(folder: Path) -> str:
    file = folder / "9.jpg"
    file.write_bytes(file.read_bytes()[:60])
    return str(file)


def test_a_corrupt_image_in_the_middle_of_an_epoch(small: Make, scenes: tuple[Path, Path]) -> None:
    """Named with the fix, or skipped and kept in the artifact's provenance, also where the run was interrupted."""
    name = break_image(scenes[0])
    with pytest.raises(UserError) as error:
        run(small({"data": coco(*scenes), "name": "stops"}))
    assert name in str(error.value)
    assert "mend or remove it, or set data.on_bad: skip" in str(error.value)
    chosen = small({"data": coco(*scenes, on_bad="skip", max_bad=1), "name": "skips", "schedule.total": 6})
    run(chosen, stop_at=4)
    run(chosen)
    bad = artifact.load(folder(chosen) / "artifact").block["provenance"]["bad_images"]
    assert [name in text for text in bad] == [True]
    with pytest.raises(UserError, match=r"more than data\.max_bad 0"):
        run(small({"data": coco(*scenes, on_bad="skip", max_bad=0), "name": "strict", "schedule.total": 6}))


def without_objects(folder: Path) -> None:
    file = folder.parent / "annotations" / f"instances_{folder.name}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))


def without_masks(folder: Path) -> None:
    file = folder.parent / "annotations" / f"instances_{folder.name}.json"
    tree = json.loads(file.read_text())
    for annotation in tree["annotations"]:
        del annotation["segmentation"]
    file.write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("break_", "options", "complaint"),
    [
        (lambda train, val: without_objects(train), {}, "no object to train on"),
        (lambda train, val: without_objects(val), {}, r"data\.val: no objects at all"),
        (lambda train, val: without_masks(train), {"detector.masks": True}, r"not every object of data\.train"),
        (lambda train, val: (val / "0.jpg").unlink(), {}, r"0\.jpg"),
    ],
    ids=["nothing to learn", "nothing to judge", "no masks", "no file"],
)
def test_bad_data_is_named(small: Make, scenes: tuple[Path, Path], break_: Any, options: dict, complaint: str) -> None:
    break_(*scenes)
    with pytest.raises(UserError, match=complaint):
        run(small({"data": coco(*scenes), **options}))


def test_masks_that_are_not_judged_are_told_of(small: Make, scenes: tuple[Path, Path]) -> None:
    file = scenes[1].parent / "annotations" / f"instances_{scenes[1].name}.json"
    tree = json.loads(file.read_text())
    tree["annotations"][0]["segmentation"] = [[1, 1, 5, 5]]
    file.write_text(json.dumps(tree))
    said: list[str] = []
    prepare(small({"data": coco(*scenes), "detector.masks": True}), said.append)
    assert any("masks are not judged" in line for line in said)


def test_classes_that_differ(small: Make, tmp_path: Path) -> None:
    train = write_scenes(tmp_path / "data", "train", 8, (7, 3))
    val = write_scenes(tmp_path / "data", "val", 8)
    with pytest.raises(UserError, match="only in val: green"):
        prepare(small({"data": coco(train, val)}), lambda text: None)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"detector.norm": "group"}, "detector.norm group: resnet18 with model.norm batch takes frozen or trainable"),
        ({"detector.anchor_sizes": [8, 16]}, "anchor_sizes has 2 sizes; kind fpn on resnet18 needs 5"),
        ({"scaling.num_workers": 3}, "do not split over scaling.num_workers 3"),
    ],
)
def test_impossible_detectors_and_splits(small: Make, options: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        prepare(small(options), lambda text: None)
    assert not list(folder(small()).rglob("*"))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_an_incomplete_backbone(small: Make, tmp_path: Path, missing: str) -> None:
    url = write_backbone(tmp_path / "broken")
    Path(url, missing).unlink()
    with pytest.raises(UserError, match=missing):
        prepare(small({"backbone": url}), lambda text: None)


def test_a_damaged_backbone(small: Make, tmp_path: Path) -> None:
    url = write_backbone(tmp_path / "broken")
    file = Path(url, "model.safetensors")
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors: SHA-256 is not the one"):
        prepare(small({"backbone": url}), lambda text: None)
