"""Two splits from a recipe's `data:` section, and the check that their labels mean the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from backbone.errors import UserError
from detection.data.options import CocoData, ScenesData, VocData
from detection.data.sources import judged_on_trained, open_source, open_sources, open_val
from tests.detection.data.making import make_coco, make_voc


def coco(tmp_path: Path, change: Any, **rest: Any) -> CocoData:
    train, val = make_coco(tmp_path / "a", split="train"), make_coco(tmp_path / "b", change)
    return CocoData(train=str(train), val=str(val), **rest)


def test_synthetic() -> None:
    data = ScenesData(train_images=5, val_images=3, objects=(2, 2), render=64)
    train, val = open_sources(data)
    assert (len(train), len(val)) == (5, 3)
    assert open_val(data).fingerprint == val.fingerprint
    assert train.num_objects().tolist() == [2] * 5
    assert not np.array_equal(train.image(0), val.image(0))
    assert not np.array_equal(train.image(0), open_sources(data.model_copy(update={"seed": 2}))[0].image(0))
    with pytest.raises(ValidationError, match="1 or more"):
        ScenesData(objects=(0, 2))


def test_coco_and_keep_empty(tmp_path: Path) -> None:
    train, val = open_sources(coco(tmp_path, lambda tree: None, keep_empty=False, cache=str(tmp_path / "mine")))
    assert (len(train), len(val)) == (3, 4)
    assert list((tmp_path / "mine").iterdir())


def test_val_alone(tmp_path: Path) -> None:
    data = coco(tmp_path, lambda tree: None, keep_empty=False)
    assert open_val(data).fingerprint == open_sources(data)[1].fingerprint


def test_voc(tmp_path: Path) -> None:
    place = f"{make_voc(tmp_path)}:trainval"
    train, val = open_sources(VocData(train=place, val=place))
    assert (len(train), len(val)) == (3, 3)
    with pytest.raises(UserError, match="nothing: Pascal VOC is given as"):
        open_sources(VocData(train=place, val="nothing"))


def test_category_ids_may_differ_but_names_and_their_order_may_not(tmp_path: Path) -> None:
    def shift(tree: dict[str, Any]) -> None:
        for one in tree["categories"]:
            one["id"] += 100
        for one in tree["annotations"]:
            one["category_id"] += 100

    train, val = open_sources(coco(tmp_path / "1", shift))
    assert val.objects(0).labels.tolist() == train.objects(0).labels.tolist()
    assert {one["category_id"] for one in val.ground_truth()["annotations"]} == {103, 105, 109}

    with pytest.raises(UserError, match="only in train: cat; only in val: kitten"):
        open_sources(coco(tmp_path / "2", lambda tree: tree["categories"][0].update(name="kitten")))

    def swap(tree: dict[str, Any]) -> None:
        tree["categories"][0]["id"], tree["categories"][1]["id"] = 3, 9

    with pytest.raises(UserError, match="number 1 is dog in train, but cat in val"):
        open_sources(coco(tmp_path / "3", swap))


def test_nothing_to_train_on(tmp_path: Path) -> None:
    crowds = make_coco(tmp_path, lambda tree: [one.update(iscrowd=1) for one in tree["annotations"]])
    with pytest.raises(
        UserError,
        match=r"no object to train on; left out: 5 crowds; look at it with python jobs/doctor.py --source coco",
    ):
        open_sources(CocoData(train=str(crowds), val=str(crowds)))


def test_unknown_kind() -> None:
    with pytest.raises(UserError, match="imagefolder; there are coco, voc"):
        open_source("imagefolder", "x")


def test_images_of_both_lists_are_told_of(tmp_path: Path) -> None:
    """Pascal VOC's trainval holds all of val."""
    root = make_voc(tmp_path)
    names = (root / "ImageSets/Main/trainval.txt").read_text().split()
    (root / "ImageSets/Main/val.txt").write_text(f"{names[0]}\n")
    (root / "ImageSets/Main/rest.txt").write_text("\n".join(names[1:]))
    data = VocData(train=f"{root}:trainval", val=f"{root}:val")
    (line,) = judged_on_trained(data, *open_sources(data))
    assert f"1 of its 1 images are trained on, too ({root}/JPEGImages/{names[0]}.jpg)" in line
    apart = data.model_copy(update={"train": f"{root}:rest"})
    assert judged_on_trained(apart, *open_sources(apart)) == []
