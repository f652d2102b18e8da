"""Tar shards, against tarfile."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from backbone.data import index, tar
from backbone.data.doctor import examine
from backbone.data.findings import Finding
from backbone.data.sources import Source, open_source, remarks
from backbone.errors import BadImage, UserError
from tests.backbone.data.making import (
    ALL,
    TRAIN,
    Member,
    forget,
    make_parquet,
    make_shards,
    make_tar,
    png,
    samples,
    values,
)


def content(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file
    return file.read()


def two_labels(one: int, other: int) -> list[Member]:
    return [("0.png", png(0)), ("0.cls", b"%d" % one), ("1.png", png(1)), ("1.cls", b"%d" % other)]


def said(source: Source) -> dict[str, Finding]:
    return {finding.what: finding for finding in source.findings}


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
    assert len(open_source("webdataset", f"{root}/{ALL}")) == 15
    (root / "set-val-000000.tar").rename(root / "set-train-000002.tar")
    assert len(open_source("webdataset", str(root))) == 15  # a directory is all its shards
    (root / "set-train-000002.tar").rename(root / "set-val-000000.tar")
    assert len(open_source("webdataset", f"{root}/set-val-000000.tar")) == 3


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
        (
            [("a.png", png(0)), ("a.cls", b"4294967295")],
            r"0\.tar:a\.cls: the label 4294967295 \(-1 kept as an unsigned",
        ),
        ([("a.png", png(0)), ("a.json", b'{"label": -1}')], r"0\.tar:a\.json: the label -1 is negative"),
        (
            [("a.png", png(0)), ("a.json", b'{"label": 1' + b"0" * 300 + b"}")],
            r"0\.tar:a\.json: the label 10{29} is out",
        ),
        ([("a.png", png(0)), ("a.cls", b"1" * 5000)], r"0\.tar:a\.cls: has 5000 bytes, too many for a label"),
        ([("a.png", png(0)), ("a.cls", "٣".encode())], r"0\.tar:a\.cls: the label '٣' is not an integer"),
        ([("a.png", png(0)), ("a.json", b"[" * 100_000)], r"0\.tar:a\.json: is no JSON"),
        (
            two_labels(0, 999_999),
            r"0\.tar:1\.png: has label 999999, but only 2 different labels are in use.*classes\.txt",
        ),
        (
            [("a.png", png(0)), ("a.cls", b"0"), ("a.cls", b"1")],
            r"a\.cls: says label 1, but a\.cls says 0; keep one",
        ),
        (
            [("a.heic", png(0)), ("a.cls", b"0")],
            r"a\.cls: has a label but no image; a\.heic is in a format that is not",
        ),
        (
            [("v.1.png", png(0)), ("v.2.png", png(0)), ("v.cls", b"0")],
            r"v\.cls: is the label of 2 images \(v\.1\.png, v",
        ),
        ([("v.1.png", png(0)), *two_labels(0, 1)], r"0\.tar:v\.1\.png: has no label; add v\.1\.cls"),
        ([("v.1.cls", b"0"), *two_labels(0, 1)], r"0\.tar:v\.1\.cls: has a label but no image; add v\.1\.jpg"),
        (
            [("v.1.png", png(0)), ("v.1.jpg", png(0)), ("v.1.cls", b"0")],
            r"v\.1\.jpg: v\.1\.png is an image of the same key",
        ),
        ([("notes.txt", b"a"), ("b.csv", b"c")], r"no key\.jpg with key\.cls in 0\.tar.*hold 1 of \.txt, 1 of \.csv"),
        ([("a.png", png(0))], r"0\.tar:a\.png: has no label; add a\.cls"),
        ([("a.cls", b"0")], r"0\.tar:a\.cls: has a label but no image; add a\.jpg"),
        ([("a.png", png(0)), ("a.cls", b"cat")], r"0\.tar:a\.cls: the label 'cat' is not an integer .* classes\.txt"),
        ([("a.png", png(0)), ("a.cls", b"-1")], r"0\.tar:a\.cls: the label -1 is negative"),
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
        with pytest.raises(UserError, match=r"0\.tar: is cut off" if cut else r"0\.tar: is empty; fetch it again"):
            open_source("webdataset", str(tmp_path))
    damaged = bytearray(whole)
    damaged[third.offset : third.offset + 20] = b"\xff" * 20
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"0\.tar: is cut off, damaged"):
        open_source("webdataset", str(tmp_path))
    with tarfile.open(path, "w:gz") as archive:
        archive.add(__file__, "x.py")
    with pytest.raises(UserError, match=r"0\.tar: is compressed by gzip; unpack it with gunzip"):
        open_source("webdataset", str(tmp_path))
    path.write_bytes(whole[: end + 512])
    assert len(open_source("webdataset", str(tmp_path))) == 5


def test_shard_shortened_after_indexing_is_a_bad_image(tmp_path):
    path = make_tar(tmp_path / "0.tar", samples(range(5)))
    source = open_source("webdataset", str(tmp_path))
    os.truncate(path, int(index.map_arrays(next(tmp_path.glob("*.index")))["starts"][3]) + 10)
    assert source.image(2)[0, 0, 0] == 2
    with pytest.raises(BadImage, match=r"0\.tar:n0/img_3\.png: has 10 bytes"):
        source.image(3)


def test_json_beside_cls_is_not_needed_and_said_where_it_contradicts(tmp_path):
    members = [
        *two_labels(0, 1),
        ("0.json", b'{"label": 1}'),
        ("1.json", b'{"label": 1, "text": "agrees"}'),
        ("2.json", b'{"label": "a dog"}'),
        ("2.png", png(2)),
        ("2.cls", b"1"),
        ("3.png", png(3)),
        ("3.json", b"no JSON"),
        ("3.cls", b"0"),
    ]
    make_tar(tmp_path / "0.tar", members)
    source = open_source("webdataset", str(tmp_path / "0.tar"))
    assert source.labels.tolist() == [0, 1, 1, 0]
    (finding,) = source.findings
    assert (finding.what, finding.severity) == ("labels in .json that .cls contradicts", "warning")
    assert finding.examples == [f"{tmp_path}/0.tar:0.json says 1, not 0"]


def test_names_with_dots_are_read_where_one_reading_makes_sense(tmp_path):
    """WebDataset's rule makes `n/photo.2.png` of key `n/photo`, with the suffix `2.png`, which is no image's."""
    members = [
        *two_labels(0, 1),
        ("n/photo.2.png", png(2)),
        ("n/photo.2.cls", b"0"),
        ("n/photo.3.PNG", png(3)),
        ("n/photo.3.json", b'{"label": 1}'),
        ("only.large.jpg", png(4)),  # one image, one label, one key
        ("only.cls", b"1"),
        ("v1.0/a.png", png(5)),  # a dot of a folder is none of the file's
        ("v1.0/a.cls", b"0"),
        ("1.mask.png", png(99)),
        ("1.mask.cls", b"7"),
    ]
    make_tar(tmp_path / "0.tar", members[:-1])
    source = open_source("webdataset", str(tmp_path))
    assert [values(source), source.labels.tolist()] == [[0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 1, 0]]
    found = said(source)
    assert found["names with dots, read whole"].examples == [
        f"{tmp_path}/0.tar:{name}" for name in ("n/photo.2.png", "n/photo.3.PNG", "only.large.jpg")
    ]
    assert found["further images of a key"].examples == [f"{tmp_path}/0.tar:1.mask.png"]
    assert found["names with dots, read whole"].count == 3
    make_tar(tmp_path / "0.tar", members)  # now the mask has a label of its own
    assert values(open_source("webdataset", str(tmp_path))) == [0, 1, 2, 3, 4, 5, 99]


def test_whatever_is_not_read_is_counted_and_named_also_from_the_index(tmp_path, monkeypatch):
    members = [
        *two_labels(0, 1),
        ("a.heic", b"x"),
        ("b.txt", b"x"),
        ("c.txt", b"x"),
        ("._0.png", b"x"),
        ("1.cap.json", b"{}"),
    ]
    make_tar(tmp_path / "set" / "0.tar", members)
    make_tar(tmp_path / "set" / "1.tar", [])
    for name in ("more.tar.gz", "notes.md", ".hidden", "0.tar.json", "index.json"):
        (tmp_path / "set" / name).write_bytes(b"x")
    (tmp_path / "set" / "old").mkdir()
    expected = {
        "images in formats that are not read": 1,
        "members that are neither image nor label": 3,
        "hidden members": 1,
        "shards without images": 1,
        "packed .tar files that are not read": 1,
        "files other than .tar, not read": 1,
        "hidden files that are not read": 1,
        "folders that are not looked into": 1,
    }
    for again in (False, True):
        if again:
            monkeypatch.setattr(tar, "scan_shard", forget)
        source = open_source("webdataset", str(tmp_path / "set"))
        assert {what: finding.count for what, finding in said(source).items()} == expected
        assert len(remarks(source)) == len(expected)
    report = examine("webdataset", str(tmp_path / "set"), check_images=False)
    assert expected.items() <= {finding.what: finding.count for finding in report.findings}.items()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "is a Git LFS pointer .*run git lfs pull",
        ),
        (b"", "is empty; fetch it again"),
        (b"<!DOCTYPE html><html>Sign in</html>", "is a web page"),
        (b'{"error": "Forbidden"}', "is JSON; remove it, or put the right file"),
        (b"path,label\na.jpg,0\n", "is text, such as CSV"),
        (png(0), "is a PNG"),
        (b"PAR1....PAR1", "is a Parquet file; name it with source parquet"),
        (b"\x28\xb5\x2f\xfd123", "is compressed by Zstandard; unpack it with unzstd"),
        (b"\0" * 400, "begins with zeros"),
        (bytes(range(200)) * 9, "is cut off,? (or )?damaged, or no "),
    ],
    ids=["lfs", "empty", "html", "json", "csv", "png", "parquet", "zstd", "zeros", "rubbish"],
)
@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_what_is_no_tar_and_no_parquet_is_said_for_what_it_is(tmp_path, kind, data, what):
    if kind == "webdataset":
        make_tar(tmp_path / "0.tar", two_labels(0, 1))
    else:
        make_parquet(tmp_path / "0.parquet", range(3))
        if data.startswith(b"PAR1"):
            what = "is cut off or damaged"
    path = tmp_path / {"webdataset": "1.tar", "parquet": "1.parquet"}[kind]
    path.write_bytes(data)
    for read in (open_source, examine):
        with pytest.raises(UserError, match=f"^{path}: {what}"):
            read(kind, str(tmp_path))
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(UserError, match=f"{path} is a link that leads nowhere"):
        open_source(kind, str(tmp_path))


def test_tars_with_more_after_their_end_are_refused(tmp_path):
    one = make_tar(tmp_path / "0.tar", two_labels(0, 1)).read_bytes()
    (tmp_path / "0.tar").write_bytes(one + bytes(100_000))  # padding is none
    assert len(open_source("webdataset", str(tmp_path))) == 2
    for data in (one + one, one + bytes(2 << 20), bytes(2 << 20)):  # joined by cat; preallocated and never written
        (tmp_path / "0.tar").write_bytes(data)
        with pytest.raises(UserError, match=r"0\.tar: (is cut off, damaged.*it ends at byte|begins with zeros)"):
            open_source("webdataset", str(tmp_path))


def test_links_inside_a_tar_are_named(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name, data in two_labels(0, 1):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        entry = tarfile.TarInfo("2.png")
        entry.type, entry.linkname = tarfile.LNKTYPE, "1.png"
        archive.addfile(entry)
    with pytest.raises(
        UserError, match=r"0\.tar:2\.png: is a link, .*; pack it again with tar --dereference --hard-dere"
    ):
        open_source("webdataset", str(tmp_path))


def test_headers_that_would_go_in_circles_or_fill_memory_are_damage(tmp_path):
    whole = make_tar(tmp_path / "0.tar", two_labels(0, 1)).read_bytes()

    def with_size(header: bytes, size: bytes) -> bytes:
        head = bytearray(header)
        head[124:136], head[148:156] = size, b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        return bytes(head)

    long = tarfile.TarInfo("long")
    long.type = tarfile.XHDTYPE
    for data in (
        with_size(whole[:512], b"\xff" * 11 + b"\0") + whole[512:],  # -256 bytes
        with_size(long.tobuf(), b"\xff" * 10 + b"\xfc\0") + whole,  # an extended header of -1024
        with_size(long.tobuf(), b"77777777777\0") + whole,  # one of 8 GB
    ):
        (tmp_path / "0.tar").write_bytes(data)
        with pytest.raises(UserError, match=r"0\.tar: is cut off, damaged"):
            open_source("webdataset", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"cat\n\ndog\n", r"classes\.txt: line 2 is empty"),
        (b"cat\ncat\n", r"classes\.txt: calls labels 0 and 1 'cat'"),
        (b"cat\nd\xf6g\n", r"classes\.txt: is not UTF-8"),
        (b"cat\n", r"classes\.txt: has 1 classes, but 0\.tar:1\.png has label 1"),
    ],
)
def test_class_names_are_checked_line_by_line(tmp_path, text, message):
    make_tar(tmp_path / "0.tar", two_labels(0, 1))
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n\r\n")
    assert open_source("webdataset", str(tmp_path)).classes == ("cat", "dog")
    (tmp_path / "classes.txt").write_bytes(text)
    with pytest.raises(UserError, match=message):
        open_source("webdataset", str(tmp_path))


def test_labels_without_names_may_have_gaps_within_reason(tmp_path):
    make_tar(tmp_path / "0.tar", two_labels(0, 255))
    source = open_source("webdataset", str(tmp_path))
    assert len(source.classes) == 256
    assert remarks(source)[0].startswith("254 classes without images (1, 2, 3, 4, 5, ...)")
