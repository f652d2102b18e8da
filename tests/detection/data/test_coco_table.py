"""Instances JSON as other tools write them: what is read otherwise is said by reader and doctor, in the same words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backbone.errors import UserError
from detection.data.annotated import AnnotatedSource
from detection.data.coco import open_coco
from detection.data.coco_table import tabulate_coco
from detection.data.doctor import examine
from detection.data.options import CocoData
from detection.data.sources import open_sources, open_val
from detection.scoring import score_coco
from tests.detection.data.making import coco_tree, make_coco

Tree = dict[str, Any]


def each(**fields: Any) -> Callable[[Tree], None]:
    return lambda tree: [one.update(fields) for one in tree["annotations"]] and None


def opened(tmp_path: Path, change: Callable[[Tree], object]) -> tuple[AnnotatedSource, dict[str, int]]:
    """The source, and what it says: which the doctor must say too, counted alike."""
    folder = str(make_coco(tmp_path, change))
    source = open_coco(folder)
    said = {one.what: one.count for one in source.findings}
    doctor = {one.what: one.count for one in examine("coco", folder).findings}
    assert said.items() <= doctor.items()
    assert [one.as_line() for one in open_coco(folder).findings] == [one.as_line() for one in source.findings]  # cached
    return source, said


def test_a_sound_set_has_nothing_to_say(tmp_path: Path) -> None:
    assert opened(tmp_path, lambda tree: None)[1] == {}


@pytest.mark.parametrize("written", ["0", "false", "no", -1, "-1", "", float("nan"), "Unspecified"])
def test_marks_of_no_crowd_in_words_leave_nothing_out(tmp_path: Path, written: Any) -> None:
    source, said = opened(tmp_path, each(iscrowd=written))
    assert source.num_objects().tolist() == [3, 1, 0, 1]
    assert {one["iscrowd"] for one in source.ground_truth()["annotations"]} == {0}
    assert said == {"annotations whose iscrowd is written otherwise, taken as 0: single objects": 5}


@pytest.mark.parametrize("written", [1, True, 1.0])
def test_marks_of_a_crowd(tmp_path: Path, written: Any) -> None:
    source, said = opened(tmp_path, lambda tree: tree["annotations"][0].update(iscrowd=written))
    assert (source.dropped, said) == ({"crowds": 2}, {})


def test_marks_of_a_crowd_in_words(tmp_path: Path) -> None:
    source, said = opened(tmp_path, lambda tree: tree["annotations"][0].update(iscrowd="true"))
    assert source.dropped == {"crowds": 2}
    assert said == {"annotations whose iscrowd is written otherwise, taken as 1: crowds": 1}


@pytest.mark.parametrize("written", [2, "maybe", [], 0.5])
def test_marks_that_say_neither_are_refused_by_whoever_uses_them(tmp_path: Path, written: Any) -> None:
    folder = str(make_coco(tmp_path, lambda tree: tree["annotations"][0].update(iscrowd=written)))
    data = CocoData(train=folder, val=folder)
    for use in (open_sources, open_val):
        with pytest.raises(UserError, match=r"1 annotations whose iscrowd is neither 0 nor 1 .*write 0 for"):
            use(data)
    assert examine("coco", folder).errors == 1


def test_marks_that_coco_does_not_have_are_said_not_to_be_read(tmp_path: Path) -> None:
    source, said = opened(tmp_path, each(ignore=1))
    assert (source.dropped, said) == ({"crowds": 1}, {"annotations with ignore set": 4})


def perfect(source: AnnotatedSource) -> dict[str, Any]:
    truth = source.ground_truth()
    found = [
        {key: one[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for one in truth["annotations"]
        if not one["iscrowd"]
    ]
    return score_coco(truth, found, source.categories)


@pytest.mark.parametrize("area", [-1, 0, 0.05, 1e9, None, "40", float("nan"), float("-inf")])
def test_areas_that_cannot_be_meant_change_no_score(tmp_path: Path, area: Any) -> None:
    """As the area of the mask would have it, in all sizes; one of two found is no AP of 1."""
    source, said = opened(tmp_path / "it", each(area=area))
    assert sum(said.values()) == 5
    assert all("area" in what for what in said)
    right = open_coco(str(make_coco(tmp_path / "right")))
    truth, wanted = source.ground_truth()["annotations"], right.ground_truth()["annotations"]
    assert [one["area"] for one in truth] == [one["area"] for one in wanted]
    scores = perfect(source)
    assert scores["AP"] == scores["APs"] == 1.0
    one = [{"image_id": 20, "category_id": 5, "bbox": [2, 2, 30, 28], "score": 0.9}]
    assert score_coco(source.ground_truth(), one, source.categories)["AP"] == pytest.approx(1 / 3)


def _as_corners(tree: Tree) -> None:
    for one in tree["annotations"]:
        x, y, width, height = one["bbox"]
        one["bbox"] = [x, y, x + width, y + height]


def _in_percent(tree: Tree) -> None:
    sizes = {one["id"]: (one["width"], one["height"]) for one in tree["images"]}
    for one in tree["annotations"]:
        one["bbox"] = [100 * side / sizes[one["image_id"]][k % 2] / 4 for k, side in enumerate(one["bbox"])]


def _polygons_in_fractions(tree: Tree) -> None:
    """Drawn in pixels they would be empty masks, and nothing would be said of them."""
    sizes = {one["id"]: (one["width"], one["height"]) for one in tree["images"]}
    for one in tree["annotations"]:
        if isinstance(one["segmentation"], list):
            sides = sizes[one["image_id"]]
            one["segmentation"] = [[x / sides[k % 2] for k, x in enumerate(ring)] for ring in one["segmentation"]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_as_corners, r"boxes given as corners x1, y1, x2, y2 .*: write x1, y1, x2 - x1, y2 - y1"),
        (each(bbox=[0.1, 0.1, 0.5, 0.5]), r"5 boxes given as fractions of the image .*: multiply x and width by"),
        (each(bbox=[0, 0, 1, 1]), r"5 boxes given as fractions of the image"),
        (_polygons_in_fractions, r"3 polygons given as fractions of the image .*: multiply x by the image's width"),
        (_in_percent, r"boxes in other units than their segmentation .*: give both in pixels"),
        (lambda tree: tree["annotations"][0].update(bbox=[1, 2, float("nan"), 4]), r"1 boxes that are not finite"),
        (
            each(bbox=[5, 5, 0.5, 0.9], segmentation=[]),
            r"no object to train on; left out: 1 crowds, 4 degenerate boxes",
        ),
    ],
)
def test_boxes_that_are_not_meant_so_are_an_error_for_doctor_and_training(
    tmp_path: Path, change: Callable[[Tree], None], says: str
) -> None:
    folder = str(make_coco(tmp_path, change))
    assert examine("coco", folder, check_images=False).errors
    with pytest.raises(UserError, match=says) as caught:
        open_sources(CocoData(train=folder, val=folder))
    assert f"python jobs/doctor.py --source coco --images {folder}" in str(caught.value)


def test_a_box_that_is_not_its_masks_is_a_warning(tmp_path: Path) -> None:
    _, said = opened(tmp_path, lambda tree: tree["annotations"][0].update(bbox=[40, 20, 10, 10], area=100))
    assert said == {"boxes that do not fit their segmentation": 1}


def test_boxes_of_negative_sides_are_scored_as_pycocotools_scores_them(tmp_path: Path) -> None:
    """As an object that nothing can be; evaluators refuse sides below 0."""
    source, said = opened(tmp_path, lambda tree: tree["annotations"][2].update(bbox=[20, 30, -10, -10]))
    assert said["boxes without width or height"] == 1
    assert source.dropped == {"crowds": 1, "degenerate boxes": 1}
    truth = source.ground_truth()
    assert truth["annotations"][3]["bbox"] == [20, 30, 0, 0]
    found = [{"image_id": 30, "category_id": 9, "bbox": [4.0, 5.0, 20.5, 10.25], "score": 0.9}]
    scores = score_coco(truth, found, source.categories)
    assert scores["AP"] == pytest.approx(score_coco(truth, found, source.categories, fast=False)["AP"])
    assert scores["per_class"]["cat"]["AP"] == 1.0


def test_a_root_category_of_the_same_name_that_nothing_is_annotated_with(tmp_path: Path) -> None:
    """As Roboflow writes: the project is category 0, called as its only class is."""
    root = {"id": 0, "name": "dog", "supercategory": "none"}
    source, said = opened(tmp_path, lambda tree: tree["categories"].insert(0, root))
    assert (source.categories.names, source.categories.ids) == (("dog", "cow", "cat"), (3, 5, 9))
    assert said == {"unused categories with the name of another": 1}
    after = {"id": 77, "name": "dog"}
    assert opened(tmp_path / "after", lambda tree: tree["categories"].append(after))[0].categories == source.categories


def test_two_categories_of_one_name_that_are_both_used_are_refused(tmp_path: Path) -> None:
    def change(tree: Tree) -> None:
        tree["categories"].append({"id": 0, "name": "dog"})
        tree["annotations"][4]["category_id"] = 0

    folder = str(make_coco(tmp_path, change))
    with pytest.raises(UserError, match=r"1 category names given twice \(dog\): join the two, or rename one"):
        open_coco(folder)
    assert examine("coco", folder).errors


def test_categories_that_differ_in_case_are_kept_and_said(tmp_path: Path) -> None:
    source, said = opened(tmp_path, lambda tree: tree["categories"][0].update(name="Dog "))
    assert source.categories.names == ("dog", "cow", "Dog ")
    assert list(said) == ["classes whose names differ in case, blanks, hyphens or Unicode form alone"]


def test_the_same_object_twice_is_kept_and_said(tmp_path: Path) -> None:
    source, said = opened(tmp_path, lambda tree: tree["annotations"].append({**tree["annotations"][0], "id": 99}))
    assert source.num_objects()[0] == 3
    assert said == {"objects given twice": 1}


@pytest.mark.parametrize("kind", ["images", "annotations", "categories"])
def test_what_is_repeated_id_and_all_is_read_once(tmp_path: Path, kind: str) -> None:
    """As where the same file was joined to itself. Of another content under the same id is refused."""
    source, said = opened(tmp_path / "same", lambda tree: tree[kind].append(dict(tree[kind][0])))
    assert said == {f"{kind} given twice, id and all": 1}
    assert source.ground_truth() == open_coco(str(make_coco(tmp_path / "right"))).ground_truth()

    def change(tree: Tree) -> None:
        tree[kind].append({**tree[kind][0], "width": 61, "bbox": [1, 1, 5, 5], "name": "emu"})

    with pytest.raises(UserError, match="ids given twice"):
        open_coco(str(make_coco(tmp_path / "other", change)))


@pytest.mark.parametrize(
    "written",
    [
        [4, 5, 24.5, 5, 24.5, 15.25, 4, 15.25],
        [[4, 5], [24.5, 5], [24.5, 15.25], [4, 15.25]],
        [[[4, 5], [24.5, 5], [24.5, 15.25], [4, 15.25]]],
    ],
)
def test_polygons_without_the_outer_list_or_in_pairs(tmp_path: Path, written: Any) -> None:
    source, said = opened(tmp_path / "it", lambda tree: tree["annotations"][0].update(segmentation=written))
    assert said == {"segmentations that are a polygon without the outer list, or points in pairs": 1}
    right = open_coco(str(make_coco(tmp_path / "right")))
    assert np.array_equal(source.objects(0, True).masks[0], right.objects(0, True).masks[0])


def test_images_named_by_their_url_alone(tmp_path: Path) -> None:
    """As LVIS does."""

    def change(tree: Tree) -> None:
        for one in tree["images"]:
            one["coco_url"] = f"http://images.example.org/set/train/{one.pop('file_name')}"

    source, _ = opened(tmp_path, change)
    assert [source.image(i).shape[:2] for i in range(4)] == [tuple(size) for size in source.sizes.tolist()]


def test_what_an_image_lacks_is_named_and_its_annotations_are_not_blamed(tmp_path: Path) -> None:
    tree = coco_tree()
    tree["images"][0]["height"] = None
    del tree["images"][1]["width"]
    (fault,) = tabulate_coco(tree).refused.sorted()
    assert fault.as_line().startswith("2 images without a whole id, height and width above 0, and file_name")
    assert fault.examples == ["30: height None", "10: no width"]


def test_sizes_as_whole_floats_and_names_as_numbers(tmp_path: Path) -> None:
    def change(tree: Tree) -> None:
        tree["images"][0] |= {"height": 40.0, "width": 60.0}
        tree["categories"][0]["name"] = 12

    source, said = opened(tmp_path, change)
    assert (source.sizes[0].tolist(), source.categories.names[2], said) == ([40, 60], "12", {})


def test_images_of_another_layout_are_read_and_said(tmp_path: Path) -> None:
    """The content is the same, so is the fingerprint: a run goes on where files were moved."""
    right = open_coco(str(make_coco(tmp_path / "right")))

    def change(tree: Tree) -> None:
        for one, form in zip(tree["images"], ("val\\{}", "/data/val/{}", "{}.JPG", "{}"), strict=True):
            one["file_name"] = form.format(one["file_name"]).replace(".jpg.JPG", ".JPG")

    source, said = opened(tmp_path / "it", change)
    assert said == {"images whose file has another name than is written": 3}
    for i in range(4):
        assert np.array_equal(source.image(i), right.image(i))
    assert Path(source.name(0)).is_file()


def test_images_without_a_file_stop_training_at_its_start_unless_they_are_to_be_skipped(tmp_path: Path) -> None:
    folder = make_coco(tmp_path)
    (folder / "000000000010.jpg").unlink()
    data = CocoData(train=str(folder), val=str(folder))
    with pytest.raises(UserError, match=r"1 images whose file is missing \(000000000010.jpg\): restore the file"):
        open_sources(data)
    train, val = open_sources(data.model_copy(update={"on_bad": "skip"}))
    assert [len(train), len(val), len(open_val(data))] == [4, 4, 4]
    assert "1 images whose file is missing" in train.findings[0].as_line()


NAN = float("nan")
ODD = [
    None,
    True,
    -1,
    0,
    1.5,
    NAN,
    float("inf"),
    10**400,
    "",
    "x",
    "\udcff",
    "\ud800",
    [],
    [None],
    {},
    {"a": 1},
    [[]],
    [[[]]],
]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_nothing_that_json_can_hold_raises(odd: Any) -> None:
    """In any place of any record: it is refused, or read, and either way the JSON's other records are looked at."""
    whole = tabulate_coco(coco_tree())
    for kind in ("images", "annotations", "categories"):
        for key in coco_tree()[kind][0]:
            tree = coco_tree()
            tree[kind][0][key] = odd
            table = tabulate_coco(tree)
            assert table.arrays or table.refused.errors
            if not table.refused.errors and not table.findings.sorted():
                same = table.arrays["fingerprint"].tobytes() == whole.arrays["fingerprint"].tobytes()
                assert same or key in ("name", "file_name", "segmentation", "iscrowd")  # what means something else
            for one in (*table.refused.sorted(), *table.findings.sorted()):
                json.dumps(one.as_line())


@pytest.mark.parametrize("odd", [*ODD, 5, 7.0, "12", [5, 5], [[5, 5]]], ids=repr)
def test_nothing_in_a_segmentation_raises(odd: Any) -> None:
    for form in (
        odd,
        [odd],
        [[1, 1, 9, 1, 9, odd]],
        [[1, 1, 9, 1, 9, 9], odd],
        {"size": odd, "counts": [2400]},
        {"size": [40, 60], "counts": odd},
        {"size": [40, 60], "counts": [odd]},
        {"size": [40, 60], "counts": [100, odd, 2300]},
    ):
        tree = coco_tree()
        tree["annotations"][0]["segmentation"] = form
        table = tabulate_coco(tree)
        assert table.arrays


def test_validation_images_without_a_file_stop_training_at_its_start(tmp_path: Path) -> None:
    train, val = make_coco(tmp_path / "one"), make_coco(tmp_path / "two")
    (val / f"{10:012d}.jpg").unlink()
    data = CocoData(train=str(train), val=str(val))
    with pytest.raises(UserError, match=r"images whose file is missing.*--data\.on_bad skip"):
        open_sources(data)
    open_sources(data.model_copy(update={"on_bad": "skip"}))
