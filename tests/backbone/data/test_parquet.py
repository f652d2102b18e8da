"""Parquet, against pyarrow."""

import io
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from backbone.data import parquet
from backbone.data.findings import Finding
from backbone.data.sources import Source, open_source
from backbone.errors import BadImage, UserError
from tests.backbone.data.making import forget, make_parquet, png, values


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
        ({"image": [b"x", b"x"], "label": [0, -1]}, r"x\.parquet:row 1: the label -1 is negative"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "have no rows"),
        (
            {"image": [b"x", b"x"], "label": pa.array([0, 2**32 - 1], pa.uint32())},
            r"row 1: the label 4294967295 \(-1 kept",
        ),
        ({"image": [b"x"], "label": pa.array([2**64 - 1], pa.uint64())}, r"row 0: the label 18446744073709551615 \(-1"),
        ({"image": [b"x"], "label": [2_000_000_000]}, r"row 0: the label 2000000000 is out of range"),
        (
            {"image": [b"x", b"x"], "label": [0, 999_999]},
            r"row 1: has label 999999, but only 2 different labels are in use",
        ),
        ({"image": [b"x"], "label": [0.0]}, "column label is double; needs integers"),
        ({"image": [b"x"], "label": ["cat"]}, r"class_encode_column\('label'\) makes of names"),
        ({"image": [b"x"], "label": [[0]]}, "column label is list"),
        ({"image": [b"x"], "label": [True]}, "column label is bool"),
        ({"image": [[1, 2]], "label": [0]}, "column image is list"),
        (
            {"image": [{"bytes": b"x"}, {"bytes": None, "path": "/home/me/a.jpg"}], "label": [0, 0]},
            r"but a path, /home/me/a\.jpg: such files",
        ),
        (
            {"image": [None, {"bytes": b"x", "path": None}], "label": [0, 0]},
            r"row 0: image holds no bytes; fill or remove",
        ),
    ],
)
def test_parquet_errors_name_the_row(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=message):
        open_source("parquet", str(tmp_path))


def said(source: Source) -> dict[str, Finding]:
    return {finding.what: finding for finding in source.findings}


def test_class_names_of_all_files_must_be_one_list(tmp_path):
    make_parquet(tmp_path / "0.parquet", range(6), names=["cat", "dog", "eel"])
    other = tmp_path / "1.parquet"
    make_parquet(other, range(6, 9), names=["dog", "cat", "eel"])
    with pytest.raises(
        UserError, match=r"1\.parquet: calls label 0 'dog', but 0\.parquet calls it 'cat': the same cla"
    ):
        open_source("parquet", str(tmp_path))
    make_parquet(other, range(6, 9), names=["cat", "dog", "eel", "fox"])
    with pytest.raises(UserError, match=r"1\.parquet: names 4 classes, but 0\.parquet names 3"):
        open_source("parquet", str(tmp_path))
    make_parquet(other, range(6, 9))  # none
    source = open_source("parquet", str(tmp_path))
    assert source.classes == ("cat", "dog", "eel")
    finding = said(source)["files that name no classes, beside some that do"]
    assert (finding.severity, finding.examples) == ("warning", [str(other)])
    make_parquet(other, range(6, 9), names=["cat", "dog", "eel"])
    assert not open_source("parquet", f"{tmp_path}/*.parquet").findings


@pytest.mark.parametrize(
    "metadata",
    [
        b"not JSON",
        b"[]",
        b"null",
        b'{"info": null}',
        b'{"info": {"features": null}}',
        b'{"info": {"features": {"label": {"dtype": "int64", "_type": "Value"}}}}',
        b'{"info": {"features": {"label": {"names": null, "_type": "ClassLabel"}}}}',
        b'{"info": {"features": {"label": {"names": {"0": "cat"}}}}}',
        b'{"info": {"features": {"label": {"names": []}}}}',
        b'{"info": {"features": ' + b"[" * 100_000,
    ],
    ids=lambda data: data[:70].decode(),
)
def test_metadata_without_names_leave_numbers_and_are_said(tmp_path, metadata):
    path = make_parquet(tmp_path / "x.parquet", range(3))
    pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": metadata}), path)
    source = open_source("parquet", str(tmp_path))
    assert source.classes == ("0", "1", "2")
    assert list(said(source)) == ["files whose metadata name no classes"]


def test_names_given_twice_are_refused(tmp_path):
    make_parquet(tmp_path / "x.parquet", range(3), names=["crane", "dog", "crane"])
    with pytest.raises(UserError, match="the schema: calls labels 0 and 2 'crane'"):
        open_source("parquet", str(tmp_path))


def test_files_of_different_forms(tmp_path):
    """How images are stored may differ; which column is the label may not."""
    make_parquet(tmp_path / "0.parquet", range(3))
    make_parquet(tmp_path / "1.parquet", range(3, 6), plain=True)
    wide = pa.table({"label": pa.array([2], pa.uint8()), "image": pa.array([png(6)], pa.large_binary()), "id": [7]})
    pq.write_table(wide, tmp_path / "2.parquet")
    pq.write_table(wide.slice(0, 0), tmp_path / "3.parquet")
    source = open_source("parquet", str(tmp_path))
    assert values(source) == list(range(7))
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2, 2]
    assert said(source)["columns that are not read"].examples == ["id"]
    assert said(source)["files without rows"].examples == [f"{tmp_path}/3.parquet"]
    for change in ({"label": "fine_label"}, {"image": "img"}):
        make_parquet(tmp_path / "4.parquet", range(3), **change)
        with pytest.raises(
            UserError, match=r"4\.parquet: would be read by its columns .*, but 0\.parquet by image and label"
        ):
            open_source("parquet", str(tmp_path))


@pytest.mark.parametrize("compression", ["snappy", "zstd"])
def test_damaged_pages_name_the_file(tmp_path, compression):
    table = pa.table({"image": [np.random.default_rng(i).bytes(300) + png(i) for i in range(50)], "label": [0] * 50})
    path = tmp_path / "d" / "0.parquet"
    path.parent.mkdir()
    pq.write_table(table, path, compression=compression, write_page_checksum=True, use_dictionary=False)
    whole = path.read_bytes()
    for at in (5000, 7000, len(whole) // 2):
        data = bytearray(whole)
        data[at : at + 40] = bytes(40)
        path.write_bytes(data)
        with pytest.raises(UserError, match=rf"^{path}: is cut off or damaged.*fetch it again"):
            open_source("parquet", str(path))
    for kept in (len(whole) - 1, len(whole) // 2, 12, 3):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match=rf"^{path}: is cut off or damaged.*fetch it again"):
            open_source("parquet", str(path))


def test_bad_row_is_named(tmp_path):
    pq.write_table(pa.table({"image": [png(0), b"", b"<html>"], "label": [0, 0, 0]}), tmp_path / "x.parquet")
    source = open_source("parquet", str(tmp_path))
    assert source.image(0).shape == (4, 6, 3)
    for row, reason in ((1, "is empty"), (2, "not an image")):
        with pytest.raises(BadImage, match=rf"x\.parquet:row {row}: {reason}"):
            source.image(row)
