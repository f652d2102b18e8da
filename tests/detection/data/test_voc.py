"""The Pascal VOC reader against torchvision's, and its classes, difficult objects, unions and faults."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import VOCDetection

from backbone.errors import BadImage, UserError
from detection.data.annotated import AnnotatedSource
from detection.data.contract import DetectionSource
from detection.data.doctor import examine
from detection.data.options import VocData
from detection.data.sources import open_source, open_sources
from detection.data.voc import CLASSES, open_voc
from tests.detection.data.making import REAL, SIZES, VOC, jpeg, make_voc, voc_xml


def assert_equals_torchvision(source: DetectionSource, folder: Path, split: str, place: Path) -> None:
    """Order, pixels, boxes and labels; difficult ones left out. torchvision knows one layout of folders only."""
    (place / "VOCdevkit").mkdir(parents=True)
    (place / "VOCdevkit/VOC2007").symlink_to(folder)
    other = VOCDetection(place, "2007", split)
    assert len(source) == len(other)
    for i in range(len(source)):
        target = other[i][1]["annotation"]
        objects = source.objects(i)
        kept = [one for one in target["object"] if one.get("difficult", "0") == "0"]
        names = [source.categories.names[label - 1] for label in objects.labels]
        assert names == [one["name"] for one in kept]
        for box, one in zip(objects.boxes.tolist(), kept, strict=True):
            x1, y1, x2, y2 = (float(one["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax"))
            assert box == [max(x1 - 1, 0), max(y1 - 1, 0), x2, y2]  # 1-based and inclusive
        size = target["size"]
        assert source.sizes[i].tolist() == [int(size["height"]), int(size["width"])]
        assert np.abs(source.image(i).astype(int) - np.array(other[i][0])).max() <= 3  # two JPEG decoders
        assert (
            source.ground_truth(np.array([i]))["images"][0]["file_name"] == f"JPEGImages/{Path(other.images[i]).name}"
        )


def test_everything_is_as_torchvision_reads_it(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "VOC")
    source = open_source("voc", f"{root}:trainval")
    assert_equals_torchvision(source, root, "trainval", tmp_path / "torchvision")
    assert source.categories.names == CLASSES == tuple(sorted(CLASSES))
    assert len(source.categories) == 20
    assert source.categories.ids == tuple(range(1, 21))
    assert source.image_ids.tolist() == [1, 2, 3]
    assert source.num_objects().tolist() == [2, 1, 0]
    assert source.dropped == {"difficult": 1}
    assert not source.has_masks
    assert source.objects(2).boxes.shape == (0, 4)


def test_difficult_objects_are_ignored_in_scoring(tmp_path: Path) -> None:
    truth = open_source("voc", f"{make_voc(tmp_path)}:trainval").ground_truth()
    person = CLASSES.index("person") + 1
    assert [one for one in truth["annotations"] if one["category_id"] == person] == [
        {
            "id": 3,
            "image_id": 2,
            "category_id": person,
            "bbox": [9.0, 9.0, 3.0, 35.0],
            "area": 105.0,
            "iscrowd": 1,
            "ignore": 1,
            "difficult": 1,
        }
    ]
    assert [one["iscrowd"] for one in truth["annotations"]] == [0, 0, 1, 0]
    assert json.loads(json.dumps(truth)) == truth


def test_a_union_of_splits_and_folders(tmp_path: Path) -> None:
    """07+12 as the literature has it. One name may stand for two images in two folders."""
    one = make_voc(tmp_path / "VOC2007")
    two = make_voc(tmp_path / "VOC2012", {"2008_000003": [("cow", (1, 1, 9, 9), 0)], "000012": []})
    source = open_source("voc", f"{one}:trainval, {two}:trainval")
    assert source.image_ids.tolist() == [1, 2, 3, 4, 5]
    assert source.name(0) == f"{one}/JPEGImages/000012.jpg"
    assert source.name(3) == f"{two}/JPEGImages/2008_000003.jpg"
    assert source.name(4) == f"{two}/JPEGImages/000012.jpg"
    assert source.image(4).shape[:2] == (50, 30)
    data = pickle.dumps(source)
    assert len(data) < 1000
    assert np.array_equal(pickle.loads(data).image(3), source.image(3))
    with pytest.raises(
        UserError, match=r"images listed twice .*000012.*; all its faults: python jobs/doctor.py --source voc"
    ):
        open_source("voc", f"{one}:trainval,{one}:trainval")


def test_labels_agree_where_a_class_is_in_one_split_only(tmp_path: Path) -> None:
    train = make_voc(tmp_path / "a", {"1": [("RBC", (1, 1, 9, 9), 0), ("dog", (1, 1, 9, 9), 0)]})
    val = make_voc(tmp_path / "b", {"2": [("RBC", (1, 1, 9, 9), 0), ("Platelets", (2, 2, 9, 9), 0)]})
    one, two = open_voc(f"{train}:trainval", f"{val}:trainval")
    assert one.categories == two.categories
    assert one.categories.names == ("Platelets", "RBC", "dog")
    assert (one.objects(0).labels.tolist(), two.objects(0).labels.tolist()) == ([2, 3], [2, 1])


def test_keep_empty_concerns_training_alone(tmp_path: Path) -> None:
    place = f"{make_voc(tmp_path)}:trainval"
    train, val = open_voc(place, place, keep_empty=False)
    assert (len(train), len(val)) == (2, 3)
    assert train.image_ids.tolist() == [1, 2]


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    one, two = (open_source("voc", f"{make_voc(tmp_path / name)}:trainval") for name in "ab")
    other = open_source("voc", f"{make_voc(tmp_path / 'c', {**VOC, '000007': [('dog', (1, 1, 5, 5), 0)]})}:trainval")
    assert one.fingerprint == two.fingerprint != other.fingerprint


@pytest.mark.parametrize(("named", "value"), [("000012.png", 200), ("000012.jpg", 100), ("other.bmp", 100)])
def test_two_files_of_one_name(tmp_path: Path, named: str, value: int) -> None:
    """The annotation says which of the two was drawn on; where it does not, it is VOC's own kind, and said."""
    root = make_voc(tmp_path, {"000012": VOC["000012"]})
    Image.fromarray(np.full((*SIZES[0], 3), 200, np.uint8)).save(root / "JPEGImages/000012.png")
    place = root / "Annotations/000012.xml"
    place.write_text(place.read_text().replace("000012.jpg", named))
    source = open_source("voc", f"{root}:trainval")
    assert abs(int(source.image(0)[0, 0, 0]) - value) <= 3
    said = [one.as_line() for one in source.findings if "several suffixes" in one.what]
    read, other = ("000012.png", "000012.jpg") if value == 200 else ("000012.jpg", "000012.png")
    assert len(said) == 1
    assert f"{read} is read, not {other}" in said[0]


def test_images_of_other_formats(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    for name, suffix in (("000012", ".png"), ("000005", ".JPEG")):
        with Image.open(root / "JPEGImages" / f"{name}.jpg") as image:
            image.save(root / "JPEGImages" / f"{name}{suffix}")
    (root / "JPEGImages/000012.jpg").unlink()
    (root / "JPEGImages/000007.jpg").unlink()
    source = open_source("voc", f"{root}:trainval")
    assert source.name(0).endswith("000012.png")
    assert source.name(1).endswith("000005.jpg")  # VOC's own goes first
    assert source.image(0).shape == (40, 60, 3)
    with pytest.raises(BadImage, match=r"JPEGImages/000007\.jpg: No such file"):
        source.image(2)


def test_numbers_with_fractions_and_boxes_counted_from_zero(tmp_path: Path) -> None:
    boxes = [(0, 0, 20.5, 10), (5, 5, 4, 9), (5, 5, 5, 5), (61, 3, 90, 9), (50, 3, 90, 9)]
    root = make_voc(tmp_path, {"1": [("dog", box, 0) for box in boxes]})
    source = open_source("voc", f"{root}:trainval")
    assert source.objects(0).boxes.tolist() == [[0, 0, 20.5, 10], [4, 4, 5, 5], [49, 2, 60, 9]]
    assert source.dropped == {"degenerate boxes": 2}


def test_remote_data(tmp_path: Path) -> None:
    local = open_source("voc", f"{make_voc(tmp_path / 'VOC')}:trainval")
    fsspec.filesystem("memory").put(str(tmp_path / "VOC"), "/voc/VOC", recursive=True)
    remote = open_source("voc", "memory://voc/VOC:trainval")
    assert remote.fingerprint == local.fingerprint
    assert np.array_equal(remote.image(0), local.image(0))


@pytest.mark.parametrize("location", ["VOC2007", ":trainval", "VOC2007:", "s3://bucket/VOC2007", ""])
def test_locations_that_are_none(location: str) -> None:
    with pytest.raises(UserError, match="folder:split"):
        open_source("voc", location)


def test_a_folder_without_its_list_is_told_which_to_train_on(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "VOC", split="train")
    (root / "ImageSets" / "Main" / "a_val.txt").write_text("")
    with pytest.raises(UserError, match=rf"as folder:split, such as {root}:train$"):
        open_source("voc", str(root))


def test_lists_that_are_none(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "VOC")
    lists = root / "ImageSets/Main"
    with pytest.raises(UserError, match=r"Main/test\.txt: No such file.*there are trainval"):
        open_source("voc", f"{root}:test")
    with pytest.raises(UserError, match="a folder of Pascal VOC holds ImageSets/Main, Annotations and JPEGImages"):
        open_source("voc", f"{tmp_path}:test")
    (lists / "dog_trainval.txt").write_text("000012  1\n000005 -1\n000007  0\n")
    with pytest.raises(UserError, match=r"dog_trainval\.txt: says for one class.*such as trainval"):
        open_source("voc", f"{root}:dog_trainval")
    (lists / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"empty\.txt: lists no images"):
        open_source("voc", f"{root}:empty")
    (lists / "trainval.txt").write_text("000012 \r\n\n000005\r\n")
    assert len(open_source("voc", f"{root}:trainval")) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text[:-20], "damaged XML"),
        (lambda text: "", "damaged XML"),
        (lambda text: text.replace("<xmax>", "<xmaks>").replace("</xmax>", "</xmaks>"), "bndbox/xmax is missing"),
        (lambda text: text.replace("<ymin>5", "<ymin>five").replace("<ymin>6", "<ymin>six"), "bndbox/ymin is 'six'"),
        (lambda text: text.replace("<width>60", "<width>-60"), "size/width and size/height are -60 and 40"),
        (lambda text: text.replace("<width>60", "<width>inf"), "size/width and size/height are inf and 40"),
        (lambda text: text.replace("<width>60", "<width>1e12"), "size/width and size/height are 1e[+]12 and 40"),
        (lambda text: text.replace("<width>60", "<width>60px"), "size/width is '60px'"),
        (lambda text: text.replace("<name>dog</name>", ""), "an object has no name"),
        (lambda text: '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>' + text.replace("dog", "&x;"), "XML"),
    ],
)
def test_damaged_annotations_are_named(tmp_path: Path, change: Callable[[str], str], says: str) -> None:
    root = make_voc(tmp_path)
    file = root / "Annotations/000012.xml"
    file.write_text(change(voc_xml("000012", (40, 60), VOC["000012"])))
    with pytest.raises(UserError, match=says) as caught:
        open_source("voc", f"{root}:trainval")
    assert str(caught.value).startswith(f"{root}:trainval: 1 annotations ")
    assert "000012.xml" in str(caught.value)
    assert "python jobs/doctor.py --source voc" in str(caught.value)


def test_missing_annotations_are_named(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    (root / "Annotations/000005.xml").unlink()
    with pytest.raises(UserError, match=r"annotations that are missing \(000005\.xml: No such file"):
        open_source("voc", f"{root}:trainval")


def said_of(source: AnnotatedSource, location: str) -> dict[str, int]:
    """What the reader says: which the doctor must say too, counted alike."""
    said = {one.what: one.count for one in source.findings if one.severity != "note"}
    assert said.items() <= {one.what: one.count for one in examine("voc", location).findings}.items()
    return said


def opened(root: Path) -> tuple[AnnotatedSource, dict[str, int]]:
    source = open_source("voc", f"{root}:trainval")
    assert isinstance(source, AnnotatedSource)
    return source, said_of(source, f"{root}:trainval")


@pytest.mark.parametrize(
    ("written", "count"), [("Unspecified", 4), ("False", 4), ("no", 4), ("0.0", 4), ("-1", 4), ("", 0), ("0", 0)]
)
def test_marks_in_words_leave_nothing_out(tmp_path: Path, written: str, count: int) -> None:
    root = make_voc(tmp_path)
    change_all(root, lambda text: re.sub("<difficult>.</difficult>", f"<difficult>{written}</difficult>", text))
    source, said = opened(root)
    assert (source.num_objects().tolist(), source.dropped) == ([2, 2, 0], {})
    assert said == ({"difficult marks written otherwise, taken as 0": count} if count else {})


def test_other_marks(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    change_all(root, lambda text: text.replace("<difficult>1", "<difficult>true"))
    source, said = opened(root)
    assert (source.dropped, said) == ({"difficult": 1}, {"difficult marks written otherwise, taken as 1": 1})
    change_all(root, lambda text: text.replace("<difficult>true", "<difficult>perhaps"))
    place = f"{root}:trainval"
    with pytest.raises(UserError, match=r"difficult marks .* neither 0 nor 1 \(000005.xml: 'perhaps'\): write 0 or 1"):
        open_sources(VocData(train=place, val=place))
    assert examine("voc", place).errors


def change_all(root: Path, change: Callable[[str], str]) -> None:
    for file in (root / "Annotations").iterdir():
        file.write_text(change(file.read_text()))


@pytest.mark.parametrize("size", ["<size><width>0</width><height>0</height></size>", "<size></size>", ""])
def test_sizes_that_are_none_are_the_images_own(tmp_path: Path, size: str) -> None:
    root = make_voc(tmp_path)
    (root / "JPEGImages/000005.jpg").write_bytes(jpeg(60, 40, orientation=6))
    change_all(root, lambda text: re.sub("<size>.*</size>", size, text))
    (root / "Annotations/000007.xml").write_text(voc_xml("000007", SIZES[2], []))
    source, said = opened(root)
    assert source.sizes.tolist() == [[40, 60], [40, 60], [64, 64]]
    assert source.image(1).shape == (40, 60, 3)
    assert said["annotations without the image's size"] == 2
    (root / "JPEGImages/000012.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="missing or 0, and the image is not there to tell"):
        opened(root)


@pytest.mark.parametrize(
    ("boxes", "says"),
    [
        ([(0.1, 0.1, 0.5, 0.5), (0, 0, 1, 1)], "2 boxes given as fractions of the image"),
        (
            [(30, 20, 25, 15), (40, 5, 20, 30), (1, 1, 9, 9)],
            r"3 boxes given as x, y, width, height .*xmin \+ width - 1",
        ),
        ([(1, 1, float("nan"), 9), (1, 1, 9, 9)], "1 boxes that are not finite"),
        ([(62, 1, 70, 9)], "no object to train on; left out: 1 degenerate boxes"),
    ],
)
def test_boxes_that_are_not_meant_so(tmp_path: Path, boxes: list[tuple[float, ...]], says: str) -> None:
    root = make_voc(tmp_path, {"1": [("dog", (box[0], box[1], box[2], box[3]), 0) for box in boxes]})
    place = f"{root}:trainval"
    assert examine("voc", place).errors
    with pytest.raises(UserError, match=says):
        open_sources(VocData(train=place, val=place))


def test_classes_that_differ_in_case_between_the_splits(tmp_path: Path) -> None:
    train = make_voc(tmp_path / "a", {"1": [("Dog", (1, 1, 9, 9), 0)]})
    val = make_voc(tmp_path / "b", {"1": [("dog ", (1, 1, 9, 9), 0), ("dog", (1, 1, 9, 9), 0)]})
    one, _ = open_voc(f"{train}:trainval", f"{val}:trainval")
    assert [finding.what[:18] for finding in one.findings] == ["classes whose name", "parts of objects, "]
    assert "'Dog' and 'dog'" in one.findings[0].examples


def test_the_same_object_twice(tmp_path: Path) -> None:
    source, said = opened(make_voc(tmp_path, {"1": [("cat", (5, 5, 9, 9), 0)] * 2 + [("cat", (5, 5, 9, 8), 0)]}))
    assert source.num_objects().tolist() == [3]
    assert said == {"objects given twice": 1}


@pytest.mark.data
@pytest.mark.skipif(not REAL, reason="RAYBONE_TEST_DATA, the folder of real data, is not set")
def test_real_voc(tmp_path: Path) -> None:
    root = Path(REAL) / "bccd"
    source = open_source("voc", f"{root}:test")
    assert_equals_torchvision(source, root, "test", tmp_path)
    assert source.categories.names == ("Platelets", "RBC", "WBC")
