"""Views from the rows of raw pixels that they show, against views of whole images; what is damaged is named as ever."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from backbone.data.batches import TrainSet
from backbone.data.holdout import hold_out
from backbone.data.index import IndexedSource
from backbone.data.options import Data
from backbone.data.raw import encode_raw, read_box
from backbone.data.sources import open_source
from backbone.data.stream import mix
from backbone.errors import BadImage

SEED, COUNT = 5, 12


def noise(height: int, width: int, number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def train(tmp_path: Path) -> TrainSet:
    """Raw pixels, of other sizes each; one shard."""
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for i in range(COUNT):
            for name, data in ((f"{i}.rgb.npy", encode_raw(noise(60 + 7 * i, 130 - 5 * i, i))), (f"{i}.cls", b"0")):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    options = {"source": "webdataset", "train": str(tmp_path), "val": str(tmp_path), "size": 48, "workers": 0}
    data = TypeAdapter(Data).validate_python(options | {"augment": {"kind": "modern", "policy": "trivial"}})
    return TrainSet(open_source("webdataset", str(tmp_path), str(tmp_path / "cache")), data, SEED, (1, 2, 3))


def test_views_are_those_of_the_whole_images(train: TrainSet, monkeypatch: pytest.MonkeyPatch):
    source = train.source
    assert isinstance(source, IndexedSource)
    wanted = np.empty((3 * COUNT, 3, 48, 48), np.uint8)
    for position, planes in enumerate(wanted):
        epoch, sample = train.stream[position]
        train.view.fill(planes, source.image(sample), mix(SEED, epoch, sample))  # the shard is open from here on
    monkeypatch.setattr(source, "data", lambda i: pytest.fail(f"image {i} was read whole"))
    assert (train.batch(range(3 * COUNT))["images"].numpy() == wanted).all()


def test_a_shard_cut_off_later_is_a_bad_image(train: TrainSet):
    """Also where the cut lies below the rows that the view shows."""
    source = train.source
    assert isinstance(source, IndexedSource)
    source.image(0)
    number = COUNT - 1
    place = source.place(number, b".npy")
    assert place
    assert source.place(number, b".jpg") is None
    file = Path(train.options.train) / "0.tar"
    os.truncate(file, place[1] + int(source.sizes[number]) - 1)
    assert source.place(number, b".npy") is None
    size = int(source.sizes[number])
    with pytest.raises(
        BadImage, match=rf"^{train.options.train}/0.tar:{number}.rgb.npy: has {size - 1} bytes, not the"
    ):
        train.batch(range(COUNT))


def test_a_shard_overwritten_later_is_a_bad_image(train: TrainSet):
    source = train.source
    assert isinstance(source, IndexedSource)
    source.image(0)
    place = source.place(3, b".npy")
    assert place
    with (Path(train.options.train) / "0.tar").open("r+b") as file:
        file.seek(place[1])
        file.write(b"\x93NUMPX")
    with pytest.raises(BadImage, match=r"0\.tar:3\.rgb\.npy: "):
        train.batch(range(COUNT))


def test_a_box_is_cut_from_its_rows(tmp_path: Path):
    image = noise(40, 50, 1)
    data = encode_raw(image)
    path = tmp_path / "some"
    path.write_bytes(b"before" + data)
    file = os.open(path, os.O_RDONLY)
    try:
        for top, left, height, width in ((0, 0, 40, 50), (3, 7, 20, 30), (39, 49, 1, 1)):
            found = read_box(file, 6, len(data), lambda *_, box=(top, left, height, width): box)
            assert (found == image[top : top + height, left : left + width]).all()
        with pytest.raises(BadImage, match="has 6127 bytes"):
            read_box(file, 6, len(data) - 1, lambda height, width: (0, 0, height, width))
        os.truncate(path, 6 + len(data) - 1)
        with pytest.raises(BadImage, match="cut off"):
            read_box(file, 6, len(data), lambda height, width: (0, 0, height, width))
    finally:
        os.close(file)


def test_what_is_held_out_is_read_likewise(train: TrainSet):
    source = train.source
    assert isinstance(source, IndexedSource)
    source.image(0)
    part, _ = hold_out(source, 2)
    own = TrainSet(part, train.options, SEED, (1, 2, 3))
    wanted = np.empty((len(part), 3, 48, 48), np.uint8)
    for position, planes in enumerate(wanted):
        epoch, sample = own.stream[position]
        own.view.fill(planes, part.image(sample), mix(SEED, epoch, sample))
    assert part.place(3, b".npy") is not None
    assert (own.batch(range(len(part)))["images"].numpy() == wanted).all()
