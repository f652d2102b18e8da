"""Shards in an object store: the same images as on a disk, kept there within a bound, and read ahead."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from backbone.data.batches import TrainSet
from backbone.data.index import IndexedSource
from backbone.data.options import StoredData
from backbone.data.sources import open_source, remarks
from backbone.errors import BadImage, StorageLost
from backbone.storage import filesystem
from tests.backbone.data.making import make_tar, samples
from tests.detection.data.making import jpeg
from tests.object_store import Bucket

COUNT = 24


@pytest.fixture
def shards(s3: Bucket, tmp_path: Path) -> tuple[str, str]:
    """The same two shards on disk and in the bucket."""
    fs, path = filesystem(f"{s3.url}/shards")
    for number in range(2):
        file = make_tar(
            tmp_path / "shards" / f"{number}.tar", samples(range(number * COUNT // 2, (number + 1) * COUNT // 2))
        )
        fs.put_file(str(file), f"{path}/{number}.tar")
    return str(tmp_path / "shards"), f"{s3.url}/shards"


def opened(place: str, tmp_path: Path, keep_gb: float = 0.0) -> IndexedSource:
    return open_source("webdataset", place, str(tmp_path / "cache"), keep_gb)


def gets(s3: Bucket) -> int:
    return sum(method == "GET" and ".tar" in path for method, path in s3.proxy.asked)


def batch(source: IndexedSource, **how: int) -> np.ndarray:
    data = StoredData(source="webdataset", train="x", val="x", size=16, workers=0)
    return TrainSet(source, data, 0, (0, 0, 0)).batch(range(COUNT))["images"].numpy()


def test_the_same_images_and_fingerprint_as_on_a_disk(shards: tuple[str, str], tmp_path: Path) -> None:
    here, there = (opened(place, tmp_path) for place in shards)
    assert here.fingerprint == there.fingerprint
    np.testing.assert_array_equal(batch(here), batch(there))


def test_what_was_read_is_not_read_again(s3: Bucket, shards: tuple[str, str], tmp_path: Path) -> None:
    source = opened(shards[1], tmp_path, keep_gb=1.0)
    first, before = batch(source), gets(s3)
    np.testing.assert_array_equal(batch(source), first)
    again = opened(shards[1], tmp_path, keep_gb=1.0)  # as another process of the machine does
    indexing = gets(s3)
    np.testing.assert_array_equal(batch(again), first)
    assert gets(s3) == indexing
    assert indexing == before  # nor is it indexed again


def test_no_more_is_kept_than_is_allowed(s3: Bucket, shards: tuple[str, str], tmp_path: Path) -> None:
    sizes = opened(shards[1], tmp_path)._arrays["sizes"]
    bound = int(sizes[: COUNT // 2].sum())
    source = opened(shards[1], tmp_path, keep_gb=bound / 1e9)
    batch(source)
    (folder,) = (tmp_path / "cache").glob("*.kept")
    assert (folder / "bytes").stat().st_size <= bound
    before = gets(s3)
    batch(source)
    assert gets(s3) - before == COUNT // 2


def test_what_is_damaged_on_the_disk_is_fetched_anew(s3: Bucket, shards: tuple[str, str], tmp_path: Path) -> None:
    source = opened(shards[1], tmp_path, keep_gb=1.0)
    first = batch(source)
    (folder,) = (tmp_path / "cache").glob("*.kept")
    with (folder / "bytes").open("r+b") as file:
        file.write(os.urandom(20))
    before = gets(s3)
    np.testing.assert_array_equal(batch(source), first)
    assert gets(s3) - before == 1


def test_requests_are_under_way_together(s3: Bucket, shards: tuple[str, str], tmp_path: Path) -> None:
    source = opened(shards[1], tmp_path)
    s3.proxy.rule = lambda method, path: "slow"
    s3.proxy.most = 0
    batch(source)
    assert s3.proxy.most > 4


def test_a_store_that_fails_is_no_bad_image(s3: Bucket, shards: tuple[str, str], tmp_path: Path) -> None:
    source = opened(shards[1], tmp_path)
    s3.proxy.rule = lambda method, path: "503 SlowDown"
    with pytest.raises(StorageLost) as caught:
        source.image(0)
    assert not isinstance(caught.value, BadImage)


@pytest.mark.parametrize("call", ["pread", "pwrite"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_a_disk_that_fails_is_no_fault_of_the_images(
    shards: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """What is kept saves time and is nothing else; a bad image might be passed over."""
    source = opened(shards[1], tmp_path, keep_gb=1.0)
    first = batch(source)
    (folder,) = (tmp_path / "cache").glob("*.kept")
    if call == "pwrite":
        np.save(folder / "sums.npy", np.zeros(COUNT, np.uint32))
        source = opened(shards[1], tmp_path, keep_gb=1.0)

    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(f"backbone.data.kept.os.{call}", fails)
    with pytest.warns(RuntimeWarning, match=f"{os.strerror(number)}; images are read from their URL"):
        np.testing.assert_array_equal(batch(source), first)


def test_marks_of_folders_are_no_files(s3: Bucket, shards: tuple[str, str], tmp_path: Path) -> None:
    """Empty objects, which AWS's console makes for a folder; s3fs lists them as files."""
    fs, bucket = filesystem(s3.url)
    for folder in ("shards/", "photos/", "photos/cat/", "photos/dog/"):
        fs.call_s3("put_object", Bucket=bucket.split("/")[0], Key=f"{bucket}/{folder}".partition("/")[2], Body=b"")
    for name in ("cat", "dog"):
        fs.pipe_file(f"{bucket}/photos/{name}/a.jpg", jpeg(8, 8))
    fs.invalidate_cache()
    for source, place in (("webdataset", shards[1]), ("imagefolder", f"{s3.url}/photos")):
        assert remarks(open_source(source, place, str(tmp_path / "cache"))) == []
