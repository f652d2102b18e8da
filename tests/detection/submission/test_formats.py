"""The challenge's files, read back as its devkits do."""

from pathlib import Path

import numpy as np
import pytest

from backbone.errors import UserError
from detection.submission.formats import (
    CLSLOC,
    DET,
    classification_line,
    detection_lines,
    localisation_line,
    numbers_of,
    read_list,
    read_synsets,
)
from tests.detection.localisation.test_clsloc import write_image

MAP = "n02119789 1 kit_fox\nn02100735 2 English_setter\nn02110185 3 Siberian_husky\n"


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_numbers_are_the_devkits(tmp_path: Path) -> None:
    kit = read_synsets(write(tmp_path / "map_clsloc.txt", MAP))
    assert numbers_of(["n02110185", "n02119789", "n02100735"], kit, "net") == [3, 1, 2]
    assert numbers_of(["English setter", "kit_fox"], kit, "net") == [2, 1]
    # Sorted: n02100735, n02110185, n02119789, as class folders are.
    assert numbers_of(["a", "b", "c"], kit, "net", by_position=True) == [2, 3, 1]
    alone = write(tmp_path / "alone.txt", "n02119789\nn02100735\nn02110185\n")
    assert read_synsets(alone).numbers == kit.numbers
    with pytest.raises(UserError, match=r"lacks 1 of the 2 classes of net: tench.*--by_position true"):
        numbers_of(["tench", "kit_fox"], kit, "net")
    with pytest.raises(UserError, match="net has 2 classes, the challenge 3"):
        numbers_of(["a", "b"], kit, "net", by_position=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("n02100735\nn02110185\nn02119789\n", "in their own order"),
        ("n02119789 kit fox\n", "'n02119789 kit fox' is no WordNet id and number"),
        ("n02119789 1\nn02100735\n", "'n02100735' is no WordNet id and number"),
        ("n02119789 0\nn02100735 1\n", "are to be 1 to 2, each once"),
        ("n02119789 1\nn02119789 2\n", "are to be 1 to 2, each once"),
    ],
)
def test_synsets_that_cannot_be_meant(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_synsets(write(tmp_path / "synsets.txt", text))


def test_lists_and_folders_in_the_order_of_names(tmp_path: Path) -> None:
    names = ["ILSVRC2012_test_00000002", "ILSVRC2012_test_00000010", "ILSVRC2012_test_00000001"]
    for name in names:
        write_image(tmp_path, f"test/{name}", [])
    lines = "".join(f"{name} {k}\n" for k, name in enumerate(names, 1))
    write(tmp_path / "ImageSets/CLS-LOC/test.txt", lines)
    listed, folder = read_list(f"{tmp_path}:test", CLSLOC), read_list(str(tmp_path / "Data/CLS-LOC/test"), CLSLOC)
    assert listed.places == folder.places
    assert [Path(place).stem[-8:] for place in listed.places] == ["00000001", "00000002", "00000010"]
    assert (listed.numbers, folder.numbers) == ((3, 1, 2), (1, 2, 3))
    assert listed.image(0).shape == (40, 60, 3)
    (tmp_path / "Data/CLS-LOC/test" / f"{names[0]}.JPEG").unlink()
    with pytest.raises(UserError, match=r"1 of 3 are missing: .*00000002\.JPEG"):
        read_list(f"{tmp_path}:test", CLSLOC)
    with pytest.raises(UserError, match=r"No such file.*give folder:list"):
        read_list(f"{tmp_path}:test", DET)
    with pytest.raises(UserError, match="no such folder; give folder:list"):
        read_list(str(tmp_path / "nothing"), DET)


def test_lines_are_read_as_eval_clsloc_reads_them(tmp_path: Path) -> None:
    """Which takes label i from column 5 i - 4 and its box from the next four, counted from 1."""
    boxes = np.array([[0.0, 0, 10, 20], [4.25, 5, 60, 40]])
    path = write(tmp_path / "loc.txt", localisation_line([7, 3], boxes) * 2)
    read = np.loadtxt(path, delimiter=" ")
    assert read.shape == (2, 10)
    assert read[1, 0::5].tolist() == [7, 3]
    assert read[0, 1:5].tolist() == [1, 1, 10, 20]  # the first ten columns of pixels
    assert read[0, 6:].tolist() == [5.25, 6, 60, 40]
    path = write(tmp_path / "cls.txt", classification_line([5, 4, 3, 2, 1]) + classification_line([9, 8, 7, 6, 5]))
    assert np.loadtxt(path, dtype=int).tolist() == [[5, 4, 3, 2, 1], [9, 8, 7, 6, 5]]


def test_detections_have_the_lists_numbers(tmp_path: Path) -> None:
    kit = read_synsets(
        write(tmp_path / "map_det.txt", "n02672831 1 accordion\nn02219486 2 ant\nn02796623 3 baby_bed\n")
    )
    for name in "ab":
        write(tmp_path / f"Data/DET/test/{name}.JPEG", "")
    write(tmp_path / "ImageSets/DET/test.txt", "a 12\nb 5\n")
    images = read_list(f"{tmp_path}:test", DET)
    categories = [{"id": 8, "name": "baby bed"}, {"id": 9, "name": "n02672831"}]
    found = {
        "images": [{"id": 1, "file_name": "b.JPEG"}, {"id": 2, "file_name": "test/a.JPEG"}],
        "categories": categories,
    }
    rows = [
        {"image_id": 2, "category_id": 9, "bbox": [0.0, 1.0, 10.0, 20.0], "score": 0.5},
        {"image_id": 1, "category_id": 8, "bbox": [3.5, 4.0, 1.0, 2.0], "score": 0.25},
        {"image_id": 2, "category_id": 8, "bbox": [0.0, 0.0, 5.0, 5.0], "score": 0.125},
    ]
    read = np.loadtxt(detection_lines(images, found, rows, kit))
    assert read.tolist() == [
        [5, 3, 0.25, 4.5, 5, 4.5, 6],
        [12, 1, 0.5, 1, 2, 10, 21],
        [12, 3, 0.125, 1, 1, 5, 5],
    ]
    with pytest.raises(
        UserError, match=r"1 images of the list were not detected in: a; .* unreadable\.txt .* another --output"
    ):
        detection_lines(images, {**found, "images": found["images"][:1]}, [], kit)
    twice = [*found["images"], {"id": 3, "file_name": "other/a.JPEG"}]
    with pytest.raises(UserError, match="they hold several images called a, and"):
        detection_lines(images, {**found, "images": twice}, [{**rows[0], "image_id": 3}], kit)
    more = [*found["images"], {"id": 3, "file_name": "c.JPEG"}]
    with pytest.raises(UserError, match="hold 1 images that are not in the list: c"):
        detection_lines(images, {**found, "images": more}, [], kit)
