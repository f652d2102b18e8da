"""Which images are meant: of a folder, a COCO list, a list of Pascal VOC without annotations."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from backbone.errors import BadImage, UserError
from detection.data.contract import Categories
from detection.detecting.files import file_names
from detection.detecting.lists import open_images, stems
from tests.detection.data.making import jpeg, make_coco, make_voc


def test_a_test_list_of_voc_has_no_annotations(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "VOC2007", split="val")
    shutil.rmtree(root / "Annotations")
    images = open_images(f"{root}:val")
    assert (images.names, images.ids, images.split) == (("000012", "000005", "000007"), (1, 2, 3), "val")
    assert images.image(1).shape == (50, 30, 3)
    (root / "JPEGImages" / "000005.jpg").unlink()
    gone = open_images(f"{root}:val")
    assert "000005.jpg" in gone.remarks[0]
    with pytest.raises(BadImage, match=r"JPEGImages/000005\.jpg: No such file"):
        gone.image(1)


def test_a_coco_list_has_no_annotations_and_any_order(tmp_path: Path) -> None:
    folder = make_coco(tmp_path)
    file = tmp_path / "annotations" / "instances_val.json"
    tree = json.loads(file.read_text())
    file.write_text(json.dumps({"images": tree["images"]}))
    images = open_images(str(file), str(folder))
    assert images.ids == (10, 20, 30, 40)
    for i, number in enumerate(images.ids):
        entry = next(image for image in tree["images"] if image["id"] == number)
        assert images.image(i).shape == (entry["height"], entry["width"], 3)
        assert images.name(i) == str(folder / entry["file_name"])
    (folder / f"{10:012d}.jpg").write_bytes(jpeg(20, 20))
    with pytest.raises(BadImage, match="is 20x20 pixels"):
        images.image(0)


def test_what_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty" / "below").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no image in this folder or below it\. Their names must end in \.jpg"):
        open_images(str(tmp_path / "empty"))
    (tmp_path / "empty" / "below" / "a.heic").write_bytes(b"")
    with pytest.raises(UserError, match=r"there are 1 images of kinds that are not read \(below/a\.heic\): convert"):
        open_images(str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"nowhere: no such folder; --images takes a folder of images, a COCO list"):
        open_images(str(tmp_path / "nowhere"))
    root = make_voc(tmp_path / "VOC2007")
    with pytest.raises(UserError, match=r"--images .*VOC2007:test, or .* --images .*VOC2007/JPEGImages"):
        open_images(str(root))
    (tmp_path / "list.json").write_text('{"pictures": []}')
    with pytest.raises(UserError, match=r"list\.json: not COCO's instances: it needs images, a list"):
        open_images(str(tmp_path / "list.json"), str(root))
    (tmp_path / "list.json").write_text('{"images": [{"id": "7", "file_name": "a.jpg", "height": 1, "width": 1}]}')
    with pytest.raises(UserError, match=r"list\.json: 1 "):
        open_images(str(tmp_path / "list.json"), str(root))


def test_names_in_voc_s_files_are_one_word_and_unique() -> None:
    assert stems(["a.jpg", "b c.png", "d.jpg", "d.png", "e/d.jpg"]) == ("a", "b%20c", "d.jpg", "d.png", "e/d")
    assert file_names(Categories(("a/b", "a:b", "C", "d e"), (4, 5, 6, 7))) == ["a_b_4", "a_b_5", "C", "d e"]


def test_no_image_of_a_large_folder_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jpg").write_bytes(jpeg(8, 8))
    monkeypatch.setattr("detection.data.files.MOST", 2)
    assert open_images(str(tmp_path)).paths == ("a/a.jpg", "b/b.jpg", "c/c.jpg")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shut").mkdir()
    (tmp_path / "a.jpg").write_bytes(jpeg(8, 8))
    scandir = os.scandir

    def refused(place: str) -> Any:  # root, who may run this, can list every folder
        if str(place).endswith("/shut"):
            raise PermissionError(errno.EACCES, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr("detection.data.files.os.scandir", refused)
    with pytest.raises(UserError, match=r"/shut: cannot be listed \(Permission denied\); make it readable"):
        open_images(str(tmp_path))


def test_a_link_in_a_circle_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name in ("a.jpg", "z.jpg"):
        (tmp_path / name).write_bytes(jpeg(8, 8))
    assert open_images(str(tmp_path)).paths == ("a.jpg", "z.jpg")
