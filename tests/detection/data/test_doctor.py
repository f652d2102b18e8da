"""Every fault the doctor knows, planted in a data set that has none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backbone.data.findings import Diagnosis, Finding
from backbone.errors import UserError
from detection.data.doctor import examine
from detection.data.options import CocoData, VocData
from detection.data.sources import open_source, open_val
from tests.detection.data.making import VOC, jpeg, make_coco, make_voc, voc_xml

SOUND = {"crowds", "images without objects", "holes in the category ids"}  # of the COCO set as it is made
Tree = dict[str, Any]


def found(report: Diagnosis) -> dict[str, Finding]:
    return {finding.what: finding for finding in report.findings}


def _set(kind: str, place: int, key: str, value: Any) -> Callable[[Tree], None]:
    return lambda tree: tree[kind][place].update({key: value})


def _del(kind: str, place: int, key: str) -> Callable[[Tree], object]:
    return lambda tree: tree[kind][place].pop(key)


def _box(*box: float) -> Callable[[Tree], None]:
    return _set("annotations", 0, "bbox", list(box))


def _mask(segmentation: Any, place: int = 0) -> Callable[[Tree], None]:
    return _set("annotations", place, "segmentation", segmentation)


def _zero(tree: Tree) -> None:
    tree["categories"][1]["id"] = 0
    for one in tree["annotations"]:
        one["category_id"] = {3: 0}.get(one["category_id"], one["category_id"])


def test_a_sound_coco_set(tmp_path: Path) -> None:
    report = examine("coco", str(make_coco(tmp_path)))
    assert {what: one.count for what, one in found(report).items()} == dict.fromkeys(SOUND, 1)
    assert {one.severity for one in report.findings} == {"note"}
    assert report.errors == 0


def _no_masks(tree: Tree) -> None:
    for one in tree["annotations"]:
        del one["segmentation"]


SECOND = "000000000010.jpg"
OTHER = "masks of another size than the image"
NO_ID = "annotation ids that are missing or no whole numbers"
BAD_BOX = "boxes that are not four numbers"
BAD_IMAGE = "images without a whole id, height and width above 0, and file_name"
NO_AREA = "annotations whose area is no number above 0"
OTHER_AREA = "annotations whose area cannot be that of their mask or box, as in other units"
BAD_MASK = "segmentations that are neither polygons nor run lengths"
FEW = "polygons of less than three points or an odd number"
NO_SUM = "masks whose run lengths do not add up to the image"
LACKING = "annotations without segmentation, while others have one"


@pytest.mark.parametrize(
    ("severity", "what", "example", "change"),
    [
        ("warning", "annotation id 0", "annotation 0", _set("annotations", 0, "id", 0)),
        ("error", "annotation ids given twice", "9", _set("annotations", 0, "id", 9)),
        ("error", NO_ID, "number 1 of the list, of image 30", _del("annotations", 0, "id")),
        ("error", NO_ID, "'seven', of image 30", _set("annotations", 0, "id", "seven")),
        ("warning", "annotations without area", "7", _del("annotations", 0, "area")),
        ("warning", NO_AREA, "7: 'big'", _set("annotations", 0, "area", "big")),
        ("warning", NO_AREA, "7: 0", _set("annotations", 0, "area", 0)),
        ("warning", NO_AREA, "7: -1", _set("annotations", 0, "area", -1)),
        ("warning", NO_AREA, "7: nan", _set("annotations", 0, "area", float("nan"))),
        ("warning", OTHER_AREA, "7: 0.07", _set("annotations", 0, "area", 0.07)),
        ("warning", OTHER_AREA, "7: 4000", _set("annotations", 0, "area", 4000)),
        ("warning", "annotations without iscrowd", "7", _del("annotations", 0, "iscrowd")),
        ("error", "annotations of unknown images", "7 (image 99)", _set("annotations", 0, "image_id", 99)),
        (
            "error",
            "annotations whose image_id or category_id is no whole number",
            "7: image_id [30]",
            _set("annotations", 0, "image_id", [30]),
        ),
        ("error", "annotations of unknown categories", "7 (category 4)", _set("annotations", 0, "category_id", 4)),
        ("error", BAD_BOX, "7: None", _del("annotations", 0, "bbox")),
        ("error", BAD_BOX, "7: [1, 2, 3]", _box(1, 2, 3)),
        ("error", "boxes that are not finite", "7: [1, 2, nan, 4]", _box(1, 2, float("nan"), 4)),
        ("warning", "boxes without width or height", "7: [1, 2, 0, 4]", _box(1, 2, 0, 4)),
        ("warning", "boxes thinner than a pixel", "7: [1, 2, 0.5, 4]", _box(1, 2, 0.5, 4)),
        ("warning", "boxes wholly outside the image", "7: [70, 2, 5, 5]", _box(70, 2, 5, 5)),
        ("warning", "boxes that reach outside the image", "7: [55, 2, 5.1, 5]", _box(55, 2, 5.1, 5)),
        ("warning", "boxes that reach outside the image", "7: [-1, 2, 5, 5]", _box(-1, 2, 5, 5)),
        ("error", "image ids given twice", "10", _set("images", 0, "id", 10)),
        ("error", BAD_IMAGE, "30: no width", _del("images", 0, "width")),
        ("error", BAD_IMAGE, "30: height 0", _set("images", 0, "height", 0)),
        ("error", BAD_IMAGE, "30: width '60'", _set("images", 0, "width", "60")),
        ("error", BAD_IMAGE, "30: width 1000000000000.0", _set("images", 0, "width", 1e12)),
        ("error", BAD_IMAGE, "30: file_name None", _set("images", 0, "file_name", None)),
        ("error", BAD_IMAGE, "30: file_name 'a\\x00.jpg'", _set("images", 0, "file_name", "a\0.jpg")),
        ("error", "image ids that are missing or no whole numbers", "number 1 of the list", _del("images", 0, "id")),
        ("warning", "files given by two images", SECOND, _set("images", 0, "file_name", SECOND)),
        (
            "error",
            "category ids that are missing or no whole numbers",
            "number 1 of the list",
            _del("categories", 0, "id"),
        ),
        ("error", "categories without a name", "9", _set("categories", 0, "name", None)),
        ("error", "category ids given twice", "3", _set("categories", 0, "id", 3)),
        ("error", "category names given twice", "dog", _set("categories", 0, "name", "dog")),
        ("note", "category id 0", "dog", _zero),
        ("warning", "categories never used", "emu", lambda tree: tree["categories"].append({"id": 4, "name": "emu"})),
        ("warning", FEW, "7", _mask([[1, 1, 5, 5], [1, 1, 9, 1, 9, 9]])),
        ("warning", FEW, "7", _mask([[1, 1, 5, 5, 9, 9, 4]])),
        ("warning", "empty masks", "7", _mask([[70, 5, 90, 5, 90, 9]])),
        ("warning", "empty masks", "7", _mask({"size": [40, 60], "counts": [2400]})),
        ("warning", "polygons that reach outside the image", "7", _mask([[-3, 5, 20, 5, 20, 15]])),
        (
            "error",
            OTHER,
            "7: a mask is of [60, 40], its image of [40, 60]",
            _mask({"size": [60, 40], "counts": [2400]}),
        ),
        ("error", NO_SUM, "7", _mask({"size": [40, 60], "counts": [2399]})),
        ("error", NO_SUM, "7", _mask({"size": [40, 60], "counts": "PP8"})),
        ("error", BAD_MASK, "7: run lengths without counts", _mask({"size": [40, 60]})),
        ("error", "polygons that leave ±1e+06 pixels", "7", _mask([[1, 1, 5, 1, 1e12, 9]])),
        ("error", BAD_MASK, "7: str 'all of it'", _mask("all of it")),
        ("warning", LACKING, "7", _mask([])),
        ("note", "annotations without segmentation", None, _no_masks),
    ],
)
def test_planted_in_coco(
    tmp_path: Path, severity: str, what: str, example: str | None, change: Callable[[Tree], object]
) -> None:
    folder = str(make_coco(tmp_path, change))
    report = examine("coco", folder, check_images=False)
    finding = found(report)[what]
    assert finding.severity == severity
    assert finding.examples[:1] == ([example] if example else [])
    assert finding.count == (5 if example is None else 1)
    assert finding.remedy
    assert what != "empty masks" or "left out of training with masks" in report.as_text()
    if severity != "error":
        assert report.errors == 0
        open_source("coco", folder).ground_truth()  # mended in reading, as it says
        return
    assert report.errors >= 1
    with pytest.raises(UserError, match=r"jobs/doctor\.py"):
        open_val(CocoData(val=folder))


@pytest.mark.parametrize("kind", ["images", "categories"])
def test_empty_lists(tmp_path: Path, kind: str) -> None:
    assert examine("coco", str(make_coco(tmp_path, lambda tree: tree[kind].clear()))).errors


def test_damaged_json_is_a_fault_and_a_missing_one_a_wrong_path(tmp_path: Path) -> None:
    folder = make_coco(tmp_path)
    file = tmp_path / "annotations/instances_val.json"
    file.write_text(file.read_text()[:-9])
    assert found(examine("coco", str(folder)))["annotations that cannot be read"].severity == "error"
    file.unlink()
    with pytest.raises(UserError, match=r"instances_val\.json: no such file"):
        examine("coco", str(folder))
    with pytest.raises(UserError, match="no such folder"):
        examine("coco", str(tmp_path / "none"))
    with pytest.raises(UserError, match="unknown kind"):
        examine("yolo", str(folder))


UPRIGHT = "images turned by EXIF, read upright, as their recorded size says"
STORED = "images turned by EXIF, read as stored, since only so they have the recorded size"
EITHER = "images turned by EXIF whose recorded size does not say which way is meant"


@pytest.mark.parametrize(
    ("severity", "what", "data"),
    [
        ("error", "images whose file is missing", None),
        ("error", "images that are damaged", b""),
        ("error", "images that are damaged", b"nonsense"),
        ("error", "images that are damaged", jpeg(40, 60)[:500]),
        ("error", "images of another size than recorded", jpeg(40, 61)),
        ("error", "images whose width and height are recorded the other way round", jpeg(60, 40)),
        ("note", UPRIGHT, jpeg(60, 40, orientation=6)),
        ("note", STORED, jpeg(40, 60, orientation=6)),
        ("warning", EITHER, jpeg(40, 60, orientation=3)),
    ],
)
@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_images(tmp_path: Path, kind: str, severity: str, what: str, data: bytes | None) -> None:
    """Image 0 of both sets is 60 x 40."""
    if kind == "coco":
        location = str(make_coco(tmp_path))
        file = Path(location) / "000000000030.jpg"
    else:
        location = f"{make_voc(tmp_path)}:trainval"
        file = tmp_path / "JPEGImages/000012.jpg"
    file.unlink()
    if data is not None:
        file.write_bytes(data)
    finding = found(examine(kind, location))[what]
    assert (finding.severity, finding.count) == (severity, 1)
    assert file.name in finding.examples[0]
    assert (what in found(examine(kind, location, check_images=False))) == (data is None)


def test_an_image_that_is_a_folder(tmp_path: Path) -> None:
    folder = make_coco(tmp_path)
    (folder / "000000000030.jpg").unlink()
    (folder / "000000000030.jpg").mkdir()
    assert found(examine("coco", str(folder)))["images that cannot be read"].severity == "error"


def test_a_sound_voc_set(tmp_path: Path) -> None:
    """But for 17 classes that three images cannot show."""
    report = examine("voc", f"{make_voc(tmp_path)}:trainval")
    counts = {what: one.count for what, one in found(report).items()}
    assert counts == {
        "parts of objects, such as heads and hands": 4,
        "difficult objects": 1,
        "images without objects": 1,
        "classes never used": 17,
    }
    assert report.errors == 0


def _dog(*box: float) -> Callable[[str], str]:
    return _object("dog", box)


def _object(kind: str, box: tuple[float, ...]) -> Callable[[str], str]:
    return lambda text: voc_xml("000012", (40, 60), [(kind, (box[0], box[1], box[2], box[3]), 0)])


@pytest.mark.parametrize(
    ("severity", "what", "example", "change"),
    [
        ("error", "annotations that are missing", "000012.xml: No such file", None),
        ("error", "annotations that are damaged", "000012.xml: damaged XML", lambda text: text[:-5]),
        (
            "error",
            "annotations with a part missing or no number",
            "000012.xml: size/width is '60px'",
            lambda text: text.replace("<width>60", "<width>60px"),
        ),
        (
            "error",
            "annotations with a part missing or no number",
            "000012.xml: bndbox/xmin is 'x'",
            lambda text: text.replace("<xmin>5", "<xmin>x"),
        ),
        (
            "note",
            "annotations that name another file",
            "000012.xml: 12.jpg",
            lambda text: text.replace("000012.jpg", "12.jpg"),
        ),
        ("error", "boxes that are not finite", "000012: dog [1.0, 1.0, nan, 9.0]", _dog(1, 1, float("nan"), 9)),
        ("warning", "boxes whose max is below their min", "000012: dog [9.0, 1.0, 5.0, 9.0]", _dog(9, 1, 5, 9)),
        ("warning", "boxes wholly outside the image", "000012: dog [61.0, 1.0, 70.0, 9.0]", _dog(61, 1, 70, 9)),
        ("warning", "boxes that reach outside the image", "000012: dog [0.0, 1.0, 5.0, 9.0]", _dog(0, 1, 5, 9)),
        ("warning", "boxes that reach outside the image", "000012: dog [3.0, 1.0, 5.0, 41.0]", _dog(3, 1, 5, 41)),
        (
            "warning",
            "boxes of a single row or column of pixels",
            "000012: dog [5.0, 1.0, 5.0, 9.0]",
            _dog(5, 1, 5, 9),
        ),
        ("warning", "classes unknown among VOC's 20, used beside them", "dgo", _object("dgo", (1, 1, 5, 9))),
    ],
)
def test_planted_in_voc(
    tmp_path: Path, severity: str, what: str, example: str, change: Callable[[str], str] | None
) -> None:
    root = make_voc(tmp_path)
    file = root / "Annotations/000012.xml"
    text = file.read_text()
    file.unlink()
    if change:
        file.write_text(change(text))
    report = examine("voc", f"{root}:trainval", check_images=False)
    finding = found(report)[what]
    assert (finding.severity, finding.count) == (severity, 1)
    assert finding.examples[0].startswith(example)
    assert (report.errors > 0) == (severity == "error")
    if severity != "error":
        open_source("voc", f"{root}:trainval")
    else:
        with pytest.raises(UserError, match=r"jobs/doctor\.py"):
            open_val(VocData(val=f"{root}:trainval"))


def test_lists_of_voc(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    file = root / "ImageSets/Main/trainval.txt"
    file.write_text(file.read_text() + "000005\n")
    report = examine("voc", f"{root}:trainval")
    twice = found(report)["images listed twice"]
    assert (twice.severity, twice.examples) == ("error", ["000005"])
    assert report.statistics["images"] == 3
    with pytest.raises(UserError, match=r"test\.txt"):
        examine("voc", f"{root}:test")
    with pytest.raises(UserError, match="leave this out"):
        examine("voc", f"{root}:trainval", "some.json")


def test_classes_of_ones_own(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"1": [("RBC", (1, 1, 9, 9), 0), ("WBC", (1, 1, 9, 9), 0)]})
    finding = found(examine("voc", f"{root}:trainval"))["classes other than VOC's 20"]
    assert (finding.severity, finding.examples) == ("note", ["RBC", "WBC"])


def test_statistics(tmp_path: Path) -> None:
    def change(tree: Tree) -> None:
        tree["images"][1] |= {"width": 200, "height": 150}
        for one in tree["annotations"]:
            del one["segmentation"]
        for one, side in zip(tree["annotations"][1:3], (32, 96), strict=True):
            one |= {"image_id": 10, "bbox": [0, 0, side, side], "area": side**2}

    numbers = examine("coco", str(make_coco(tmp_path / "coco", change))).statistics
    assert numbers["images"] == 4
    assert numbers["images with objects"] == 3
    assert numbers["objects"] == 5
    assert list(numbers["objects by size"].values()) == [3, 1, 1]
    assert list(numbers["objects by class"].items()) == [("dog", 3), ("cat", 1), ("cow", 1)]
    assert [numbers["image width"][key] for key in ("smallest", "median", "largest")] == [48, 62, 200]
    assert [numbers["image aspect"][key] for key in ("smallest", "largest")] == [1.0, 1.5]
    numbers = examine("voc", f"{make_voc(tmp_path / 'voc')}:trainval").statistics
    assert numbers["objects by class"] == {"dog": 2, "cat": 1, "person": 1}
    assert list(numbers["objects by size"].values()) == [2, 2, 0]


def test_the_report_as_text_and_as_json(tmp_path: Path) -> None:
    def change(tree: Tree) -> None:
        for one in tree["annotations"]:
            del one["iscrowd"]
        tree["annotations"] += [{**tree["annotations"][0], "id": number} for number in range(100, 110)]
        tree["annotations"][0]["category_id"] = 77

    report = examine("coco", str(make_coco(tmp_path, change)))
    text = report.as_text()
    lines = text.splitlines()
    assert [one.severity for one in report.findings] == ["error", "warning", "warning", "note", "note"]
    assert "error          1  annotations of unknown categories" in lines
    assert "warning       14  annotations without iscrowd" in lines
    assert "at: 9, 8, 100, 101, 102, ..." in text  # the first five
    assert "warning        9  objects given twice" in lines
    assert "1 error, 2 warnings, 2 notes" in lines
    assert max(map(len, lines[1:])) <= 110
    tree = json.loads(json.dumps(report.as_dict()))
    assert tree["errors"] == 1
    assert tree["findings"][0]["what"] == "annotations of unknown categories"
    assert tree["findings"][0]["examples"] == ["7 (category 77)"]
    assert tree["statistics"] == report.statistics


def test_voc_is_what_making_says() -> None:
    """The other tests count on it."""
    assert [len(objects) for objects in VOC.values()] == [2, 2, 0]
