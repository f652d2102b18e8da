"""Tar shards, against tarfile."""

import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from backbone.data import index, tar
from backbone.data.listing import expand_braces, list_files
from backbone.data.sources import open_source
from backbone.errors import BadImage, UserError
from tests.backbone.data.making import TRAIN, forget, make_shards, make_tar, png, samples, values


def content(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file
    return file.read()


def test_shards_hold_what_tarfile_reads(tmp_path):
    root = make_shards(tmp_path / "data")
    source = open_source("webdataset", f"{root}/{TRAIN}")
    expected = []
    for shard in sorted(root.glob("*train*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive.getmembers():
                if member.name.endswith(".png"):
                    label = int(content(archive, member.name.replace(".png", ".cls")))
                    image = np.asarray(Image.open(io.BytesIO(content(archive, member.name))))
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


def test_query_of_an_object_store_goes_to_the_file_system(monkeypatch):
    asked = []

    def filesystem(url):
        asked.append(url)
        raise UserError("stop")

    monkeypatch.setattr("backbone.data.listing.filesystem", filesystem)
    with pytest.raises(UserError, match="stop"):
        list_files("s3://bucket/dir/x-{0..9}.tar?endpoint_override=localhost:9000", ".tar")
    assert asked == ["s3://bucket/dir?endpoint_override=localhost:9000"]
