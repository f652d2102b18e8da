"""Prepared shards: the images of the source, each once; the same bytes however they came about."""

import errno
import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backbone.data.prepare import prepare as module
from backbone.data.prepare import shards
from backbone.data.prepare.options import Prepare
from backbone.data.prepare.pack import reduce
from backbone.data.prepare.prepare import Prepared, prepare
from backbone.data.sources import open_source
from backbone.data.stream import order
from backbone.errors import UserError
from backbone.training import pretrain
from backbone.training.ray_train import launch
from tests.backbone.data.making import ALL, forget, make_folder, make_parquet, make_shards
from tests.backbone.data.pictures import PHOTO, encode, smooth
from tests.backbone.data.test_ilsvrc import make_train


def run(tmp_path: Path, **options: Any) -> Prepared:
    given = {"output": str(tmp_path / "out"), "num_workers": 0, "images_per_shard": 3, **options}
    if given.get("source") != "synthetic":
        given.setdefault("images", str(tmp_path / "in"))
    return prepare(Prepare(**given), lambda _: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def photos(root: Path, count: int = 8) -> Path:
    for i in range(count):
        path = root / "ab"[i % 2] / f"photo.{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(Image.fromarray(smooth(40 + i, 60)), "JPEG"))
    return root


@pytest.mark.parametrize("format", ["jpeg", "raw"])
@pytest.mark.parametrize("source", ["imagefolder", "webdataset", "parquet", "ilsvrc", "synthetic"])
def test_shards_hold_each_image_of_any_source_once(tmp_path, source, format):
    if source == "synthetic":
        run(tmp_path, source=source, num_images=8, size=32, seed=5, format=format)
        options = Prepare(source="synthetic", num_images=8, size=32, seed=5, output="x")
    else:
        makers: dict[str, Any] = {
            "imagefolder": make_folder,
            "webdataset": make_shards,
            "parquet": lambda path: make_parquet(path / "0.parquet", range(8)),
            "ilsvrc": make_train,
        }
        made = makers[source](tmp_path / "in")
        images = str(made) if source == "ilsvrc" else str(tmp_path / "in")
        images += f"/{ALL}" if source == "webdataset" else ""
        run(tmp_path, source=source, images=images, format=format)
        options = Prepare(source=source, images=images, output="x")
    origin = module.open_options(options)
    prepared = open_source("webdataset", str(tmp_path / "out"))
    assert prepared.classes == origin.classes
    numbers = [int(prepared.name(i).partition(".tar:")[2][:8]) for i in range(len(prepared))]
    assert sorted(numbers) == list(range(len(origin)))
    assert numbers != sorted(numbers)
    for i, number in enumerate(numbers):
        assert prepared.labels[i] == origin.labels[number]
        if source != "synthetic" or format == "raw":
            assert (prepared.image(i) == origin.image(number)).all()
        else:
            assert np.abs(prepared.image(i).astype(int) - origin.image(number)).mean() < 12


def test_index_says_what_is_there(tmp_path):
    photos(tmp_path / "in")
    done = run(tmp_path, shorter_side=42, format="raw", seed=3)
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert (done.images, done.shards, done.skipped) == (8, 3, [])
    assert done.changes == {"reduced": {"count": 5, "examples": []}}
    assert index["plan"]["source"]["fingerprint"] == open_source("imagefolder", str(tmp_path / "in")).fingerprint
    assert index["plan"]["options"]["shorter_side"] == 42
    assert index["classes"] == [{"name": "a", "images": 4}, {"name": "b", "images": 4}]
    assert [one["images"] for one in index["shards"]] == [3, 3, 2]
    for one in index["shards"]:
        data = (tmp_path / "out" / one["name"]).read_bytes()
        assert (shards.hashlib.sha256(data).hexdigest(), len(data)) == (one["sha256"], one["bytes"])
        with tarfile.open(tmp_path / "out" / one["name"]) as archive:
            assert {(member.mtime, member.uid, member.uname) for member in archive.getmembers()} == {(0, 0, "")}
    assert not (tmp_path / "out/preparing.json").exists()
    prepared = open_source("webdataset", str(tmp_path / "out"))
    shapes = sorted(prepared.image(i).shape[0] for i in range(8))
    assert shapes == [40, 41, 42, 42, 42, 42, 42, 42]
    origin = open_source("imagefolder", str(tmp_path / "in"))
    assert (prepared.image(0) == reduce(origin.image(int(prepared.name(0).partition(":")[2][:8])), 42)).all()


def test_stopping_anywhere_and_going_on_gives_the_same_bytes(tmp_path, monkeypatch):
    photos(tmp_path / "in")
    run(tmp_path, shorter_side=30)
    whole = contents(tmp_path / "out")
    make = shards.pack
    for stop in range(8):
        folder = str(tmp_path / f"out{stop}")
        count = iter(range(100))

        def stopping(*words, count=count, stop=stop):
            if next(count) == stop:
                raise KeyboardInterrupt
            return make(*words)

        with monkeypatch.context() as patch:
            patch.setattr(shards, "pack", stopping)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path, shorter_side=30, output=folder)
        if stop >= 3:
            with pytest.raises(UserError, match=r"is not finished; run jobs/prepare\.py again"):
                open_source("webdataset", folder)
        # What a process leaves that has no time to clean up.
        Path(folder, "shard-000001.tar.0123.tmp").write_bytes(b"half")
        run(tmp_path, shorter_side=30, output=folder)
        assert contents(Path(folder)) == whole
    assert len(open_source("webdataset", str(tmp_path / "out7"))) == 8


def test_finished_shards_are_verified_and_not_made_again(tmp_path, monkeypatch):
    photos(tmp_path / "in")
    run(tmp_path)
    whole = contents(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(shards, "pack", forget)
        run(tmp_path)
    assert contents(tmp_path / "out") == whole
    damaged = bytearray(whole["shard-000001.tar"])
    damaged[700] ^= 1
    for data in (bytes(damaged), whole["shard-000001.tar"][:-1], b""):
        (tmp_path / "out/shard-000001.tar").write_bytes(data)
        run(tmp_path)
        assert contents(tmp_path / "out") == whole
    (tmp_path / "out/shard-000000.tar.json").write_text("{")
    (tmp_path / "out/shard-000002.tar").unlink()
    run(tmp_path)
    assert contents(tmp_path / "out") == whole


def test_other_options_are_refused_with_the_difference(tmp_path):
    photos(tmp_path / "in")
    run(tmp_path)
    with pytest.raises(
        UserError, match=r"out: holds shards made otherwise.*quality: 90 there, 80 now; seed: 0 there, 1"
    ):
        run(tmp_path, quality=80, seed=1)
    photos(tmp_path / "in", 9)
    with pytest.raises(UserError, match=r"source fingerprint: .*; source images: 8 there, 9 now"):
        run(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"other: holds mine\.tar, which is not of this job"):
        run(tmp_path, output=str(tmp_path / "other"))
    (tmp_path / "out/index.json").write_text("{}")
    with pytest.raises(UserError, match=r"index\.json: is damaged"):
        run(tmp_path)


def plant(root: Path) -> None:
    (root / "a/photo.0.jpg").write_bytes((root / "a/photo.0.jpg").read_bytes()[:500])
    (root / "b/photo.1.jpg").write_bytes(b"<html>")
    (root / "a/photo.2.jpg").write_bytes(encode(PHOTO.convert("CMYK"), "JPEG", quality=95))
    exif = Image.Exif()
    exif[0x112] = 6
    (root / "b/photo.3.jpg").write_bytes(encode(PHOTO, "JPEG", exif=exif))


def test_what_the_reader_leaves_out_is_said_and_reported(tmp_path):
    (photos(tmp_path / "in") / "a" / "more.heic").write_bytes(b"x")
    said: list[str] = []
    prepare(Prepare(output=str(tmp_path / "out"), images=str(tmp_path / "in"), num_workers=0), said.append)
    (line,) = json.loads((tmp_path / "out/report.json").read_text())["remarks"]
    assert said[0] == f"imagefolder: {line}"
    assert line.startswith(f"1 images in formats that are not read ({tmp_path}/in/a/more.heic): ")


def test_damaged_images_stop_or_are_left_out_and_reported(tmp_path):
    plant(photos(tmp_path / "in"))
    with pytest.raises(UserError, match=r"in/./photo\.[01]\.jpg: .*; mend or remove it, or leave it out with --on_bad"):
        run(tmp_path)
    done = run(tmp_path, on_bad="skip")  # another policy is no other content
    assert (done.images, len(done.skipped)) == (6, 2)
    assert any("a/photo.0.jpg: " in one for one in done.skipped)
    assert any("b/photo.1.jpg: not an image: it is a web page" in one for one in done.skipped)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["skipped"] == done.skipped
    assert report["changes"]["CMYK colours"] == {"count": 1, "examples": [f"{tmp_path}/in/a/photo.2.jpg"]}
    assert report["changes"]["an EXIF orientation"] == {"count": 1, "examples": [f"{tmp_path}/in/b/photo.3.jpg"]}
    assert report["changes"]["bytes kept"]["count"] == 4
    assert "       1  CMYK colours: " in done.as_text()
    assert "       2  skipped\n" in done.as_text()
    assert len(open_source("webdataset", str(tmp_path / "out"))) == 6
    assert run(tmp_path) == done  # verifying what was agreed to is no second judgement
    with pytest.raises(UserError, match=r"more than max_bad 1 bad images: .*photo"):
        run(tmp_path, on_bad="skip", max_bad=1, output=str(tmp_path / "few"))


def test_converted_images_have_the_pixels_training_would_see(tmp_path):
    plant(photos(tmp_path / "in"))
    run(tmp_path, on_bad="skip", format="raw")
    prepared, origin = (
        open_source("webdataset", str(tmp_path / "out")),
        open_source("imagefolder", str(tmp_path / "in")),
    )
    for i in range(len(prepared)):
        assert (prepared.image(i) == origin.image(int(prepared.name(i).partition(":")[2][:8]))).all()


def test_storage_that_fails_is_not_a_bad_image(tmp_path, monkeypatch):
    photos(tmp_path / "in")

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("backbone.data.index.IndexedSource._read", fail)
        with pytest.raises(UserError, match=r"photo.*Input/output error; what storage does not give is never skipped"):
            run(tmp_path, on_bad="skip")
    assert run(tmp_path, on_bad="skip").images == 8


def test_a_full_disk_leaves_what_is_done(tmp_path, monkeypatch):
    photos(tmp_path / "in")
    run(tmp_path, output=str(tmp_path / "whole"))
    room = [12_000]

    class Full(shards.Writer):
        def write(self, data: bytes) -> int:
            room[0] -= len(data)
            if room[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    first = (tmp_path / "whole/shard-000000.tar").stat().st_size
    room = [first + 1000]
    with monkeypatch.context() as patch:
        patch.setattr(shards, "Writer", Full)
        with pytest.raises(UserError, match=r"out: is full, \d+ MB free; make room and run the same again"):
            run(tmp_path)
    there = contents(tmp_path / "out")
    assert set(there) == {"preparing.json", "shard-000000.tar", "shard-000000.tar.json"}
    run(tmp_path)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_outputs_that_cannot_be_written_are_named(tmp_path):
    photos(tmp_path / "in")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/x: cannot be written \(Not a directory\)"):
        run(tmp_path, output=str(tmp_path / "file/x"))


def test_shards_go_to_urls(tmp_path):
    photos(tmp_path / "in")
    run(tmp_path)
    run(tmp_path, output="memory://prepared/train")
    assert len(open_source("webdataset", "memory://prepared/train")) == 8
    fs, path = shards.filesystem("memory://prepared/train")
    for name, data in contents(tmp_path / "out").items():
        assert fs.cat_file(f"{path}/{name}") == data
    assert run(tmp_path, output="memory://prepared/train").images == 8


def test_names_become_keys(tmp_path):
    image = io.BytesIO()
    PHOTO.save(image, "JPEG")
    for name in ("a/x.tar.gz.jpg", "a/é ü.jpg", "a/.b/x.jpg", f"a/{'long' * 50}.jpg", "b/…….jpg"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.getvalue())
    run(tmp_path, images_per_shard=10)
    with tarfile.open(tmp_path / "out/shard-000000.tar") as archive:
        names = archive.getnames()
    assert len(names) == 8
    assert all(name.isascii() and len(name) < 100 for name in names)


def test_class_names_that_are_no_line_are_refused(tmp_path):
    photos(tmp_path / "in")
    (tmp_path / "in/a").rename(tmp_path / "in/two\nlines")
    with pytest.raises(UserError, match=r"class name 'two\\nlines' does not fit a line of classes\.txt"):
        run(tmp_path)


def test_shards_train(tmp_path, tiny):
    for split, format in (("train", "raw"), ("val", "jpeg")):
        words = {"split": split, "format": format, "images_per_shard": 20}
        run(tmp_path, source="synthetic", num_images=40, size=32, output=str(tmp_path / split), **words)
    data = {"source": "webdataset", "train": str(tmp_path / "train"), "val": str(tmp_path / "val")}
    data |= {"train_images": 20_000, "val_images": 2_000}  # the defaults, which this source does not read
    recipe = tiny({f"data.{key}": value for key, value in data.items()} | {"schedule.total": 3})
    payload = pretrain.prepare(recipe)
    assert 0 <= launch(pretrain.pretrain, payload, recipe.scaling)["val_error"] <= 100
    assert Path(payload.url, "artifact/model.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "x"}, "output is empty"),
        ({"output": "x"}, "images is empty"),
        ({"output": "x", "images": "x", "source": "synthetic"}, "are not read by source synthetic"),
        ({"output": "x", "images": "x", "size": 64}, "size is read by source synthetic"),
        ({"output": "x", "images": "x", "format": "raw", "quality": 80}, "quality is read by format jpeg"),
        ({"output": "x", "images": "x", "max_bad": 3}, "max_bad is read with on_bad skip only"),
    ],
)
def test_options_that_nothing_reads_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Prepare(**options)


@pytest.mark.ray
def test_ray_makes_the_same_bytes(tmp_path, ray_cluster):
    plant(photos(tmp_path / "in", 20))
    run(tmp_path, on_bad="skip")
    done = run(tmp_path, on_bad="skip", output=str(tmp_path / "ray"), num_workers=3)
    assert contents(tmp_path / "ray") == contents(tmp_path / "out")
    assert len(done.skipped) == 2
    with pytest.raises(UserError, match=r"photo\.[01]\.jpg: .*mend or remove it"):
        run(tmp_path, output=str(tmp_path / "stopped"), num_workers=2)
    assert list((tmp_path / "stopped").glob("*.tar"))  # the others, under way, were finished
    run(tmp_path, on_bad="skip", output=str(tmp_path / "stopped"), num_workers=64)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "out")


def test_nodes_that_see_other_images_say_so(tmp_path):
    root = photos(tmp_path / "in")
    options = Prepare(images=str(root), output=str(tmp_path / "out"))
    source = module.open_options(options)
    pickled, fingerprint = pickle.dumps(source), source.fingerprint
    shared = (pickled, fingerprint, options.model_dump())
    assert module._task(shared, 0)[1] == f"{tmp_path}/out: not every node sees it; name a shared folder or a URL"
    (tmp_path / "out").mkdir()
    (tmp_path / "out/preparing.json").write_text("{}")
    for index in (tmp_path / "cache/raybone").glob("*.index"):
        shutil.rmtree(index)  # as on a machine other than the driver's
    assert module._reopened(pickled, fingerprint, options).fingerprint == fingerprint
    module._reopened.cache_clear()
    shutil.rmtree(next((tmp_path / "cache/raybone").glob("*.index")))
    (root / "a/photo.0.jpg").unlink()
    assert "nodes see different images there" in module._task(shared, 0)[1]


def test_the_order_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(shards, "order", lambda *what: made.append(what) or order(*what))
    options = Prepare(source="imagefolder", images="images", output="out", images_per_shard=10, seed=12345)
    found = [shards.samples_of(number, 100, options) for number in range(10)]
    assert sorted(sample for shard in found for sample in shard) == list(range(100))
    assert len(made) == 1
