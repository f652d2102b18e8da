"""A planted data set in ILSVRC's CLS-LOC layout."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from backbone.errors import UserError
from detection.localisation.clsloc import open_clsloc

CAT, DOG = "n02123045", "n02085620"
Box = tuple[int, int, int, int]


def write_image(root: Path, name: str, objects: list[tuple[str, Box]], sides: tuple[int, int] = (40, 60)) -> None:
    """An image of `sides` (height, width) with its annotation; boxes as written: from 1, last pixel included."""
    image, file = root / "Data/CLS-LOC" / f"{name}.JPEG", root / "Annotations/CLS-LOC" / f"{name}.xml"
    for path in (image, file):
        path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 256, (*sides, 3), np.uint8)
    image.write_bytes(cv2.imencode(".jpg", pixels)[1].tobytes())
    parts = "".join(
        f"<object><name>{synset}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult><bndbox>"
        f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for synset, (x1, y1, x2, y2) in objects
    )
    file.write_text(
        f"<annotation><folder>{name.split('/')[-2]}</folder><filename>{name.split('/')[-1]}</filename><source>"
        f"<database>ILSVRC_2012</database></source><size><width>{sides[1]}</width><height>{sides[0]}</height>"
        f"<depth>3</depth></size><segmented>0</segmented>{parts}</annotation>"
    )


def write_list(root: Path, name: str, lines: list[str]) -> None:
    folder = root / "ImageSets/CLS-LOC"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text("".join(f"{line} {k}\n" for k, line in enumerate(lines, 1)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three training images of two classes; of three validation images one has two instances."""
    place = tmp_path / "ILSVRC"
    write_image(place, f"train/{CAT}/{CAT}_18", [(CAT, (1, 1, 10, 20))])
    write_image(place, f"train/{CAT}/{CAT}_7", [(CAT, (5, 6, 30, 40)), (DOG, (1, 1, 5, 5))])
    write_image(place, f"train/{DOG}/{DOG}_3", [(DOG, (11, 21, 60, 40))], (50, 70))
    write_list(place, "train_loc", [f"{CAT}/{CAT}_18", f"{CAT}/{CAT}_7", f"{DOG}/{DOG}_3"])
    write_image(place, "val/ILSVRC2012_val_00000001", [(DOG, (1, 1, 60, 40))])
    write_image(place, "val/ILSVRC2012_val_00000002", [(CAT, (1, 1, 20, 20)), (CAT, (31, 1, 60, 20))])
    write_image(place, "val/ILSVRC2012_val_00000003", [(DOG, (2, 3, 4, 5))])
    write_list(place, "val", [f"ILSVRC2012_val_0000000{k}" for k in (1, 2, 3)])
    return place


def test_classes_boxes_and_sizes(root: Path, tmp_path: Path) -> None:
    train = open_clsloc(f"{root}:train_loc", str(tmp_path / "cache"))
    assert train.classes == (DOG, CAT)  # sorted, as class folders are
    assert train.labels.tolist() == [1, 1, 0]
    assert train.boxes(0).tolist() == [[0, 0, 10, 20]]  # pixels 1 to 10 are 10 wide
    assert train.boxes(1).tolist() == [[4, 5, 30, 40]]  # not the dog in a cat's picture
    assert train.sides.tolist() == [[40, 60], [40, 60], [50, 70]]
    assert train.image(2).shape == (50, 70, 3)
    assert train.name(0).endswith(f"Data/CLS-LOC/train/{CAT}/{CAT}_18.JPEG")
    assert ["1 boxes that are empty or of another class" in one.as_line() for one in train.findings] == [True]
    again = pickle.loads(pickle.dumps(train))
    assert again.boxes(1).tolist() == train.boxes(1).tolist()
    assert again.labels.tolist() == [1, 1, 0]


def test_validation_images_have_the_class_of_their_objects(root: Path, tmp_path: Path) -> None:
    val = open_clsloc(f"{root}:val", str(tmp_path / "cache"))
    assert [val.classes[k] for k in val.labels] == [DOG, CAT, DOG]
    assert val.boxes(1).tolist() == [[0, 0, 20, 20], [30, 0, 60, 20]]


def test_the_blacklist_goes_by_numbers_of_the_list(root: Path, tmp_path: Path) -> None:
    black = tmp_path / "ILSVRC2015_clsloc_validation_blacklist.txt"
    black.write_text("2\n")
    val = open_clsloc(f"{root}:val", str(tmp_path / "cache"), str(black))
    assert len(val) == 2
    assert val.name(1).endswith("val_00000003.JPEG")
    assert val.boxes(1).tolist() == [[1, 2, 4, 5]]
    black.write_text("two")
    with pytest.raises(UserError, match=r"data\.blacklist .*blacklist.txt: not a file of numbers"):
        open_clsloc(f"{root}:val", str(tmp_path / "cache"), str(black))


def test_another_box_is_other_data(root: Path, tmp_path: Path) -> None:
    before = open_clsloc(f"{root}:val", str(tmp_path / "cache")).fingerprint
    assert open_clsloc(f"{root}:val", str(tmp_path / "cache")).fingerprint == before
    write_image(root, "val/ILSVRC2012_val_00000003", [(DOG, (2, 3, 4, 6))])
    assert open_clsloc(f"{root}:val", str(tmp_path / "cache")).fingerprint != before


def test_images_without_a_box_are_left_out_and_named(root: Path, tmp_path: Path) -> None:
    write_image(root, f"train/{CAT}/{CAT}_18", [(CAT, (10, 10, 9, 9))])
    train = open_clsloc(f"{root}:train_loc", str(tmp_path / "cache"))
    assert len(train) == 2
    assert any("without a box" in one.as_line() and f"{CAT}_18" in one.as_line() for one in train.findings)


def test_faults_are_named(root: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    with pytest.raises(UserError, match=r"give folder:list, such as /data/ILSVRC:train_loc"):
        open_clsloc(str(root), cache)
    with pytest.raises(UserError, match=r"test\.txt: No such file.*lists there: train_loc, val"):
        open_clsloc(f"{root}:test", cache)
    write_image(root, "val/ILSVRC2012_val_00000003", [(DOG, (2, 3, 4, 5)), (CAT, (2, 3, 4, 5))])
    with pytest.raises(UserError, match=r"val_00000003\.xml: has objects of 2 classes"):
        open_clsloc(f"{root}:val", cache)
    (root / "Annotations/CLS-LOC/val/ILSVRC2012_val_00000003.xml").write_text("<annotation")
    with pytest.raises(UserError, match=r"val_00000003\.xml: damaged XML"):
        open_clsloc(f"{root}:val", cache)
    (root / "Annotations/CLS-LOC/val/ILSVRC2012_val_00000003.xml").unlink()
    with pytest.raises(UserError, match=r"val_00000003\.xml: No such file"):
        open_clsloc(f"{root}:val", cache)
