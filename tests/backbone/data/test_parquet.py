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
from backbone.data.sources import open_source
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
