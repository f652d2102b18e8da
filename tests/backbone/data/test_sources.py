"""Sources, against torchvision, tarfile, pyarrow and PIL."""

import io
import json
import multiprocessing
import os
import pickle
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper
from PIL import Image

from backbone.data import folder, index, parquet, tar
from backbone.data.listing import expand_braces, list_files
from backbone.data.sources import Source, check_splits, open_source
from backbone.errors import BadImage, UserError

PICKLED = 1000  # bytes, at most


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "raybone"


def png(value: int, height: int = 4, width: int = 6) -> bytes:
    """An image that tells its number: constant in colour."""
    data = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(data, "PNG")
    return data.getvalue()


def values(source: Source) -> list[int]:
    return [int(source.image(i)[0, 0, 0]) for i in range(len(source))]


def forget(*_args, **_kwargs):
    raise AssertionError("scanned again")


# Image folders


def make_folder(root: Path) -> Path:
    names = ["b/2.png", "b/10.PNG", "b/sub/1.png", "b/sub-a/1.png", "a/z.png", "a/A.png", "c c/é.png", "c c/x.Jpeg"]
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(value))
    (root / "a" / "notes.txt").write_text("no image")
    (root / "README").write_text("no class")
    return root


def test_folder_has_torchvisions_order_and_labels(tmp_path):
    from torchvision.datasets import ImageFolder  # not above: spawned processes would import it too

    root = make_folder(tmp_path / "train")
    theirs = ImageFolder(root)
    ours = open_source("imagefolder", str(root))
    assert list(ours.classes) == theirs.classes
    assert [(ours.name(i), int(ours.labels[i])) for i in range(len(ours))] == theirs.samples
    assert ours.labels.dtype == np.int64
    for i, (image, _) in enumerate(theirs):
        assert (ours.image(i) == np.asarray(image)).all()


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
    with pytest.raises(UserError, match=r"holds the splits train, val.*give one"):
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


# Shards

Member = tuple[str, bytes]


def samples(numbers: range, keys: str = "n{label}/img_{i}") -> list[Member]:
    return [
        member
        for i in numbers
        for key in [keys.format(label=i % 3, i=i)]
        for member in ((f"{key}.png", png(i)), (f"{key}.cls", f"{i % 3}\n".encode()))
    ]


def make_tar(path: Path, members: list[Member]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def make_shards(root: Path) -> Path:
    make_tar(root / "set-train-000000.tar", samples(range(0, 7)))
    make_tar(root / "set-train-000001.tar", samples(range(7, 12)))
    make_tar(root / "set-val-000000.tar", samples(range(12, 15)))
    return root


TRAIN = "set-train-{000000..000001}.tar"


def test_shards_hold_what_tarfile_reads(tmp_path):
    root = make_shards(tmp_path / "data")
    source = open_source("webdataset", f"{root}/{TRAIN}")
    expected = []
    for shard in sorted(root.glob("*train*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive.getmembers():
                if member.name.endswith(".png"):
                    label = int(archive.extractfile(member.name.replace(".png", ".cls")).read())
                    image = np.asarray(Image.open(archive.extractfile(member)))
                    expected.append((f"{shard}:{member.name}", label, image))
    assert len(source) == len(expected) == 12
    for i, (name, label, image) in enumerate(expected):
        assert source.name(i) == name
        assert source.labels[i] == label
        assert (source.image(i) == image).all()
    assert source.classes == ("n0", "n1", "n2")


def test_shards_are_the_same_however_they_are_named(tmp_path, monkeypatch):
    root = make_shards(tmp_path / "data")
    prints = {open_source("webdataset", f"{root}/{TRAIN}").fingerprint}
    monkeypatch.setattr(tar, "scan_shard", forget)
    prints.add(open_source("webdataset", f"{root}/*train*.tar").fingerprint)
    monkeypatch.chdir(root)
    prints.add(open_source("webdataset", "set-train-00000?.tar").fingerprint)
    prints.add(open_source("webdataset", "./{set-train-000001,set-train-000000}.tar").fingerprint)
    assert len(prints) == 1
    monkeypatch.undo()
    assert len(open_source("webdataset", str(root))) == 15  # a directory is all its shards
    assert len(open_source("webdataset", f"{root}/set-val-000000.tar")) == 3


def test_index_is_made_once_and_renewed_when_a_shard_changes(tmp_path, monkeypatch):
    root = make_shards(tmp_path / "data")
    first = open_source("webdataset", f"{root}/{TRAIN}")
    open_source("webdataset", f"{root}/*val*.tar")  # its own index, in the same directory
    indices = sorted(root.glob("*.npz"))
    assert len(indices) == 2
    assert not list(root.glob("*.tmp"))
    with np.load(indices[0], allow_pickle=False) as arrays:  # an ordinary .npz to everyone else
        assert arrays["labels"].dtype == np.int64
    with monkeypatch.context() as patch:
        patch.setattr(tar, "scan_shard", forget)
        assert open_source("webdataset", f"{root}/{TRAIN}").fingerprint == first.fingerprint
        assert open_source("webdataset", f"{root}/*val*.tar").classes == ("n0", "n1", "n2")
    size = (root / "set-train-000001.tar").stat().st_size
    relabelled = [(name, b"0" if name.endswith("cls") else data) for name, data in samples(range(7, 12), "n0/img_{i}")]
    make_tar(root / "set-train-000001.tar", relabelled)
    assert (root / "set-train-000001.tar").stat().st_size == size  # tars are padded: sizes alone do not tell
    renewed = open_source("webdataset", f"{root}/{TRAIN}")
    assert renewed.labels[7:].tolist() == [0] * 5
    assert renewed.fingerprint != first.fingerprint
    assert sorted(root.glob("*.npz")) == indices  # replaced, not added
    with pytest.raises(UserError, match="changed while it was in use"):
        pickle.loads(pickle.dumps(first))


def test_damaged_index_is_made_again(tmp_path):
    root = make_shards(tmp_path / "data")
    expected = values(open_source("webdataset", f"{root}/{TRAIN}"))
    path = next(root.glob("*.npz"))
    for data in (b"", b"rubbish", path.read_bytes()[:-200]):
        path.write_bytes(data)
        assert values(open_source("webdataset", f"{root}/{TRAIN}")) == expected


def test_read_only_shards_are_indexed_in_the_cache(tmp_path, monkeypatch, cache):
    root = make_shards(tmp_path / "data")
    root.chmod(0o555)
    source = open_source("webdataset", f"{root}/{TRAIN}")
    monkeypatch.setattr(tar, "scan_shard", forget)
    assert open_source("webdataset", f"{root}/{TRAIN}").fingerprint == source.fingerprint
    monkeypatch.undo()
    root.chmod(0o755)
    assert not list(root.glob("*.npz"))


def test_read_only_mounts_are_indexed_in_the_cache(tmp_path, monkeypatch):
    root, chosen = make_shards(tmp_path / "data"), tmp_path / "chosen"
    write = index.write_arrays

    def on_mount(path, arrays):
        if path.is_relative_to(root):
            raise OSError(30, "Read-only file system")
        write(path, arrays)

    monkeypatch.setattr(index, "write_arrays", on_mount)
    source = open_source("webdataset", f"{root}/{TRAIN}", cache=str(chosen))
    assert values(source) == list(range(12))
    assert len(list(chosen.glob("*.npz"))) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Read-only file system.*file.*XDG_CACHE_HOME"):
        open_source("webdataset", f"{root}/*val*.tar", cache=str(tmp_path / "file"))
    with pytest.raises(UserError, match="must be a local directory"):
        open_source("webdataset", f"{root}/*val*.tar", cache="s3://bucket/cache")


def test_class_names(tmp_path):
    root = tmp_path
    make_tar(root / "1" / "0.tar", samples(range(6), "img_{i}"))
    assert open_source("webdataset", str(root / "1")).classes == ("0", "1", "2")
    make_tar(root / "2" / "0.tar", [("x/a.png", png(0)), ("x/a.cls", b"0"), ("x/b.png", png(1)), ("x/b.cls", b"1")])
    assert open_source("webdataset", str(root / "2")).classes == ("0", "1")  # a directory with two labels names none
    make_tar(
        root / "3" / "0.tar", [("cat/a.png", png(0)), ("cat/a.cls", b"2"), ("dog/b.png", png(1)), ("dog/b.cls", b"0")]
    )
    assert open_source("webdataset", str(root / "3")).classes == ("dog", "1", "cat")  # labels may have gaps
    (root / "3" / "classes.txt").write_text("a dog\na fox\na cat\nan owl\n")
    assert open_source("webdataset", str(root / "3")).classes == ("a dog", "a fox", "a cat", "an owl")
    (root / "3" / "classes.txt").write_text("a dog\na fox\n")
    with pytest.raises(UserError, match=r"classes\.txt: has 2 classes, but 0\.tar:cat/a\.png has label 2"):
        open_source("webdataset", str(root / "3"))


def test_labels_in_json_and_odd_members(tmp_path):
    make_tar(
        tmp_path / "0.tar",
        [
            ("./n/a.JPG", png(1)),
            ("./n/a.json", json.dumps({"label": 4, "width": 3}).encode()),
            ("n/b.b.seg.png", png(9)),  # key n/b has an image of its own; other suffixes are other people's
            ("n/b.json", json.dumps({"cls": 2}).encode()),
            ("n/b.webp", png(2)),
            ("n/" + "long" * 60 + ".jpeg", png(3)),
            ("n/" + "long" * 60 + ".cls", b" 7 "),
            ("._n", b"AppleDouble"),
            ("n/._a.jpg", b"AppleDouble"),
            ("n/c.json", json.dumps({"caption": "no label, no image"}).encode()),
            ("README.md", b"hello"),
        ],
    )
    source = open_source("webdataset", str(tmp_path))
    assert source.labels.tolist() == [4, 2, 7]
    assert values(source) == [1, 2, 3]
    assert len(source.classes) == 8


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", png(0))], r"0\.tar:a\.png: has no label; add a\.cls"),
        ([("a.cls", b"0")], r"0\.tar:a: has a label but no image"),
        ([("a.png", png(0)), ("a.cls", b"cat")], r"0\.tar:a\.cls: the label 'cat' is not an integer"),
        ([("a.png", png(0)), ("a.cls", b"-1")], r"0\.tar:a\.cls: the label '-1' is not an integer from 0"),
        ([("a.png", png(0)), ("a.json", b'{"label": 1.5}')], r"0\.tar:a\.json: the label 1\.5 is not"),
        ([("a.png", png(0)), ("a.json", b'{"label": true}')], r"0\.tar:a\.json: the label True is not"),
        ([("a.png", png(0)), ("a.json", b"{")], r"0\.tar:a\.json: is no JSON"),
        ([("a.png", png(0)), ("a.jpg", png(0)), ("a.cls", b"0")], r"0\.tar:a\.jpg: a\.png is an image of the same key"),
        ([("README", b"")], r"no key\.jpg with key\.cls in 0\.tar"),
    ],
)
def test_shard_errors_name_the_member(tmp_path, members, message):
    make_tar(tmp_path / "0.tar", members)
    with pytest.raises(UserError, match=message):
        open_source("webdataset", str(tmp_path))


def test_cut_off_and_damaged_shards_are_refused(tmp_path):
    path = make_tar(tmp_path / "0.tar", samples(range(5)))
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        last, third = archive.getmembers()[-1], archive.getmembers()[4]
    end = last.offset_data + 512
    cuts = {0, 100, 512, third.offset, third.offset + 100, third.offset_data + 10, last.offset_data, end}
    assert end + 1024 <= len(whole)
    for cut in cuts:  # also between members, where tarfile sees nothing amiss
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"0\.tar: is cut off"):
            open_source("webdataset", str(tmp_path))
    damaged = bytearray(whole)
    damaged[third.offset : third.offset + 20] = b"\xff" * 20
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"0\.tar: is cut off, damaged"):
        open_source("webdataset", str(tmp_path))
    with tarfile.open(path, "w:gz") as archive:
        archive.add(__file__, "x.py")
    with pytest.raises(UserError, match="no uncompressed tar"):
        open_source("webdataset", str(tmp_path))
    path.write_bytes(whole[: end + 512])
    assert len(open_source("webdataset", str(tmp_path))) == 5


def test_shard_shortened_after_indexing_is_a_bad_image(tmp_path):
    path = make_tar(tmp_path / "0.tar", samples(range(5)))
    source = open_source("webdataset", str(tmp_path))
    os.truncate(path, int(index.map_arrays(next(tmp_path.glob("*.npz")))["starts"][3]) + 10)
    assert source.image(2)[0, 0, 0] == 2
    with pytest.raises(BadImage, match=r"0\.tar:n0/img_3\.png: has 10 bytes"):
        source.image(3)


def test_missing_shards_are_named(tmp_path):
    root = make_shards(tmp_path / "data")
    with pytest.raises(UserError, match=r"there is no .*set-train-000002\.tar"):
        open_source("webdataset", f"{root}/set-train-{{000000..000003}}.tar")
    with pytest.raises(UserError, match=r"there is no .*test-\*\.tar"):
        open_source("webdataset", f"{root}/test-*.tar")
    with pytest.raises(UserError, match="no such file or directory"):
        open_source("webdataset", f"{root}/nothing.tar")
    with pytest.raises(UserError, match=r"no \*\.parquet in this directory"):
        open_source("parquet", str(root))


def test_braces_expand_as_in_a_shell():
    assert list(expand_braces("a{08..11}b")) == ["a08b", "a09b", "a10b", "a11b"]
    assert list(expand_braces("{1..3}")) == ["1", "2", "3"]
    assert list(expand_braces("{a,b}{0..1}.tar")) == ["a0.tar", "a1.tar", "b0.tar", "b1.tar"]
    assert list(expand_braces("plain.tar")) == ["plain.tar"]


def test_shards_in_several_directories(tmp_path):
    make_tar(tmp_path / "data" / "a" / "0.tar", samples(range(3)))
    make_tar(tmp_path / "data" / "b" / "0.tar", samples(range(3, 6)))
    source = open_source("webdataset", f"{tmp_path}/data/*/0.tar")
    assert values(source) == list(range(6))
    assert source.name(3) == f"{tmp_path}/data/b/0.tar:n0/img_3.png"


# Parquet


def make_parquet(path: Path, numbers: range, image: str = "image", label: str = "label", names=None, plain=False):
    data = [png(i) for i in numbers]
    kind = pa.binary() if plain else pa.struct([("path", pa.string()), ("bytes", pa.binary())])
    images = data if plain else [{"path": None, "bytes": one} for one in data]
    table = pa.table({image: pa.array(images, kind), label: pa.array([i % 3 for i in numbers], pa.int64())})
    if names:
        features = {label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=7)
    return path


@pytest.mark.parametrize("plain", [False, True])
def test_parquet_holds_what_pyarrow_reads(tmp_path, plain, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS", 4)  # several batches a row group
    make_parquet(tmp_path / "d" / "train-0.parquet", range(20), plain=plain)
    make_parquet(tmp_path / "d" / "train-1.parquet", range(20, 31), plain=plain)
    source = open_source("parquet", str(tmp_path / "d"))
    expected = [
        (f"{path}:row {row}", record["label"], record["image"] if plain else record["image"]["bytes"])
        for path in sorted((tmp_path / "d").iterdir())
        for row, record in enumerate(pq.read_table(path).to_pylist())
    ]
    assert len(source) == len(expected) == 31
    for i, (name, label, data) in enumerate(expected):
        assert source.name(i) == name
        assert source.labels[i] == label
        assert (source.image(i) == np.asarray(Image.open(io.BytesIO(data)))).all()
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["train-0.parquet", "train-1.parquet"]
    assert source.classes == ("0", "1", "2")


@pytest.mark.parametrize("label", ["label", "labels", "fine_label"])
def test_parquet_columns_and_class_names(tmp_path, label):
    make_parquet(tmp_path / "x.parquet", range(5), image="img", label=label, names=["cat", "dog", "eel", "fox"])
    source = open_source("parquet", str(tmp_path / "x.parquet"))
    assert source.classes == ("cat", "dog", "eel", "fox")
    assert source.labels.tolist() == [0, 1, 2, 0, 1]


def test_parquet_is_copied_once_and_renewed_when_it_changes(tmp_path, monkeypatch, cache):
    path = make_parquet(tmp_path / "d" / "x.parquet", range(5))
    first = open_source("parquet", str(path))
    with monkeypatch.context() as patch:
        patch.setattr(parquet, "_copy", forget)
        assert values(open_source("parquet", str(tmp_path / "d"))) == list(range(5))
    blob = next(cache.glob("*.bin"))
    os.truncate(blob, 10)
    assert values(open_source("parquet", str(path))) == list(range(5))
    make_parquet(path, range(5, 11))
    renewed = open_source("parquet", str(path))
    assert values(renewed) == list(range(5, 11))
    assert renewed.fingerprint != first.fingerprint
    assert list(cache.glob("*.bin")) == [blob]
    assert not list(cache.glob("*.tmp"))


def test_parquet_needs_room(tmp_path, monkeypatch, cache):
    path = make_parquet(tmp_path / "d" / "x.parquet", range(50))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(parquet.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=rf"need \d+ bytes in {cache}, which has 1000 free; .*XDG_CACHE_HOME"):
        open_source("parquet", str(path))
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))

    def full(*_):
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr(parquet, "_copy", full)
    with pytest.raises(UserError, match=r"need .* bytes in"):
        open_source("parquet", str(path))
    assert not list(cache.glob("*.tmp"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture": [b"x"], "label": [0]}, r"x\.parquet: has the columns picture, label; needs image or img"),
        ({"image": [b"x"]}, r"needs image or img, and label, labels or fine_label"),
        ({"image": [b"x"], "label": ["cat"]}, "column label is string; needs integers"),
        ({"image": ["x"], "label": [0]}, "column image is string; needs struct"),
        ({"image": [b"x", None], "label": [0, 0]}, r"x\.parquet:row 1: image holds no bytes"),
        ({"image": [{"bytes": b"x"}, {"bytes": None}], "label": [0, 0]}, r"row 1: image holds no bytes"),
        ({"image": [b"x", b"x"], "label": [0, None]}, r"row 1: label holds no label"),
        ({"image": [b"x", b"x"], "label": [0, -1]}, r"row 1: label is -1; this split has no labels"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "have no rows"),
    ],
)
def test_parquet_errors_name_the_row(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=message):
        open_source("parquet", str(tmp_path))


def test_bad_row_is_named(tmp_path):
    pq.write_table(pa.table({"image": [png(0), b"", b"<html>"], "label": [0, 0, 0]}), tmp_path / "x.parquet")
    source = open_source("parquet", str(tmp_path))
    assert source.image(0).shape == (4, 6, 3)
    for row, reason in ((1, "is empty"), (2, "not an image")):
        with pytest.raises(BadImage, match=rf"x\.parquet:row {row}: {reason}"):
            source.image(row)


# All of them


def make_all(root: Path) -> list[Source]:
    make_folder(root / "folder")
    make_shards(root / "shards")
    make_parquet(root / "parquet" / "x.parquet", range(9))
    kinds = [("imagefolder", "folder"), ("webdataset", "shards"), ("parquet", "parquet")]
    return [open_source(kind, str(root / name)) for kind, name in kinds]


def test_pickles_are_small_and_open_files_stay_behind(tmp_path):
    for source in make_all(tmp_path):
        expected = values(source)
        data = pickle.dumps(source)
        assert len(data) < PICKLED
        copy = pickle.loads(data)
        assert values(copy) == expected
        assert copy.fingerprint == source.fingerprint
        assert (copy.labels == source.labels).all()
        assert copy.labels.flags.aligned


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same(tmp_path, method):
    sources = make_all(tmp_path)
    expected = [values(source) for source in sources]  # files are open by now
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(values, sources) == expected
    assert [values(source) for source in sources] == expected


def test_threads_share_a_source(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "MAX_OPEN", 2)  # the third shard is opened for each read
    for source in make_all(tmp_path):
        expected = values(source)
        with ThreadPoolExecutor(8) as pool:
            for got in pool.map(lambda _, source=source: values(source), range(16)):
                assert got == expected


def test_arrays_are_mapped_not_copied(tmp_path):
    arrays = {"a": np.arange(5), "b": np.zeros((0, 3), np.float32), "c": np.ones((2, 3), np.int32)}
    index.write_arrays(tmp_path / "x.npz", arrays)
    mapped = index.map_arrays(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as loaded:
        for key, array in arrays.items():
            assert mapped[key].dtype == loaded[key].dtype == array.dtype
            assert mapped[key].shape == loaded[key].shape == array.shape
            assert (mapped[key] == array).all()
            assert (loaded[key] == array).all()
    assert isinstance(mapped["a"].base, np.memmap)
    assert mapped["a"].ctypes.data % 64 == 0


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def test_remote_sources_equal_local_ones(tmp_path, memory, cache):
    local = make_all(tmp_path)
    memory.put(f"{tmp_path}/", "/data/", recursive=True)
    for path in memory.find("/data"):
        if "raybone-index" in path or "/cache/" in path:
            memory.rm(path)
    folder_, shards, rows = (
        open_source(kind, f"memory://data/{name}")
        for kind, name in (("imagefolder", "folder"), ("webdataset", "shards"), ("parquet", "parquet"))
    )
    for ours, theirs in zip((folder_, shards, rows), local, strict=True):
        assert ours.fingerprint == theirs.fingerprint
        assert ours.classes == theirs.classes
        assert (ours.labels == theirs.labels).all()
        assert values(ours) == values(theirs)
        assert values(pickle.loads(pickle.dumps(ours))) == values(theirs)
    assert folder_.name(0).startswith("memory://")
    assert len(list(cache.glob("webdataset-*.npz"))) == 1
    braces = open_source("webdataset", f"memory://data/shards/{TRAIN}")
    assert values(braces) == list(range(12))
    assert values(open_source("webdataset", "memory://data/shards/*val*.tar")) == [12, 13, 14]
    memory.rm("/data/folder/a/A.png")
    with pytest.raises(BadImage, match=r"memory://.*a/A\.png"):
        folder_.image(0)
    with pytest.raises(UserError, match="no such file or directory"):
        open_source("webdataset", "memory://data/nowhere")


def test_pyarrow_file_systems_work(tmp_path, monkeypatch):
    """What S3 and GCS go through; here over the local disk."""
    from pyarrow.fs import LocalFileSystem

    expected = values(open_source("webdataset", str(make_shards(tmp_path / "shards"))))
    next((tmp_path / "shards").glob("*.npz")).unlink()
    make_parquet(tmp_path / "parquet" / "x.parquet", range(9))
    make_folder(tmp_path / "folder")
    fs = ArrowFSWrapper(LocalFileSystem())
    for module in ("listing", "folder", "tar", "parquet", "index"):
        monkeypatch.setattr(f"backbone.data.{module}.filesystem", lambda url: (fs, str(url)))
    index._filesystem.cache_clear()
    assert values(open_source("webdataset", f"{tmp_path}/shards")) == expected
    assert not list((tmp_path / "shards").glob("*.npz"))  # taken for remote
    assert values(open_source("webdataset", f"{tmp_path}/shards/{TRAIN}")) == list(range(12))
    assert values(open_source("parquet", f"{tmp_path}/parquet")) == list(range(9))
    assert sorted(values(open_source("imagefolder", f"{tmp_path}/folder"))) == list(range(8))
    index._filesystem.cache_clear()


def test_query_of_an_object_store_goes_to_the_file_system(monkeypatch):
    asked = []

    def filesystem(url):
        asked.append(url)
        raise UserError("stop")

    monkeypatch.setattr("backbone.data.listing.filesystem", filesystem)
    with pytest.raises(UserError, match="stop"):
        list_files("s3://bucket/dir/x-{0..9}.tar?endpoint_override=localhost:9000", ".tar")
    assert asked == ["s3://bucket/dir?endpoint_override=localhost:9000"]


def test_splits_must_have_the_same_classes(tmp_path):
    train = open_source("imagefolder", str(make_folder(tmp_path / "train")))
    val = open_source("imagefolder", str(make_folder(tmp_path / "val")))
    check_splits(train, val)
    (tmp_path / "val" / "a").rename(tmp_path / "val" / "aa")
    val = open_source("imagefolder", str(tmp_path / "val"))
    with pytest.raises(UserError, match=r"only in train: a; only in val: aa"):
        check_splits(train, val)
    val.classes = ("b", "a", "c c")
    with pytest.raises(UserError, match="label 0 is a in train, but b in val"):
        check_splits(train, val)


def test_folder_is_shared_through_the_cache(tmp_path, cache):
    make_folder(tmp_path / "train")
    open_source("imagefolder", str(tmp_path / "train"))
    before = next(cache.glob("imagefolder-*.npz")).stat().st_mtime_ns
    open_source("imagefolder", str(tmp_path / "train"))
    assert [path.stat().st_mtime_ns for path in cache.glob("imagefolder-*.npz")] == [before]
    assert folder.SUFFIXES[0] == ".jpg"
