"""The COCO reader against pycocotools: same boxes, masks and scores; and what it says to files that are not right."""

import contextlib
import copy
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image, ImageOps
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from backbone.errors import BadImage, UserError
from detection.data.annotated import AnnotatedSource
from detection.data.coco import annotations_of, open_coco
from detection.data.contract import DetectionSource
from detection.data.segments import flatten, run_totals
from tests.detection.data.making import REAL, blob, coco_tree, compressed, jpeg, make_coco


def quietly(make: Callable[..., Any], *arguments: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return make(*arguments)


def as_coco(tree: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = tree
    quietly(coco.createIndex)
    return coco


def assert_equals_pycocotools(source: DetectionSource, coco: COCO) -> None:
    """Ids, categories, sizes, boxes, labels and masks of every image; crowds left out."""
    assert sorted(source.image_ids.tolist()) == sorted(coco.getImgIds())
    wanted = [(one["id"], one["name"]) for one in coco.loadCats(sorted(coco.getCatIds()))]
    assert list(zip(source.categories.ids, source.categories.names, strict=True)) == wanted
    for i, image in enumerate(source.image_ids.tolist()):
        record = coco.loadImgs(image)[0]
        height, width = source.sizes[i].tolist()
        assert (height, width) == (record["height"], record["width"])
        annotations = coco.loadAnns(coco.getAnnIds(image, iscrowd=False))
        objects = source.objects(i, masks=True)
        assert len(objects.boxes) == len(objects.labels) == len(objects.masks) == source.num_objects()[i]
        assert (objects.boxes.dtype, objects.labels.dtype) == (np.float64, np.int64)
        assert objects.boxes.shape == (len(annotations), 4)
        for row, annotation in enumerate(annotations):
            x, y, w, h = annotation["bbox"]
            assert np.allclose(objects.boxes[row], [x, y, min(x + w, width), min(y + h, height)], atol=1e-9)
            assert source.categories.ids[objects.labels[row] - 1] == annotation["category_id"]
            assert np.array_equal(objects.masks[row], coco.annToMask(annotation))


@pytest.fixture
def source(tmp_path: Path) -> AnnotatedSource:
    return open_coco(str(make_coco(tmp_path)))


def test_everything_is_as_pycocotools_reads_it(source: AnnotatedSource) -> None:
    assert_equals_pycocotools(source, as_coco(coco_tree()))
    assert source.categories.names == ("dog", "cow", "cat")
    assert source.has_masks
    assert source.dropped == {"crowds": 1}
    assert source.num_objects().tolist() == [2, 1, 0, 1]
    empty = source.objects(2, masks=True)
    assert (empty.boxes.shape, empty.labels.shape, empty.masks) == ((0, 4), (0,), [])
    assert source.objects(0).masks == []


def test_ground_truth_says_what_the_file_says_under_new_ids(source: AnnotatedSource) -> None:
    truth, tree = source.ground_truth(), coco_tree()
    assert [one["id"] for one in truth["annotations"]] == [1, 2, 3, 4, 5]
    ours, theirs = as_coco(json.loads(json.dumps(truth))), as_coco(tree)
    for image in theirs.getImgIds():
        pairs = zip(ours.imgToAnns[image], theirs.imgToAnns[image], strict=True)
        for one, two in pairs:
            assert {**one, "id": 0, "segmentation": 0} == {**two, "id": 0, "segmentation": 0}
            assert np.array_equal(ours.annToMask(one), theirs.annToMask(two))
    part = source.ground_truth(np.array([3, 0]))
    assert [one["id"] for one in part["images"]] == [20, 30]
    assert [one["image_id"] for one in part["annotations"]] == [20, 30, 30, 30]
    part["annotations"][0]["bbox"][0] = -1.0
    assert source.ground_truth() == truth  # it was a copy


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_ground_truth_as_detections_scores_one(source: AnnotatedSource, kind: str) -> None:
    """Through stock COCOeval, with a crowd in it, and one annotation of the file under id 0."""
    truth = source.ground_truth()
    coco = as_coco(truth)
    found = [
        {key: one[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.9}
        for one in copy.deepcopy(truth["annotations"])
        if not one["iscrowd"]
    ]
    for one in found:  # results are run lengths
        one["segmentation"] = coco.annToRLE(one)
    if kind == "segm":
        found = [{key: value for key, value in one.items() if key != "bbox"} for one in found]
    judge = quietly(COCOeval, coco, quietly(coco.loadRes, found), kind)
    for step in (judge.evaluate, judge.accumulate, judge.summarize):
        quietly(step)
    assert judge.stats[0] == judge.stats[1] == 1.0


def test_boxes_are_cut_off_and_degenerate_ones_counted(tmp_path: Path) -> None:
    boxes = [
        [-4.0, -2.0, 20.0, 10.0],  # cut at the left and top
        [50.0, 30.0, 100.0, 100.0],  # cut at the right and bottom
        [10, 10, 0.9, 5],
        [10, 10, -3, 5],
        [10, 10, 5, 0],
        [70, 5, 10, 10],  # outside
        [59.5, 5, 10, 10],  # half a pixel inside
        [float("nan"), 5, 10, 10],
        [5, 5, float("inf"), 10],
        [10, 10, 1, 1],
    ]

    def change(tree: dict[str, Any]) -> None:
        tree["annotations"] = [
            {"id": number, "image_id": 30, "category_id": 3, "bbox": box} for number, box in enumerate(boxes)
        ]

    source = open_coco(str(make_coco(tmp_path, change)))
    assert source.objects(0).boxes.tolist() == [[0, 0, 16, 8], [50, 30, 60, 40], [10, 10, 11, 11]]
    assert source.dropped == {"degenerate boxes": 7}
    assert not source.has_masks
    truth = source.ground_truth()["annotations"]
    assert [one["id"] for one in truth] == list(range(1, 11))  # the file begins at 0
    assert [one["bbox"] for one in truth[:3]] == boxes[:3]
    assert [(one["iscrowd"], one["area"]) for one in truth[:2]] == [(0, 200.0), (0, 10000.0)]
    with pytest.raises(UserError, match="no segmentation"):
        source.objects(0, masks=True)


def test_a_missing_area_is_that_of_the_segmentation(tmp_path: Path) -> None:
    def change(tree: dict[str, Any]) -> None:
        for one in tree["annotations"]:
            del one["area"], one["iscrowd"]

    truth = open_coco(str(make_coco(tmp_path, change))).ground_truth()
    areas = {one["id"]: [] for one in truth["images"]}
    for one in truth["annotations"]:
        areas[one["image_id"]].append(one["area"])
    coco = as_coco(coco_tree())
    for image, found in areas.items():
        assert found == [float(rle.area(coco.annToRLE(one))) for one in coco.imgToAnns[image]]


def test_polygons_pycocotools_fails_on_are_passed_over(tmp_path: Path) -> None:
    def change(tree: dict[str, Any]) -> None:
        tree["annotations"][0]["segmentation"] += [[1, 1, 5, 5], [1, 1, 5, 5, 3], []]

    source = open_coco(str(make_coco(tmp_path, change)))
    assert np.array_equal(
        source.objects(0, True).masks[0], as_coco(coco_tree()).annToMask(coco_tree()["annotations"][0])
    )


def test_keep_empty_false_leaves_out_what_has_nothing_to_be_trained_on(tmp_path: Path) -> None:
    def change(tree: dict[str, Any]) -> None:
        tree["annotations"][2]["iscrowd"] = 1  # now image 10 has a crowd only

    folder = str(make_coco(tmp_path, change))
    every, some = open_coco(folder), open_coco(folder, keep_empty=False)
    assert some.image_ids.tolist() == [30, 20]
    assert some.sizes.tolist() == [[40, 60], [32, 48]]
    assert some.objects(1).boxes.tolist() == every.objects(3).boxes.tolist()
    assert some.image(1).shape == (32, 48, 3)
    assert some.dropped == {"crowds": 2, "images without objects": 2}
    assert some.fingerprint != every.fingerprint
    assert len(some.ground_truth()["images"]) == 2
    with pytest.raises(IndexError):
        some.objects(2)


def test_a_source_pickles_small_and_its_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    source = open_coco(str(make_coco(tmp_path / "here")), keep_empty=False)
    data = pickle.dumps(source)
    again = pickle.loads(data)
    assert len(data) < 1000
    assert again.fingerprint == source.fingerprint
    assert again.objects(0).boxes.tolist() == source.objects(0).boxes.tolist()
    full = open_coco(str(tmp_path / "here/val"))
    moved = open_coco(str(make_coco(tmp_path / "there")))
    changed = open_coco(str(make_coco(tmp_path / "else", lambda tree: tree["annotations"][0]["bbox"].reverse())))
    assert moved.fingerprint == full.fingerprint != changed.fingerprint


def test_annotations_are_parsed_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(make_coco(tmp_path))
    first = open_coco(folder)
    (kept,) = cache.glob("*.index")
    monkeypatch.setattr("detection.data.coco.tabulate_coco", None)  # calling it would fail
    assert open_coco(folder).fingerprint == first.fingerprint
    monkeypatch.undo()
    (kept / "fingerprint.npy").write_bytes(b"torn")
    assert open_coco(folder).fingerprint == first.fingerprint


def test_remote_data(tmp_path: Path) -> None:
    folder = make_coco(tmp_path)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "annotations"), "/coco/annotations", recursive=True)
    memory.put(str(folder), "/coco/val", recursive=True)
    local, remote = open_coco(str(folder)), open_coco("memory://coco/val")
    assert remote.fingerprint == local.fingerprint
    assert np.array_equal(remote.image(1), local.image(1))
    assert remote.name(1) == "memory://coco/val/000000000010.jpg"
    memory.rm("/coco/val/000000000010.jpg")
    with pytest.raises(BadImage, match="000000000010"):
        remote.image(1)


def test_where_annotations_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert annotations_of("val2017/") == f"{tmp_path}/annotations/instances_val2017.json"
    assert annotations_of("s3://b/coco/val2017?region=x") == "s3://b/coco/annotations/instances_val2017.json?region=x"
    assert annotations_of("val2017", "a.json") == "a.json"
    folder = make_coco(tmp_path)
    (tmp_path / "annotations/instances_val.json").rename(tmp_path / "other.json")
    says = r"annotations/instances_val\.json: No such file.*val_annotations.*there are .*/annotations/train\.json"
    (tmp_path / "other.json").rename(tmp_path / "annotations/train.json")
    with pytest.raises(UserError, match=says):
        open_coco(str(folder))
    (tmp_path / "annotations/train.json").rename(tmp_path / "other.json")
    assert len(open_coco(str(folder), str(tmp_path / "other.json"))) == 4
    with pytest.raises(UserError, match="nowhere: no such folder"):
        open_coco(str(tmp_path / "nowhere"))


def _set(kind: str, place: int, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda tree: tree[kind][place].update({key: value})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            _set("annotations", 0, "category_id", 4),
            r"1 annotations of unknown categories \(7 \(category 4\)\): add the category",
        ),
        (_set("annotations", 0, "image_id", 99), r"1 annotations of unknown images \(7 \(image 99\)\): add the image"),
        (_set("annotations", 0, "id", 9), r"1 annotation ids given twice \(9\)"),
        (_set("images", 0, "id", 10), r"1 image ids given twice \(10\)"),
        (_set("categories", 0, "id", 3), r"1 category ids given twice \(3\)"),
        (_set("categories", 0, "name", "dog"), r"1 category names given twice \(dog\): join the two"),
        (_set("annotations", 0, "bbox", [1, 2, 3]), r"1 boxes that are not four numbers \(7: \[1, 2, 3\]\)"),
        (_set("annotations", 0, "bbox", "box"), r"not four numbers \(7: box\)"),
        (lambda tree: tree["annotations"][0].pop("bbox"), r"not four numbers \(7: None\)"),
        (lambda tree: tree["images"][0].pop("width"), r"images without .*width above 0.* \(30: "),
        (_set("images", 0, "height", 0), r"images without .*height and width above 0.* \(30: "),
        (_set("images", 0, "id", 1.5), r"image ids that are missing or no whole numbers \(1.5\): write whole numbers"),
        (_set("annotations", 0, "image_id", "30"), r"no whole number \(7: image_id '30'\): write whole"),
        (_set("annotations", 0, "segmentation", [[1, 1, 2, 2, 1e9, 1]]), r"1 polygons that leave ±1e\+06 pixels \(7\)"),
        (_set("annotations", 0, "segmentation", [["a"] * 6]), "neither polygons nor run lengths"),
        (_set("annotations", 2, "segmentation", {"size": [30, 50], "counts": [1500]}), r"mask is of \[30, 50\]"),
        (_set("annotations", 2, "segmentation", {"size": [50, 30], "counts": [1499]}), "do not add up"),
        (_set("annotations", 2, "segmentation", {"size": [50, 30], "counts": "0"}), "do not add up"),
        (_set("annotations", 2, "segmentation", {"counts": "0"}), "neither polygons nor run lengths"),
        (lambda tree: tree["images"].clear(), "no images"),
        (lambda tree: tree["categories"].clear(), "no categories"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, change: Callable, says: str) -> None:
    folder = make_coco(tmp_path, change)
    with pytest.raises(UserError, match=says) as caught:
        open_coco(str(folder))
    assert str(caught.value).startswith(str(tmp_path / "annotations/instances_val.json"))
    assert f"python jobs/doctor.py --source coco --images {folder}" in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_of_json(tmp_path: Path, encoding: str) -> None:
    """PowerShell writes UTF-16, and Windows' editors a byte order mark."""
    folder = make_coco(tmp_path, _set("categories", 0, "name", "K\u00e4tzchen"))
    file = tmp_path / "annotations/instances_val.json"
    before = open_coco(str(folder))
    file.write_bytes(json.dumps(json.loads(file.read_text()), ensure_ascii=False).encode(encoding))
    after = open_coco(str(folder))
    assert after.categories.names == before.categories.names == ("dog", "cow", "K\u00e4tzchen")
    assert after.fingerprint == before.fingerprint


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"images": [', "damaged, not JSON: .*; copy or download it again"),
        (b"\xef\xbf\xbd", "damaged"),
        (b"id,name\n1,cat\n", "is text, such as CSV; .*put the right file in its place"),
        (b"\xff\xd8\xff\xe0", "is a JPEG; "),
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer .*run git lfs pull"),
        (b"\x1f\x8b\x08\x00", "is compressed by gzip; unpack it"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        ('{"images": [], "name": "K\u00e4tzchen"}'.encode("cp1252"), "is not UTF-8 at byte 25; save it as UTF-8"),
        (b"[]", "not COCO's instances: it is a list"),
        (b'[{"image_id": 1, "bbox": [1, 1, 1, 1], "score": 0.5}]', "list of results .*give the annotations"),
        (b'[{"image_id": 1, "bbox": [1, 1, 1, 1]}]', "list of annotations alone"),
        (b"3", "not COCO's instances: it is int"),
        (b'{"images": []}', "not COCO's instances: .* but it has no annotations"),
        (b'{"images": [], "annotations": null, "categories": []}', "but annotations is null"),
        (
            b'{"images": [], "annotations": [1], "categories": []}',
            "each a list of objects, but annotations is something else",
        ),
        (b'{"images": [], "annotations": [{"caption": "a"}]}', "but it has no categories; this looks like captions"),
        (b'{"shapes": [], "imagePath": "a.jpg"}', "it has no images; this looks like LabelMe"),
    ],
)
def test_what_is_no_instances_json(tmp_path: Path, data: bytes, says: str) -> None:
    folder = make_coco(tmp_path)
    (tmp_path / "annotations/instances_val.json").write_bytes(data)
    with pytest.raises(UserError, match=f"instances_val.json: .*{says}"):
        open_coco(str(folder))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_orientation_is_taken_as_the_recorded_size_says(tmp_path: Path, orientation: int) -> None:
    """Image 0 is recorded as 60x40 pixels. Once those are the stored ones, once those seen upright."""
    source = open_coco(str(make_coco(tmp_path)))
    file = tmp_path / "val/000000000030.jpg"
    swaps = orientation > 4
    file.write_bytes(jpeg(40, 60, 10, orientation))
    with Image.open(file) as image:
        stored, upright = np.array(image), np.array(ImageOps.exif_transpose(image))
    found = source.image(0)
    assert found.shape == (40, 60, 3)
    assert np.abs(found.astype(int) - (stored if swaps else upright)).max() <= 2
    if swaps:
        file.write_bytes(jpeg(60, 40, 10, orientation))
        with Image.open(file) as image:
            upright = np.array(ImageOps.exif_transpose(image))
        assert np.abs(source.image(0).astype(int) - upright).max() <= 2


def test_images_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    source = open_coco(str(make_coco(tmp_path)))
    files = [tmp_path / "val" / f"{image:012d}.jpg" for image in (30, 10, 40, 20)]
    files[0].write_bytes(jpeg(41, 60))
    files[1].unlink()
    files[2].write_bytes(b"nonsense")
    files[3].write_bytes(jpeg(48, 32))  # swapped without EXIF: another picture
    for i, says in enumerate(["is 60x41 pixels, 60x40 in its annotations", "No such file", "not an image", "32x48"]):
        with pytest.raises(BadImage, match=says) as caught:
            source.image(i)
        assert str(caught.value).startswith(str(files[i]))
    with pytest.raises(IndexError):
        source.image(4)


def test_run_totals_are_the_pixels_of_the_mask() -> None:
    """Of masks of all kinds, against their size; long runs need several digits, differences are negative."""
    rng = np.random.default_rng(0)
    masks = [(rng.random(rng.integers(1, 80, 2)) < rng.random()).astype(np.uint8) for _ in range(300)]
    masks += [np.repeat(mask, 40, 0) for mask in masks[:50]] + [
        np.zeros((999, 999), np.uint8),
        blob(900, 900, 9, 9, 99),
    ]
    arrays = flatten([[]] * (len(masks) + 1), [*(compressed(mask)["counts"].encode() for mask in masks), b""])
    assert run_totals(arrays).tolist() == [*(mask.size for mask in masks), 0]


@pytest.mark.data
@pytest.mark.skipif(not REAL, reason="RAYBONE_TEST_DATA, the folder of real data, is not set")
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_coco(split: str) -> None:
    root = Path(REAL) / "coco_tiny"
    source = open_coco(str(root / split))
    assert_equals_pycocotools(source, quietly(COCO, str(root / f"annotations/instances_{split}.json")))
    assert len(source) == len(source.categories) == 80
    assert source.categories.ids[-1] == 90
    for i in range(0, 80, 8):
        assert source.image(i).shape[:2] == tuple(source.sizes[i])
