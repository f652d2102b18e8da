"""What all sources have in common: pickling, processes, threads, remote file systems."""

import multiprocessing
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper

from backbone.data import index
from backbone.data.sources import Source, check_classes, check_splits, open_source
from backbone.errors import BadImage, UserError
from tests.backbone.data.making import (
    ALL,
    TRAIN,
    make_folder,
    make_parquet,
    make_shards,
    make_tar,
    png,
    samples,
    values,
)

PICKLED = 1000  # bytes, at most


def make_all(root: Path) -> list[Source]:
    make_folder(root / "folder")
    make_shards(root / "shards")
    make_parquet(root / "parquet" / "x.parquet", range(9))
    kinds = [("imagefolder", "folder"), ("webdataset", f"shards/{ALL}"), ("parquet", "parquet")]
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
    index.write_arrays(tmp_path / "x.index", arrays)
    mapped = index.map_arrays(tmp_path / "x.index")
    for key, array in arrays.items():
        assert mapped[key].dtype == array.dtype
        assert mapped[key].shape == array.shape
        assert (mapped[key] == array).all()
    assert isinstance(mapped["a"].base, np.memmap)
    assert mapped["a"].ctypes.data % 64 == 0


def test_remote_sources_equal_local_ones(tmp_path, memory, cache):
    local = make_all(tmp_path)
    memory.put(f"{tmp_path}/", "/data/", recursive=True)
    for path in memory.find("/data"):
        if "raybone-index" in path or "/cache/" in path:
            memory.rm(path)
    folder_, shards, rows = (
        open_source(kind, f"memory://data/{name}")
        for kind, name in (("imagefolder", "folder"), ("webdataset", f"shards/{ALL}"), ("parquet", "parquet"))
    )
    for ours, theirs in zip((folder_, shards, rows), local, strict=True):
        assert ours.fingerprint == theirs.fingerprint
        assert ours.classes == theirs.classes
        assert (ours.labels == theirs.labels).all()
        assert values(ours) == values(theirs)
        assert values(pickle.loads(pickle.dumps(ours))) == values(theirs)
    assert folder_.name(0).startswith("memory://")
    assert len(list(cache.glob("webdataset-*.index"))) == 1
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

    expected = values(open_source("webdataset", f"{make_shards(tmp_path / 'shards')}/{ALL}"))
    shutil.rmtree(next((tmp_path / "shards").glob("*.index")))
    make_parquet(tmp_path / "parquet" / "x.parquet", range(9))
    make_folder(tmp_path / "folder")
    fs = ArrowFSWrapper(LocalFileSystem())
    for module in ("listing", "folder", "tar", "parquet", "index"):
        monkeypatch.setattr(f"backbone.data.{module}.filesystem", lambda url: (fs, str(url)))
    index._filesystem.cache_clear()
    assert values(open_source("webdataset", f"{tmp_path}/shards/{ALL}")) == expected
    assert not list((tmp_path / "shards").glob("*.index"))  # taken for remote
    assert values(open_source("webdataset", f"{tmp_path}/shards/{TRAIN}")) == list(range(12))
    assert values(open_source("parquet", f"{tmp_path}/parquet")) == list(range(9))
    assert sorted(values(open_source("imagefolder", f"{tmp_path}/folder"))) == list(range(8))
    index._filesystem.cache_clear()


def test_splits_must_have_the_same_classes(tmp_path):
    train = open_source("imagefolder", str(make_folder(tmp_path / "train")))
    val = open_source("imagefolder", str(make_folder(tmp_path / "val")))
    check_splits(train, val)
    (tmp_path / "val" / "a").rename(tmp_path / "val" / "aa")
    val = open_source("imagefolder", str(tmp_path / "val"))
    with pytest.raises(UserError, match=r"only in train: a; only in val: aa"):
        check_splits(train, val)
    swapped = SimpleNamespace(classes=("b", "a", "c c"))
    with pytest.raises(UserError, match="label 0 is a in train, but b in val"):
        check_splits(train, cast(Source, swapped))


@pytest.mark.parametrize(("one", "two"), [("caf\u00e9", "cafe\u0301"), ("Bolt", "bolt"), ("a", "a ")])
def test_splits_whose_classes_look_alike_are_told_apart(tmp_path, one, two):
    for split, name in (("train", one), ("val", two)):
        for each in (name, "x"):
            (tmp_path / split / each).mkdir(parents=True)
            (tmp_path / split / each / "a.png").write_bytes(png(1))
    with pytest.raises(UserError, match="different classes") as caught:
        check_splits(*(open_source("imagefolder", str(tmp_path / split)) for split in ("train", "val")))
    assert f"{one!a} and {two!a} look alike" in str(caught.value)


def test_one_class_alone_teaches_nothing(tmp_path):
    """Also where others are named but have no image."""
    make_tar(tmp_path / "0.tar", [(name, b"1" if name.endswith("cls") else data) for name, data in samples(range(4))])
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=r"all 4 images \(.*0\.tar:n0/img_0\.png, \.\.\.\) are of one class, dog: "):
        check_classes(open_source("webdataset", str(tmp_path)))
    check_classes(open_source("webdataset", f"{make_shards(tmp_path / 'two')}/{ALL}"))
