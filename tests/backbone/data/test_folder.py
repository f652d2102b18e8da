"""Image folders, against torchvision."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backbone.data import formats
from backbone.data.doctor import examine
from backbone.data.findings import Finding
from backbone.data.sources import Source, check_classes, open_source, remarks
from backbone.errors import BadImage, UserError
from tests.backbone.data.making import make_folder, png, values


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(len(name)))
    return root


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "set"  # beside the cache


def said(source: Source) -> dict[str, Finding]:
    return {finding.what: finding for finding in source.findings}


def test_folder_has_torchvisions_order_and_labels(tmp_path):
    from torchvision.datasets import ImageFolder  # not above: spawned processes would import it too

    root = make_folder(tmp_path / "train")
    theirs = ImageFolder(root)
    ours = open_source("imagefolder", str(root))
    assert list(ours.classes) == theirs.classes
    assert [(ours.name(i), int(ours.labels[i])) for i in range(len(ours))] == theirs.samples
    assert ours.labels.dtype == np.int64
    for i in range(len(theirs)):
        assert (ours.image(i) == np.asarray(theirs[i][0])).all()


def test_folder_passes_over_other_programs_notes_and_follows_links(tmp_path):
    root = make_folder(tmp_path / "train")
    (root / ".ipynb_checkpoints").mkdir()
    (root / "a" / "._A.png").write_bytes(b"AppleDouble")
    shutil.move(root / "b", tmp_path / "elsewhere")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    source = open_source("imagefolder", str(root))
    assert source.classes == ("a", "b", "c c")
    assert sorted(values(source)) == list(range(8))


def test_folder_errors_say_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such directory; looked for .*<class>"):
        open_source("imagefolder", str(tmp_path / "nowhere"))
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="no class folders"):
        open_source("imagefolder", str(tmp_path / "data"))
    root = make_folder(tmp_path / "data" / "train")
    (tmp_path / "data" / "val").mkdir()
    with pytest.raises(UserError, match=r"holds the splits train, val, not classes\. Name one: --data\.train "):
        open_source("imagefolder", str(tmp_path / "data"))
    (root / "empty").mkdir()
    with pytest.raises(UserError, match=r"no images in empty; looked for \*\.jpg"):
        open_source("imagefolder", str(root))
    with pytest.raises(UserError, match=r"imagefolders; there are imagefolder, webdataset, parquet"):
        open_source("imagefolders", str(root))


def test_folder_with_bad_images_names_them(tmp_path):
    root = make_folder(tmp_path / "train")
    (root / "a" / "A.png").write_bytes(b"")
    source = open_source("imagefolder", str(root))
    with pytest.raises(BadImage, match=rf"^{root}/a/A\.png: is empty"):
        source.image(0)
    (root / "a" / "z.png").unlink()
    with pytest.raises(BadImage, match=r"a/z\.png: No such file"):
        source.image(1)
    with pytest.raises(IndexError):
        source.image(len(source))
    with pytest.raises(IndexError):
        source.image(-1)


def test_fingerprint_ignores_the_place_and_notices_everything_else(tmp_path):
    root = make_folder(tmp_path / "one")
    first = open_source("imagefolder", str(root)).fingerprint
    assert len(first) == 64
    shutil.copytree(root, tmp_path / "two" / "deeper")
    assert open_source("imagefolder", str(tmp_path / "two" / "deeper")).fingerprint == first
    seen = {first}
    for change in (
        lambda: (root / "a" / "z.png").rename(root / "a" / "y.png"),
        lambda: (root / "a" / "y.png").write_bytes(png(4, 40, 60)),
        lambda: (root / "a").rename(root / "aa"),
        lambda: shutil.move(root / "b" / "2.png", root / "c c" / "2.png"),
    ):
        change()
        seen.add(open_source("imagefolder", str(root)).fingerprint)
    assert len(seen) == 5


def test_folder_is_shared_through_the_cache(tmp_path, cache):
    make_folder(tmp_path / "train")
    open_source("imagefolder", str(tmp_path / "train"))
    before = next(cache.glob("imagefolder-*.index")).stat().st_mtime_ns
    open_source("imagefolder", str(tmp_path / "train"))
    assert [path.stat().st_mtime_ns for path in cache.glob("imagefolder-*.index")] == [before]


FORMATS = {
    "PNG": ".png", "JPEG": ".jfif", "GIF": ".gif", "AVIF": ".avif", "BMP": ".dib", "TIFF": ".tif", "WEBP": ".webp",
    "PPM": ".pnm", "JPEG2000": ".jp2", "TGA": ".tga",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "suffix"), FORMATS.items())
def test_every_format_that_decodes_is_read(root, kind, suffix):
    pixels = np.full((32, 32, 3), 90, np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind)
    for name in (f"x{suffix}", f"y{suffix.upper()}"):
        (root / "a").mkdir(parents=True, exist_ok=True)
        (root / "a" / name).write_bytes(data.getvalue())
    source = open_source("imagefolder", str(root))
    assert len(source) == 2
    assert not source.findings
    for i in range(2):
        assert np.abs(source.image(i).astype(int) - 90).max() <= 3


def test_what_the_pillow_at_hand_cannot_read_is_counted(root, monkeypatch):
    put(root, "a/1.png", "a/2.avif", "a/3.AVIF")
    assert len(open_source("imagefolder", str(root))) == 3
    monkeypatch.setattr(formats.features, "check", lambda feature: feature != "avif")
    formats.image_suffixes.cache_clear()
    source = open_source("imagefolder", str(root))
    formats.image_suffixes.cache_clear()
    assert len(source) == 1
    assert said(source)["images in formats that are not read"].count == 2


LEFT = {
    "images beside the class folders": ("warning", ["cover.JPG"]),
    "images in formats that are not read": ("warning", ["a/3.HEIC", "b/deep/4.jxl"]),
    "files that are no images by their names": ("note", ["README", "a/labels.txt", "b/Thumbs.db"]),
    "hidden files and folders": ("note", ["__MACOSX", "a/.DS_Store", "b/.cache"]),
}


@pytest.mark.parametrize("remote", [False, True])
def test_whatever_is_not_read_is_counted_and_named(root, remote, memory):
    put(root, "a/1.png", "b/2.png", *(name for _, names in LEFT.values() for name in names if "." in name[3:]))
    for name in ("README", "__MACOSX/a/._1.png", "b/.cache/5.png", "a/.DS_Store"):
        put(root, name)
    place = str(root)
    if remote:
        place = "memory://left"
        memory.put(f"{root}/", "/left/", recursive=True)
    source = open_source("imagefolder", place)
    assert len(source) == 2
    found = said(source)
    assert found.keys() == LEFT.keys()
    for what, (severity, names) in LEFT.items():
        assert (found[what].severity, found[what].count) == (severity, len(names))
        at = [
            example.removeprefix("memory://").removeprefix("/left" if remote else place)
            for example in found[what].examples
        ]
        assert sorted(at) == sorted(f"/{name}" for name in names)
    lines = remarks(source)
    assert len(lines) == 4
    assert lines[0].startswith("1 images beside the class folders (")
    report = examine("imagefolder", place, check_images=False)
    assert {one.what: one.count for one in report.findings if one.what in LEFT} == {
        what: len(names) for what, (_, names) in LEFT.items()
    }


def test_classes_of_unread_files_say_what_they_hold(root):
    put(root, "a/1.png", "b/1.heic", "b/2.heic", "b/note.txt")
    with pytest.raises(
        UserError, match=r"no images in b; .*there are 2 of \.heic, 1 of \.txt; convert, fill or remove"
    ):
        open_source("imagefolder", str(root))
    put(root / "flat", "1.png", "2.png")
    with pytest.raises(UserError, match=r"no class folders; .*; there are 2 of \.png"):
        open_source("imagefolder", str(root / "flat"))
    put(root / "rows", "x.parquet")
    with pytest.raises(UserError, match=r"1 of \.parquet; tars and Parquet are read by --data\.source parquet"):
        open_source("imagefolder", str(root / "rows"))


def test_links_that_lead_nowhere_are_damaged_images_and_do_not_stop_the_doctor(root):
    put(root, "a/1.png", "b/two.png")
    (root / "a" / "gone.jpg").symlink_to("nowhere.jpg")
    (root / "a" / "round.jpg").symlink_to("round.jpg")
    (root / "b" / "gone").symlink_to("nowhere")
    source = open_source("imagefolder", str(root))
    assert [source.name(i).rpartition("/")[2] for i in range(4)] == ["1.png", "gone.jpg", "round.jpg", "two.png"]
    assert said(source)["links that lead nowhere"].count == 3
    with pytest.raises(BadImage, match=rf"^{root}/a/gone\.jpg: is a link that leads nowhere$") as error:
        source.image(1)
    assert error.value.__cause__ is None  # an OSError would be the storage's fault
    report = examine("imagefolder", str(root))
    damaged = next(one for one in report.findings if one.what == "images that are damaged")
    assert (report.errors, damaged.count) == (1, 2)
    (root / "c").symlink_to("nowhere")
    with pytest.raises(UserError, match=rf"{root}/c: is a link that leads nowhere, where a class folder would be"):
        open_source("imagefolder", str(root))


def test_links_in_circles_and_pipes_are_passed_over(root):
    put(root, "a/1.png", "b/deep/2.png")
    (root / "a" / "up").symlink_to("..")
    (root / "b" / "deep" / "same").symlink_to(".")
    (root / "b" / "other").symlink_to("../a")
    os.mkfifo(root / "a" / "pipe.png")
    source = open_source("imagefolder", str(root))
    assert [source.name(i).removeprefix(f"{root}/") for i in range(3)] == ["a/1.png", "b/deep/2.png", "b/other/1.png"]
    # through b/other/up lies b again, but that is where a link to a folder above was left out
    assert said(source)["links to a folder above"].count >= 2
    assert said(source)["names of images that are no files"].count == 2


def test_names_that_are_not_utf8_can_be_read_and_printed(root):
    put(root, "bar/1.png")
    folder = os.fsencode(root) + b"/caf\xe9"
    os.mkdir(folder)  # noqa: PTH102
    for name, data in ((b"/\xff1.png", png(7)), (b"/\xff2.png", b"rubbish")):
        with open(folder + name, "wb") as file:  # noqa: PTH123
            file.write(data)
    source = open_source("imagefolder", str(root))
    assert source.classes == ("bar", r"caf\xe9")
    assert source.name(1) == rf"{root}/caf\xe9/\xff1.png"
    assert source.image(1)[0, 0, 0] == 7
    with pytest.raises(BadImage) as error:
        source.image(2)
    report = examine("imagefolder", str(root))
    for text in (source.name(1), *source.classes, str(error.value), report.as_text()):
        assert text.encode("utf-8")
    assert any(r"caf\xe9/\xff2.png" in example for one in report.findings for example in one.examples)


def test_numbers_are_classes_in_the_order_of_text_and_said_so(root):
    source = open_source("imagefolder", str(put(root, *(f"{k}/a.png" for k in range(11)))))
    assert source.classes[2] == "10"
    (finding,) = [one for one in source.findings if one.severity == "warning"]
    assert finding.as_line().startswith("11 classes that are numbers, in the order of text (label 2 is 10, ...): name")
    shutil.rmtree(root)
    for names in ((f"{k:02d}" for k in range(11)), map(str, range(10)), ("1", "10", "2x")):
        assert not open_source("imagefolder", str(put(root, *(f"{name}/a.png" for name in names)))).findings
        shutil.rmtree(root)


def test_folders_inside_of_class_folders_are_said(root):
    source = open_source("imagefolder", str(put(root, "b/a.png", "b/x/a.png", "b/x/b.png", "c/y/z/a.png")))
    assert source.classes == ("b", "c")
    (finding,) = source.findings
    assert (finding.severity, finding.count) == ("note", 3)
    assert finding.examples == [f"{root}/b/x", f"{root}/c/y/z"]
    shutil.rmtree(root)
    with pytest.raises(UserError, match=r"or the folder images itself, if those in it are the classes$"):
        check_classes(open_source("imagefolder", str(put(root, "images/b/a.png", "images/c/a.png"))))


def test_a_file_in_place_of_the_folder_is_said_to_be_one(root):
    root.write_bytes(b"PK\3\4 and so on")
    with pytest.raises(UserError, match=r"set: is a zip archive; unpack it with unzip; looked for"):
        open_source("imagefolder", str(root))


def test_a_dead_link_beside_the_class_folders_is_said(root):
    put(root, "b/a.png", "c/a.png")
    (root / "v1.5").symlink_to("nowhere")
    source = open_source("imagefolder", str(root))
    assert said(source)["links that lead nowhere"].examples == [f"{root}/v1.5"]
