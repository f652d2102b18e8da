"""Indices: made once, renewed, made again where damaged, kept where they can be written."""

import fcntl
import pickle
import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest

from backbone.data import index, tar
from backbone.data.listing import list_files
from backbone.data.sources import open_source
from backbone.errors import UserError
from tests.backbone.data.making import (
    TRAIN,
    forget,
    make_parquet,
    make_shards,
    make_tar,
    samples,
    values,
)


def test_index_is_made_once_and_renewed_when_a_shard_changes(tmp_path, monkeypatch):
    root = make_shards(tmp_path / "data")
    first = open_source("webdataset", f"{root}/{TRAIN}")
    open_source("webdataset", f"{root}/*val*.tar")  # its own index, in the same directory
    indices = sorted(root.glob("*.index"))
    assert len(indices) == 2
    assert not list(root.glob("*.tmp"))
    assert np.load(indices[0] / "labels.npy", allow_pickle=False).dtype == np.int64  # ordinary to everyone else
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
    assert sorted(root.glob("*.index")) == indices  # replaced, not added
    with pytest.raises(UserError, match="changed while it was in use"):
        pickle.loads(pickle.dumps(first))


def test_damaged_index_is_made_again(tmp_path):
    root = make_shards(tmp_path / "data")
    expected = values(open_source("webdataset", f"{root}/{TRAIN}"))
    path = next(root.glob("*.index"))
    for file in ("labels.npy", "state.npy"):
        for data in (b"", b"rubbish", (path / file).read_bytes()[:-4]):
            (path / file).write_bytes(data)
            assert values(open_source("webdataset", f"{root}/{TRAIN}")) == expected
        (path / file).unlink()
        assert values(open_source("webdataset", f"{root}/{TRAIN}")) == expected


def test_read_only_shards_are_indexed_in_the_cache(tmp_path, monkeypatch, cache):
    root = make_shards(tmp_path / "data")
    root.chmod(0o555)
    source = open_source("webdataset", f"{root}/{TRAIN}")
    monkeypatch.setattr(tar, "scan_shard", forget)
    assert open_source("webdataset", f"{root}/{TRAIN}").fingerprint == source.fingerprint
    monkeypatch.undo()
    root.chmod(0o755)
    assert not list(root.glob("*.index"))


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
    assert len(list(chosen.glob("*.index"))) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Read-only file system.*file.*XDG_CACHE_HOME"):
        open_source("webdataset", f"{root}/*val*.tar", cache=str(tmp_path / "file"))
    with pytest.raises(UserError, match="must be a local directory"):
        open_source("webdataset", f"{root}/*val*.tar", cache="s3://bucket/cache")


def test_a_turn_comes_when_its_holder_ends(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(index, "SAY_AFTER_S", 0.05)
    path, entered = tmp_path / "coco.index", []

    def next_one():
        with index.in_turn(path):
            entered.append(time.monotonic())

    other = threading.Thread(target=next_one)
    with index.in_turn(path):
        other.start()
        time.sleep(0.5)
        assert not entered
        released = time.monotonic()
    other.join(10)
    assert entered[0] >= released
    assert f"waiting for another process of this machine to make {path}" in capsys.readouterr().err


def test_nobody_waits_for_ever(tmp_path, monkeypatch):
    """A frozen process holds its lock. An index is made twice then; images are not copied twice."""
    monkeypatch.setattr(index, "LONGEST_TURN_S", 0.3)
    folder, file, cache = make_shards(tmp_path / "data"), make_parquet(tmp_path / "x.parquet", range(4)), tmp_path / "c"
    cache.mkdir()
    with ExitStack() as held:
        for place, suffix, kind in ((folder, ".tar", "webdataset"), (file, ".parquet", "parquet")):
            path = list_files(f"{place}/{TRAIN}" if kind == "webdataset" else str(place), suffix).cached(
                kind, str(cache)
            )
            lock = held.enter_context(path.with_suffix(".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            print("process 7 on mars", file=lock, flush=True)
        assert values(open_source("webdataset", f"{folder}/{TRAIN}", cache=str(cache))) == list(range(12))
        with pytest.raises(UserError, match=r"x.parquet: process 7 on mars copies .*; end it \(kill -9\)"):
            open_source("parquet", str(file), cache=str(cache))
    assert values(open_source("parquet", str(file), cache=str(cache))) == list(range(4))


def test_who_makes_progress_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "LONGEST_TURN_S", 0.3)
    path, began = tmp_path / "x.lock", time.monotonic()
    with path.open("w") as held, path.open("a+") as lock:
        fcntl.flock(held, fcntl.LOCK_EX)
        copied = lambda: min(int((time.monotonic() - began) / 0.1), 8)  # noqa: E731
        assert not index.wait_for_turn(lock, path, copied)
    assert 1.0 < time.monotonic() - began < 5
