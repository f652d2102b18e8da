"""Images kept on the device: pixels, labels and names are the ordinary loader's, bit for bit, however they are made."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from backbone.data.batches import TrainSet
from backbone.data.loader import train_loader
from backbone.data.options import Data
from backbone.data.resident import CHUNK, Chunks, Resident, check_room, cut, places
from backbone.data.sources import open_source
from backbone.data.stream import MicroBatches
from backbone.errors import BadImage, UserError
from tests.backbone.data.making import kept

CPU = torch.device("cpu")
SIZE, NUM, STEPS = 24, 11, 6  # steps of 8 images: over four epochs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Noise of different shapes, so that every view tells the image, the crop and the flip."""
    noise = np.random.default_rng(0)
    for i in range(NUM):
        path = tmp_path / "images" / f"class{i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (SIZE + 3 * i, SIZE + 40 - 4 * i, 3), np.uint8)).save(path)
    return tmp_path / "images"


def train_set(folder: Path, kind: str = "cifar", **options: Any) -> TrainSet:
    tree = {"source": "imagefolder", "train": str(folder), "val": str(folder), "size": SIZE, "workers": 0}
    data = TypeAdapter(Data).validate_python({**tree, "resident": True, "augment": {"kind": kind}, **options})
    return TrainSet(open_source("imagefolder", str(folder), str(folder.parent / "cache")), data, 5, (9, 120, 230))


def micro_batches(start: int = 0, rank: int = 0, ranks: int = 1) -> MicroBatches:
    return MicroBatches(8, 4, rank, ranks, start, STEPS)


def assert_same(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected) > 0
    for one, two in zip(found, expected, strict=True):
        assert one.keys() == two.keys()
        for name, value in two.items():
            assert torch.equal(one[name], value) if isinstance(value, torch.Tensor) else one[name] == value, name
            assert not isinstance(value, torch.Tensor) or one[name].dtype == value.dtype


@pytest.mark.parametrize("kind", ["cifar", "none"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.8])
def test_batches_are_the_ordinary_loaders(folder: Path, kind: str, crop_pct: float):
    train = train_set(folder, kind, crop_pct=crop_pct)
    expected = kept(train_loader(train, micro_batches()))
    assert_same(list(Resident(train, CPU).batches(micro_batches())), expected)
    views = {image.numpy().tobytes() for batch in expected for image in batch["images"]}
    assert len(views) == (8 * STEPS if kind == "cifar" else NUM)  # so that other draws would show


def test_resumed_and_shared_out_batches_are_the_same(folder: Path):
    train = train_set(folder)
    resident = Resident(train, CPU)
    for how in ({"start": 3}, {"rank": 1, "ranks": 2}):
        assert_same(list(resident.batches(micro_batches(**how))), kept(train_loader(train, micro_batches(**how))))


def test_loader_processes_decode_and_draw_the_same(folder: Path):
    expected = kept(train_loader(train_set(folder), micro_batches(2)))
    assert_same(list(Resident(train_set(folder, workers=1), CPU).batches(micro_batches(2))), expected)


def test_chunks_hold_every_micro_batch_once():
    many = MicroBatches(256, 64, 1, 2, 3, 500)
    chunks = list(Chunks(many))
    assert [positions for chunk in chunks for positions in chunk] == list(many)
    assert {len(chunk) * 64 for chunk in chunks[:-1]} == {CHUNK}
    assert [len(chunk) for chunk in Chunks(MicroBatches(2 * CHUNK, 2 * CHUNK, 0, 1, 0, 3))] == [1, 1, 1]


def test_cut_is_slicing():
    images = torch.randint(0, 256, (3, 3, 10, 12), dtype=torch.uint8)
    views = cut(images, *places(torch.tensor([[2, 1, 3, 0], [0, 4, 5, 1]]), 6))
    assert torch.equal(views[0], images[2, :, 1:7, 3:9])
    assert torch.equal(views[1], images[0, :, 4:10, 5:11].flip(2))


def test_unreadable_images_stop_or_are_replaced_as_by_the_loader(folder: Path):
    for name in ("class1/4.png", "class1/7.png"):  # neighbours: the first one's replacement is bad too
        (folder / name).write_bytes(b"rubbish")
    with pytest.raises(BadImage, match=r"class1/.*mend or remove it, or set data\.on_bad: skip"):
        Resident(train_set(folder), CPU)
    train = train_set(folder, on_bad="skip")
    expected = kept(train_loader(train, micro_batches()))
    assert sum(len(batch["bad"]) for batch in expected) > 4
    assert_same(list(Resident(train, CPU).batches(micro_batches())), expected)
    strict = train_set(folder, on_bad="skip", max_bad=0)
    for batches in (train_loader(strict, micro_batches()), Resident(strict, CPU).batches(micro_batches())):
        with pytest.raises(BadImage, match=r"more than data\.max_bad 0 unreadable images in a row: .*class1"):
            list(batches)


def test_what_does_not_fit_is_refused_with_numbers():
    memory = 1 << 50
    with pytest.raises(UserError, match=r"data\.resident: 9 images take 1048576\.00 GiB and half of this host's mem"):
        check_room(memory, 9, CPU)
    check_room(1 << 20, 9, CPU)


@pytest.mark.parametrize("kind", ["modern", "paper"])
def test_kinds_that_resize_each_crop_are_refused(kind: str):
    with pytest.raises(ValueError, match=f"resident is for augment cifar or none.*{kind} crops and resizes"):
        TypeAdapter(Data).validate_python({"resident": True, "augment": {"kind": kind}})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_of_a_gpu_are_the_same(folder: Path):
    train = train_set(folder)
    found = Resident(train, torch.device("cuda", 0)).batches(micro_batches())
    on_host = [{k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in batch.items()} for batch in found]
    assert_same(on_host, kept(train_loader(train, micro_batches())))
