"""A planted data set in ImageNet DET's layout."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from backbone.cli import validate
from backbone.errors import UserError
from backbone.training.recipe import identity
from detection import scoring
from detection.data.det import Choice, open_det, read_devkit
from detection.data.sources import open_sources, open_val
from detection.finetune import finetune, prepare
from detection.recipe import Finetune
from tests.detection.conftest import ALONE, recipe

ANT, BEE, COW = "n02219486", "n02206856", "n01887787"
Box = tuple[int, int, int, int]
KITS = {"ant": ANT, "bee": BEE, "cow": COW}


def write(root: Path, name: str, objects: list[tuple[str, Box]] | None, sides: tuple[int, int] = (40, 60)) -> None:
    """An image of `sides` (height, width) with its annotation, or without one."""
    image, file = root / "Data/DET" / f"{name}.JPEG", root / "Annotations/DET" / f"{name}.xml"
    for path in (image, file):
        path.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(cv2.imencode(".jpg", np.full((*sides, 3), 90, np.uint8))[1].tobytes())
    if objects is None:
        return
    parts = "".join(
        f"<object><name>{wnid}</name><subcategory>n02220000</subcategory><bndbox><xmin>{x1}</xmin><xmax>{x2}</xmax>"
        f"<ymin>{y1}</ymin><ymax>{y2}</ymax></bndbox></object>"
        for wnid, (x1, y1, x2, y2) in objects
    )
    file.write_text(
        f"<annotation><folder>x</folder><filename>{Path(name).name}</filename><source><database>ILSVRC_2013</database>"
        f"</source><size><width>{sides[1]}</width><height>{sides[0]}</height></size>{parts}</annotation>"
    )


def write_list(root: Path, name: str, lines: list[str]) -> None:
    folder = root / "ImageSets/DET"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = tmp_path / "ILSVRC"
    first, second = f"ILSVRC2013_train/{ANT}/{ANT}_1", "ILSVRC2014_train_0000/ILSVRC2014_train_00000001"
    extra, part = "ILSVRC2013_DET_train_extra0/ILSVRC2013_train_00000009", f"ILSVRC2013_train/{BEE}/{BEE}_5"
    write(place, f"train/{first}", [(ANT, (1, 1, 10, 20))])
    write(place, f"train/{second}", [(ANT, (5, 6, 30, 40)), (BEE, (11, 1, 20, 10)), (BEE, (31, 1, 40, 10))])
    write(place, f"train/{part}", [(BEE, (1, 1, 9, 9))])
    write(place, f"train/{extra}", None, (30, 50))
    write_list(place, "train_1", [f"{first} 1", f"{second} 1", f"{extra} -1"])
    write_list(place, "train_2", [f"{second} 1", f"{part} 0", f"{extra} -1", f"{first} -1"])
    for k, objects in enumerate([[(ANT, (1, 1, 60, 40))], [(BEE, (3, 3, 12, 12))], [], [(COW, (1, 1, 5, 5))]], 1):
        write(place, f"val/ILSVRC2012_val_{k:08}", objects)
    write_list(place, "val", [f"ILSVRC2012_val_{k:08} {k}" for k in (1, 2, 3, 4)])
    write_list(place, "val1", ["ILSVRC2012_val_00000001 1", "ILSVRC2012_val_00000003 2"])
    write_list(place, "val2", ["ILSVRC2012_val_00000002 1", "ILSVRC2012_val_00000004 2"])
    return place


@pytest.fixture
def devkit(tmp_path: Path) -> str:
    """Numbers 1 to 3, and an inner node beyond the 200 as in the devkit of 2013."""
    folder = tmp_path / "devkit"
    folder.mkdir()
    kinds = [("ILSVRC2015_DET_ID", object), ("WNID", object), ("name", object), ("description", object)]
    rows = [(k, wnid, name, name) for k, (name, wnid) in enumerate(KITS.items(), 1)] + [(201, "n0", "animal", "")]
    savemat(folder / "meta_det.mat", {"synsets": np.array(rows, kinds)})
    (folder / "ILSVRC2015_det_validation_blacklist.txt").write_text(f"2 {BEE}\n4 {ANT}\n4 {COW}\n")
    return str(folder)


def opened(root: Path, tmp_path: Path, train: str = "train", val: str = "val", devkit: str = "", **choice: bool) -> Any:
    locations = [",".join(f"{root}:{name}" for name in names.split(",")) for names in (train, val)]
    return open_det(locations, Choice(**choice), devkit=devkit, cache=str(tmp_path / "cache"))


def names(source: Any) -> list[str]:
    return [Path(source.name(i)).stem[-3:] for i in range(len(source))]


def test_classes_boxes_and_numbers(root: Path, tmp_path: Path) -> None:
    train, val = opened(root, tmp_path)
    assert train.categories.names == val.categories.names == (COW, BEE, ANT)  # sorted by WordNet id
    objects = train.objects(1)
    assert objects.boxes.tolist() == [[4, 5, 30, 40], [10, 0, 20, 10], [30, 0, 40, 10]]
    assert objects.labels.tolist() == [3, 2, 2]
    assert train.image(0).shape == (40, 60, 3)
    assert val.image_ids.tolist() == [1, 2, 3, 4]  # the numbers of the list
    assert val.num_objects().tolist() == [1, 1, 0, 1]


def test_training_takes_what_is_annotated_in_full(root: Path, tmp_path: Path) -> None:
    train, _ = opened(root, tmp_path)
    assert names(train) == ["6_1", "001"]  # an image is positive for one class and negative for another
    told = " ".join(one.as_line() for one in train.findings)
    assert "1 images that are annotated in part: left out of training; data.partial true takes them" in told
    assert "1 negative images: left out of training; data.negatives true takes them" in told
    partial, _ = opened(root, tmp_path, partial=True)
    assert names(partial) == ["6_5", "6_1", "001"]
    negatives, _ = opened(root, tmp_path, negatives=True)
    assert names(negatives) == ["009", "6_1", "001"]
    assert negatives.sizes.tolist()[0] == [30, 50]  # without an annotation, as the image has it
    assert negatives.num_objects().tolist() == [0, 1, 3]


def test_the_papers_training_data_are_train_and_val1(root: Path, tmp_path: Path) -> None:
    train, val = opened(root, tmp_path, "train,val1", "val2")
    assert names(train) == ["6_1", "001", "001", "003"]
    assert names(val) == ["002", "004"]
    one, _ = opened(root, tmp_path, "train_2", "val2")
    assert names(one) == ["001"]


def test_the_devkit_gives_names_order_and_blacklist(root: Path, devkit: str, tmp_path: Path) -> None:
    train, val = opened(root, tmp_path, "train,val1", "val2", devkit)
    assert train.categories.names == ("ant", "bee", "cow")
    assert train.objects(1).labels.tolist() == [1, 2, 2]
    truth = val.ground_truth()
    assert truth["info"]["layout"] == "ilsvrc-det"
    # Numbers 2 and 4 of val are images 1 and 2 of val2.
    assert [image.get("blacklisted") for image in truth["images"]] == [[2], [1, 3]]
    assert val.ground_truth(np.array([1]))["images"][0]["blacklisted"] == [1, 3]
    everything, _ = opened(root, tmp_path, "val", "val2", devkit)
    Path(devkit, "ILSVRC2015_det_validation_blacklist.txt").write_text("")
    free, _ = opened(root, tmp_path, "val", "val2", devkit)
    assert free.fingerprint != everything.fingerprint
    assert len(read_devkit(devkit).names) == 3


def test_a_recipe_reads_it(root: Path, devkit: str, tmp_path: Path) -> None:
    data = {"source": "det", "train": f"{root}:train", "val": f"{root}:val", "devkit": devkit}
    tree = {"detector": {"norm": "frozen", "freeze_at": 0}, "data": data | {"cache": str(tmp_path / "cache")}}
    found = validate(Finetune, tree, "test", {"backbone": "b"})
    train, val = open_sources(found.data)
    assert (len(train), len(val)) == (2, 4)
    assert open_val(found.data).fingerprint == val.fingerprint
    assert {name for name in identity(found) if "devkit" in name} == set()
    with pytest.raises(UserError, match=r"detector\.masks: ImageNet DET's boxes come without masks"):
        validate(Finetune, tree, "test", {"backbone": "b", "detector.masks": True})


def test_a_detector_is_trained_and_judged_on_it(root: Path, devkit: str, tmp_path: Path, backbone: str) -> None:
    data = {"source": "det", "train": f"{root}:train", "val": f"{root}:val", "devkit": devkit, "workers": 0}
    data |= {"cache": str(tmp_path / "cache"), "shorter_side": [64], "longer_side": 96}
    small = recipe(tmp_path / "runs", backbone, {"data": data, "schedule.total": 2, "optim.batch": 4})
    metrics = finetune(prepare(small, lambda text: None), ALONE, lambda record: None)
    told = scoring.read(tmp_path / "runs/small/results")
    assert told.ground_truth["info"] == {"layout": "ilsvrc-det"}
    assert [image.get("blacklisted") for image in told.ground_truth["images"]] == [None, [2], None, [1, 3]]
    # Of four images' objects one is judged: the others' classes are on the blacklist, or have none.
    assert metrics["det"]["per_class"]["bee"]["AP"] is None is metrics["det"]["per_class"]["cow"]["AP"]
    assert metrics["det"]["per_class"]["ant"]["AP"] is not None
    assert metrics["voc"]["per_class"]["bee"]["AP"] is not None


def test_faults_are_named(root: Path, devkit: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give folder:list, such as /data/ILSVRC:val"):
        opened(tmp_path, tmp_path)
    with pytest.raises(UserError, match=r"test\.txt: No such file.*lists there: train_1, train_2, val"):
        opened(root, tmp_path, val="test")
    write_list(root, "train_3", ["a 7"])
    with pytest.raises(UserError, match=r"train_3\.txt: 'a 7' is no image with 1, 0 or -1"):
        opened(root, tmp_path)
    (root / "ImageSets/DET/train_3.txt").unlink()
    Path(devkit, "ILSVRC2015_det_validation_blacklist.txt").write_text("2 n7\n")
    with pytest.raises(UserError, match=r"blacklist\.txt: n7 is no class"):
        opened(root, tmp_path, devkit=devkit)
    with pytest.raises(UserError, match=r"data\.devkit .*meta_det\.mat is missing"):
        opened(root, tmp_path, devkit=str(tmp_path))
    (root / "Annotations/DET/val/ILSVRC2012_val_00000002.xml").unlink()
    with pytest.raises(UserError, match=r"val_00000002\.xml: is missing"):
        opened(root, tmp_path)
    (root / "Data/DET/train/ILSVRC2013_DET_train_extra0/ILSVRC2013_train_00000009.JPEG").unlink()
    write(root, "val/ILSVRC2012_val_00000002", [])
    with pytest.raises(UserError, match=r"extra0/ILSVRC2013_train_00000009\.JPEG: is missing"):
        opened(root, tmp_path, negatives=True)
    write(root, "val/ILSVRC2012_val_00000002", [("n123", (1, 1, 5, 5))])
    (Path(devkit) / "ILSVRC2015_det_validation_blacklist.txt").unlink()
    with pytest.raises(UserError, match=r"has classes that .*meta_det\.mat lacks: n123"):
        opened(root, tmp_path, devkit=devkit)
