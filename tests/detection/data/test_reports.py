"""Situations from public bug reports that were read wrongly, in silence, or refused in words that mislead."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backbone.errors import BadImage, UserError
from detection.data.coco import open_coco
from detection.data.coco_table import tabulate_coco
from detection.data.doctor import examine
from detection.data.options import VocData
from detection.data.sources import check_categories, open_source, open_sources, refuse_errors, remarks
from detection.data.units import OTHER_UNITS, corners_given, misfits
from tests.detection.data.making import coco_tree, make_coco, make_voc, voc_xml


def test_corners_without_masks_among_sides_with_masks() -> None:
    """Two tools' annotations joined: masks of the one do not speak for the boxes of the other."""
    sides = np.array([[4.0, 4, 20, 20], [10, 8, 30, 30]])
    corners = np.array([[5.0 + k, 8 + k, 35, 33] for k in range(6)])
    boxes, sizes = np.concatenate([sides, corners]), np.full((8, 2), 64)
    masks = np.concatenate([sides[:, :2], sides[:, :2] + sides[:, 2:]], 1)
    extents = np.concatenate([masks, np.full((6, 4), np.nan)])
    areas = np.concatenate([sides[:, 2:].prod(1), (corners[:, 2:] - corners[:, :2]).prod(1)])
    assert corners_given(boxes, sizes, extents, areas).tolist() == [False] * 2 + [True] * 6
    areas[2:] = corners[:, 2:].prod(1)
    assert not corners_given(boxes, sizes, extents, areas).any()


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_masks_in_other_units_than_boxes(scale: float) -> None:
    """Images and boxes were resized, polygons not: small ones, and ones outside of the image."""
    boxes = np.array([[4.0, 4, 20, 20], [10, 8, 30, 30]])
    extents = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1) * scale
    wrong, compared = misfits(boxes, np.array([[48, 64], [48, 64]]), extents)
    assert wrong.all()
    assert compared.all()


def test_masks_in_other_units_stop_training(tmp_path: Path) -> None:
    def shrink(tree: dict[str, Any]) -> None:
        tree["annotations"] = [
            one | {"segmentation": [[x / 20 for x in (2, 2, 28, 2, 28, 20, 2, 20)]], "bbox": [2, 2, 26, 18]}
            for one in tree["annotations"]
            if not one["iscrowd"]
        ]

    folder = str(make_coco(tmp_path, shrink))
    with pytest.raises(UserError, match=OTHER_UNITS[0] + "|polygons given as fractions"):
        refuse_errors(open_coco(folder), "coco", folder)


def test_annotations_with_a_suffix_in_capitals(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    for file in (root / "Annotations").glob("*.xml"):
        file.rename(file.with_suffix(".XML"))
    assert open_source("voc", f"{root}:trainval").num_objects().tolist() == [2, 1, 0]
    assert not examine("voc", f"{root}:trainval").errors


@pytest.mark.parametrize("name", ["R&D", "a &b", "bolt&nbsp;m3"])
def test_what_xml_wants_written_otherwise_is_not_called_damaged(tmp_path: Path, name: str) -> None:
    root = make_voc(tmp_path)
    text = voc_xml("000012", (40, 60), [("dog", (1, 1, 9, 9), 0)])
    (root / "Annotations/000012.xml").write_text(text.replace("dog", name))
    with pytest.raises(UserError, match="write &amp; for &") as caught:
        open_source("voc", f"{root}:trainval")
    assert "restore" not in str(caught.value)
    (root / "Annotations/000012.xml").write_text(text.replace("dog", "<![CDATA[R&D]]>"))
    assert "R&D" in open_source("voc", f"{root}:trainval").categories.names


def test_a_list_with_flags_is_not_told_to_use_itself(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    (root / "ImageSets/Main/mine.txt").write_text("000012 1\n000005 -1\n")
    with pytest.raises(UserError, match=r"awk '\{print \$1\}' ImageSets/Main/mine.txt"):
        open_source("voc", f"{root}:mine")


def test_names_that_end_in_a_number_are_names(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"photo 0": [("dog", (1, 1, 9, 9), 0)], "photo 1": []})
    assert open_source("voc", f"{root}:trainval").num_objects().tolist() == [1, 0]


@pytest.mark.parametrize("other", ["dog ", "\ufeffdog", "do\u200bg", "Dog"])
def test_names_that_look_alike_are_shown_apart(tmp_path: Path, other: str) -> None:
    train = open_coco(str(make_coco(tmp_path / "a")))
    val = open_coco(str(make_coco(tmp_path / "b", lambda tree: tree["categories"][1].update(name=other))))
    with pytest.raises(UserError) as caught:
        check_categories(train, val)
    assert f"'dog' in train is {other!a} in val" in str(caught.value)


def test_classes_that_differ_by_what_nobody_sees(tmp_path: Path) -> None:
    source = open_coco(str(make_coco(tmp_path, lambda tree: tree["categories"][0].update(name="dog\u200b"))))
    assert any("'dog' and 'dog\\u200b'" in line for line in remarks(source))


@pytest.mark.parametrize("key", ["image_id", "category_id"])
@pytest.mark.parametrize("kind", [float, str])
def test_ids_of_another_type_are_named_as_that(key: str, kind: type) -> None:
    tree = coco_tree()
    tree["annotations"][0][key] = kind(tree["annotations"][0][key])
    (finding,) = tabulate_coco(tree).refused.sorted()
    assert f"7: {key} {tree['annotations'][0][key]!r}" in finding.examples
    assert "write whole numbers" in finding.remedy


@pytest.mark.parametrize("fault", [{"name": None}, {"id": "9"}])
def test_annotations_are_not_blamed_for_their_category(fault: dict[str, Any]) -> None:
    tree = coco_tree()
    tree["categories"][0].update(fault)
    for one in tree["annotations"]:
        one["category_id"] = fault.get("id", 9) if one["category_id"] == 9 else one["category_id"]
    assert len(tabulate_coco(tree).refused.sorted()) == 1


@pytest.mark.parametrize(("kind", "more"), [("images", {"date": "2020"}), ("categories", {"supercategory": "x"})])
def test_records_that_agree_in_all_that_is_read(kind: str, more: dict[str, Any]) -> None:
    tree = coco_tree()
    tree[kind].append(tree[kind][0] | more)
    table = tabulate_coco(tree)
    assert not table.refused.sorted()
    assert f"{kind} given twice, id and all" in [one.what for one in table.findings.sorted()]


@pytest.mark.parametrize("folder", ["JPEGImages", "Annotations"])
def test_folders_of_other_names(tmp_path: Path, folder: str) -> None:
    root = make_voc(tmp_path)
    (root / folder).rename(root / folder.lower())
    with pytest.raises(UserError, match=f"{folder}: .*a folder of Pascal VOC holds .*: move or link yours"):
        open_source("voc", f"{root}:trainval")


def test_the_folder_above(tmp_path: Path) -> None:
    make_voc(tmp_path / "VOC2007")
    with pytest.raises(UserError, match=f"one such lies below: {tmp_path}/VOC2007:trainval"):
        open_source("voc", f"{tmp_path}:trainval")


def test_a_class_of_val_alone_is_said(tmp_path: Path) -> None:
    train = make_voc(tmp_path / "a", {"1": [("dog", (1, 1, 9, 9), 0)]})
    val = make_voc(tmp_path / "b", {"1": [("dogg", (1, 1, 9, 9), 0)]})
    one, _ = open_sources(VocData(train=f"{train}:trainval", val=f"{val}:trainval"))
    assert any("classes that only data.val has (dogg)" in line for line in remarks(one))


def test_width_and_height_exchanged(tmp_path: Path) -> None:
    source = open_coco(str(make_coco(tmp_path, lambda tree: tree["images"][3].update(height=48, width=32))))
    with pytest.raises(BadImage, match="the other way round there; exchange them"):
        source.image(3)


def test_a_suffix_of_the_image_in_the_annotations_name(tmp_path: Path) -> None:
    """000012.jpg.xml, and an image that is found by what its annotation calls it."""
    root = make_voc(tmp_path)
    (root / "Annotations/000012.xml").rename(root / "Annotations/000012.jpg.xml")
    (root / "JPEGImages/000005.jpg").rename(root / "JPEGImages/IMG_7.jpg")
    file = root / "Annotations/000005.xml"
    file.write_text(file.read_text().replace("000005.jpg", "IMG_7.jpg"))
    report = examine("voc", f"{root}:trainval")
    said = {one.what: one.examples for one in report.findings}
    assert not report.errors
    assert said["images whose file has another name than is written"] == ["000005 is IMG_7.jpg"]
    assert "annotations that name another file" not in said
