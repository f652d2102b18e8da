"""Lists as editors and tools write them, and files that are called otherwise than in the lists."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from backbone.errors import UserError
from detection.data.doctor import examine
from detection.data.sources import open_source
from tests.detection.data.making import SIZES, VOC, jpeg, make_voc, voc_xml

NAMES = ["000012", "000005", "000007"]


def ids(root: Path) -> list[str]:
    return [Path(one["file_name"]).stem for one in open_source("voc", f"{root}:trainval").ground_truth()["images"]]


def said(root: Path) -> dict[str, int]:
    findings = open_source("voc", f"{root}:trainval").findings
    doctor = {one.what: one.count for one in examine("voc", f"{root}:trainval").findings}
    found = {one.what: one.count for one in findings if one.severity != "note"}
    assert found.items() <= doctor.items()
    return found


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", " \r\n", "\n\n \n", "\t\n"])
def test_marks_line_ends_and_blanks(tmp_path: Path, encoding: str, end: str) -> None:
    root = make_voc(tmp_path)
    (root / "ImageSets/Main/trainval.txt").write_bytes(end.join([*NAMES, ""]).encode(encoding))
    assert ids(root) == NAMES
    assert said(root) == {}


@pytest.mark.parametrize(
    "form",
    [
        "{}.jpg",
        "{}.xml",
        "JPEGImages/{}.jpg",
        "./VOC2007/JPEGImages/{}.jpg ./VOC2007/Annotations/{}.xml",
        "C:\\set\\JPEGImages\\{}.JPG",
        "/home/me/JPEGImages/{}.png",
        "{} 0",
    ],
)
def test_entries_with_more_than_a_name(tmp_path: Path, form: str) -> None:
    root = make_voc(tmp_path)
    lines = [NAMES[0], *(form.replace("{}", name) for name in NAMES[1:])]
    (root / "ImageSets/Main/trainval.txt").write_text("\n".join(lines))
    assert ids(root) == NAMES
    assert said(root) == {"entries of the list that are written otherwise than their annotations": 2}


def test_names_with_blanks_and_dots_are_names(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"my image 1.v2": [("dog", (1, 1, 9, 9), 0)], "my": []})
    assert ids(root) == ["my image 1.v2", "my"]
    assert said(root) == {}


def test_a_list_that_is_no_text(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    (root / "ImageSets/Main/trainval.txt").write_bytes("Kätzchen\n".encode("latin-1"))
    with pytest.raises(
        UserError, match=r"trainval\.txt: not a list of names: is not UTF-8 at byte 1; save it as UTF-8"
    ):
        ids(root)


def test_names_in_another_unicode_form(tmp_path: Path) -> None:
    """As where files were made on a Mac and lists were not."""
    composed, decomposed = (unicodedata.normalize(form, "Kätzchen") for form in ("NFC", "NFD"))
    root = make_voc(tmp_path, {composed: VOC["000012"]})
    for folder, suffix in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
        (root / folder / f"{composed}{suffix}").rename(root / folder / f"{decomposed}{suffix}")
    assert open_source("voc", f"{root}:trainval").image(0).shape == (40, 60, 3)
    assert list(said(root)) == ["entries of the list that are written otherwise than their annotations"]


def test_images_found_by_the_name_in_the_annotation(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    (root / "JPEGImages/000012.jpg").rename(root / "JPEGImages/photo one.jpg")
    (root / "Annotations/000012.xml").write_text(voc_xml("photo one", SIZES[0], VOC["000012"]))
    source = open_source("voc", f"{root}:trainval")
    assert source.name(0).endswith("JPEGImages/photo one.jpg")
    assert source.image(0).shape == (40, 60, 3)
    assert said(root) == {"images whose file has another name than is written": 1}


def test_folders_below(tmp_path: Path) -> None:
    """As CVAT exports them; there is nothing to say."""
    root = make_voc(tmp_path, {})
    for folder, suffix, data in (
        ("Annotations", ".xml", voc_xml("a", (40, 60), VOC["000012"]).encode()),
        ("JPEGImages", ".png", jpeg(40, 60)),
    ):
        (root / folder / "cam 1").mkdir()
        (root / folder / f"cam 1/a{suffix}").write_bytes(data)
    (root / "ImageSets/Main/trainval.txt").write_text("cam 1/a\n")
    source = open_source("voc", f"{root}:trainval")
    assert source.name(0).endswith("JPEGImages/cam 1/a.png")
    assert np.asarray(source.image(0)).shape == (40, 60, 3)
    assert said(root) == {}


def test_two_images_are_not_one_file(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"a": [("dog", (1, 1, 9, 9), 0)], "A": []})
    (root / "JPEGImages/A.jpg").unlink()
    assert said(root) == {"images whose file name fits several files": 1}
    assert examine("voc", f"{root}:trainval").errors == 1


def test_an_entry_that_fits_several_annotations_is_not_guessed(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"a": [("dog", (1, 1, 9, 9), 0)], "A": []})
    (root / "ImageSets/Main/trainval.txt").write_text("x/a.JPG\n")
    assert ids(root) == ["a"]
    (root / "ImageSets/Main/trainval.txt").write_text("a\nA\na.jpg\n")
    with pytest.raises(UserError, match=r"1 images listed twice \(a\): name each once"):
        ids(root)
