"""The doctor for labelled images: each fault planted, and found alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backbone.data import doctor
from backbone.data.doctor import examine
from backbone.data.findings import Diagnosis, Finding
from backbone.data.sources import check_classes, open_source
from backbone.errors import UserError
from tests.backbone.data.making import ALL, make_shards
from tests.backbone.data.pictures import PHOTO, encode


def picture(number: int, **options: Any) -> bytes:
    """An image like no other."""
    pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels), "PNG", **options)


def make(root: Path, first: int = 0, each: int = 4) -> Path:
    for number in range(3 * each):
        path = root / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(first + number))
    return root


def found(report: Diagnosis) -> dict[str, Finding]:
    return {finding.what: finding for finding in report.findings}


def test_sound_splits(tmp_path):
    report = examine("imagefolder", str(make(tmp_path / "train")), str(make(tmp_path / "val", 100, 2)))
    assert (report.findings, report.errors) == ([], 0)
    assert report.statistics["train images"] == 12
    assert report.statistics["val images a class"] == {"fewest": 2, "median": 2, "most": 2}
    assert report.statistics["train images by class"] == {"a": 4, "b": 4, "c": 4}
    assert report.statistics["train image width"]["median"] == 50
    assert "train images by class\n  a                          4\n" in report.as_text()


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x112] = 6
    return encode(PHOTO, "JPEG", exif=exif)


@pytest.mark.parametrize(
    ("severity", "what", "data"),
    [
        ("error", "images that are damaged", picture(0)[:700]),
        ("error", "images that are damaged", b""),
        ("warning", "images with CMYK colours", encode(PHOTO.convert("CMYK"), "JPEG")),
        ("warning", "images with an EXIF orientation", _turned()),
        ("warning", "images with a palette or transparency", encode(PHOTO.convert("P"), "PNG")),
        ("warning", "images below 32 pixels", encode(PHOTO.resize((64, 31)), "JPEG")),
    ],
)
def test_planted_images(tmp_path, severity, what, data):
    root = make(tmp_path / "train")
    (root / "b/1.png").write_bytes(data)
    report = examine("imagefolder", str(root))
    assert list(found(report)) == [what]
    finding = found(report)[what]
    assert (finding.severity, finding.count) == (severity, 1)
    assert finding.examples[0].startswith(f"{root}/b/1.png")
    assert report.errors == (severity == "error")
    assert not found(examine("imagefolder", str(root), check_images=False)).keys() - {"images were not opened"}


def test_the_same_image_in_both_splits_is_found_by_its_pixels(tmp_path):
    train, val = make(tmp_path / "train"), make(tmp_path / "val", 100, 2)
    (val / "a/0.png").write_bytes(picture(3, compress_level=1))
    assert (val / "a/0.png").read_bytes() != (train / "a/3.png").read_bytes()
    report = examine("imagefolder", str(train), str(val))
    assert list(found(report)) == ["the same image in both splits"]
    assert found(report)["the same image in both splits"].examples == [f"{train}/a/3.png = {val}/a/0.png"]
    assert report.errors == 1


def test_the_same_image_twice_in_a_split(tmp_path):
    root = make(tmp_path / "train")
    (root / "a/more.png").write_bytes(picture(0))
    (root / "b/more.png").write_bytes(picture(5))
    report = examine("imagefolder", str(root))
    once, twice = found(report)["the same image twice in a class"], found(report)["the same image under two labels"]
    assert (once.severity, once.examples) == ("warning", [f"{root}/a/0.png = {root}/a/more.png"])
    assert (twice.severity, twice.examples) == ("error", [f"{root}/b/more.png = {root}/c/5.png (b, c)"])


def test_two_labels_in_two_splits_are_both_said(tmp_path):
    train, val = make(tmp_path / "train"), make(tmp_path / "val", 100, 2)
    (val / "b/1.png").write_bytes(picture(0))
    report = examine("imagefolder", str(train), str(val))
    assert set(found(report)) == {"the same image in both splits", "the same image under two labels"}


def test_classes(tmp_path):
    root = make_shards(tmp_path / "set")
    (root / "classes.txt").write_text("a\nb\nc\nd\n")
    report = examine("webdataset", f"{root}/{ALL}", check_images=False)
    assert found(report)["classes without images"].examples == ["d"]
    train = make(tmp_path / "train", each=1)
    for number in range(12):
        (train / f"a/more{number}.png").write_bytes(picture(50 + number))
    report = examine("imagefolder", str(train))
    assert found(report)["classes 10 times as large as others"].examples == ["a has 13 images, b 1"]
    val = make(tmp_path / "val", 100)
    (val / "c").rename(val / "d")
    report = examine("imagefolder", str(train), str(val), check_images=False)
    differ = found(report)["splits whose classes differ"]
    assert differ.severity == "error"
    assert "only in train: c; only in val: d" in differ.examples[0]


def test_one_class_alone_is_an_error_by_the_code_that_training_refuses_it_with(tmp_path):
    root = make(tmp_path / "train")
    shutil.rmtree(root / "b")
    assert examine("imagefolder", str(root), check_images=False).errors == 0
    shutil.rmtree(root / "c")
    finding = found(examine("imagefolder", str(root), check_images=False))["one class alone"]
    assert finding.severity == "error"
    with pytest.raises(UserError) as refusal:
        check_classes(open_source("imagefolder", str(root)))
    assert finding.examples == [str(refusal.value)]


def test_processes_see_what_one_process_sees(tmp_path, monkeypatch):
    root = make(tmp_path / "train", each=10)
    (root / "a/0.png").write_bytes(b"rubbish")
    alone = examine("imagefolder", str(root))
    monkeypatch.setattr(doctor, "SOME", 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    assert examine("imagefolder", str(root)) == alone
    assert json.loads(json.dumps(alone.as_dict()))["findings"][0]["count"] == 1


def test_what_the_reader_refuses_is_the_readers_to_say(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        examine("imagefolder", str(tmp_path / "nothing"))
    make(tmp_path / "train")
    (tmp_path / "train/empty").mkdir()
    with pytest.raises(UserError, match="no images in empty"):
        examine("imagefolder", str(tmp_path / "train"))
