"""Ways to decode for training: the same views but for a stated difference, whoever loads them; odd images on each."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from backbone.data.batches import TrainSet, Undecoded
from backbone.data.loader import train_loader
from backbone.data.nvjpeg import Decoder
from backbone.data.options import Data
from backbone.data.sources import open_source
from backbone.data.stream import MicroBatches
from backbone.data.synthetic import SyntheticSource
from backbone.errors import BadImage, UserError

SIZE, STEPS = 48, 4  # of 8 images
NUM = 10


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """Rendered scenes of 300 x 400 pixels: six times the view."""
    scenes = SyntheticSource(0, NUM, 400)
    return [Image.fromarray(scenes.image(i)[:300]) for i in range(NUM)]


@pytest.fixture(scope="module")
def odd(photos) -> dict[str, bytes]:
    """What is not a plain colour JPEG, from the same scene."""
    exif = Image.Exif()
    exif[0x112] = 6
    photo = photos[0]
    deep = np.asarray(photo.convert("L")).astype(np.uint16) << 8
    return {
        "cmyk.jpg": encode(photo.convert("CMYK"), quality=95),
        "deep.png": encode(Image.fromarray(deep), "PNG"),
        "grey.jpg": encode(photo.convert("L"), quality=95),
        "turned.jpg": encode(photo.transpose(Image.Transpose.ROTATE_90), exif=exif, quality=95),
    }


@pytest.fixture
def plain(tmp_path: Path, photos) -> Path:
    return folder(tmp_path / "plain", {f"{i}.jpg": encode(photo, quality=90) for i, photo in enumerate(photos)})


def folder(root: Path, files: dict[str, bytes]) -> Path:
    (root / "class").mkdir(parents=True)
    for name, data in files.items():
        (root / "class" / name).write_bytes(data)
    return root


def train_set(root: Path, decode: str, kind: str = "modern", **options: Any) -> TrainSet:
    augment = {"kind": "paper", "shorter_side": [50, 70]} if kind == "paper" else {"kind": kind}
    tree = {"source": "imagefolder", "train": str(root), "val": str(root), "size": SIZE, "workers": 0}
    data = TypeAdapter(Data).validate_python(tree | {"decode": decode, "augment": augment} | options)
    return TrainSet(open_source("imagefolder", str(root), str(root.parent / "cache")), data, 5, (9, 9, 9))


def batches(start: int = 0) -> MicroBatches:
    return MicroBatches(8, 4, 0, 1, start, STEPS)


def load(train: TrainSet, start: int = 0) -> list[Any]:
    """All batches; nvJPEG's with libjpeg in its place."""
    if train.options.decode != "nvjpeg":
        return [{**batch, "images": batch["images"].clone()} for batch in train_loader(train, batches(start))]
    decoder = Decoder(train, "cpu")
    return [decoder(train.batch(positions)) for positions in batches(start)]


def apart(one: list[Any], two: list[Any]) -> float:
    """Mean absolute difference, grey levels; everything else is the same."""
    assert [batch["labels"].tolist() for batch in one] == [batch["labels"].tolist() for batch in two]
    assert [batch["position"] for batch in one] == [batch["position"] for batch in two]
    images = [torch.cat([batch["images"] for batch in found]).float() for found in (one, two)]
    return float((images[0] - images[1]).abs().mean())


@pytest.mark.parametrize(
    ("decode", "kind", "within"), [("scaled", "modern", 4.0), ("scaled", "paper", 2.5), ("nvjpeg", "modern", 3.0)]
)
def test_paths_agree_with_the_exact_one(plain: Path, decode: str, kind: str, within: float):
    """Means over edges sharper than a photograph's; another crop or flip would be ten times as far away."""
    exact = load(train_set(plain, "exact", kind))
    found = load(train_set(plain, decode, kind))
    assert 0 < apart(found, exact) < within
    assert apart(load(replace(train_set(plain, "exact", kind), seed=6)), found) > 10 * within


@pytest.mark.parametrize("decode", ["scaled", "nvjpeg"])
def test_views_are_drawn_again_alike(plain: Path, decode: str):
    all_of_it = load(train_set(plain, decode))
    assert apart(load(train_set(plain, decode)), all_of_it) == 0
    assert apart(load(train_set(plain, decode), start=2), all_of_it[4:]) == 0
    assert len({image.numpy().tobytes() for batch in all_of_it for image in batch["images"]}) == 8 * STEPS


@pytest.mark.parametrize("workers", [1, 3])
def test_scaled_views_are_the_same_for_every_number_of_loader_processes(plain: Path, workers: int):
    assert apart(load(train_set(plain, "scaled", workers=workers)), load(train_set(plain, "scaled"))) == 0


@pytest.mark.parametrize("decode", ["exact", "scaled", "nvjpeg"])
def test_odd_images_are_handled_on_every_path(tmp_path: Path, odd, photos, decode: str):
    """Each shows the same scene the right way up, so each view is near that of the plain JPEG."""
    for name, data in odd.items():
        one = train_set(folder(tmp_path / name, {name: data}), decode)
        grey = name.startswith(("grey", "deep"))
        scene = encode(photos[0].convert("L") if grey else photos[0], quality=95)
        other = train_set(folder(tmp_path / f"{name}-plain", {"x.jpg": scene}), "exact")
        assert apart(load(one), load(other)) < (8 if name.startswith("cmyk") else 4), name


@pytest.mark.parametrize("decode", ["exact", "scaled", "nvjpeg"])
@pytest.mark.parametrize("damage", ["cut", "empty", "rubbish"])
def test_bad_images_are_named_or_replaced_on_every_path(plain: Path, decode: str, damage: str):
    path = plain / "class" / "3.jpg"
    data = path.read_bytes()
    path.write_bytes(
        {"cut": data[: len(data) // 2], "rubbish": b"\xff\xd8\xff" + bytes(500) + b"\xff\xd9", "empty": b""}[damage]
    )
    with pytest.raises(BadImage, match=r"class/3\.jpg: .*mend or remove it, or set data\.on_bad: skip"):
        load(train_set(plain, decode))
    train = train_set(plain, decode, on_bad="skip")
    found = load(train)
    samples = [train.stream[position][1] for position in range(8 * STEPS)]
    assert sum(len(batch["bad"]) for batch in found) == samples.count(3) > 0
    assert all("class/3.jpg: " in name for batch in found for name in batch["bad"])
    images, place = torch.cat([batch["images"] for batch in found]), samples.index(3)
    four, _ = train.decoded(Undecoded(0, 0, 4, 0, b""), SIZE, [])
    difference = (images[place].float() - four).abs().mean()
    assert difference < 4 if decode == "nvjpeg" else difference == 0  # the next one, as of the same epoch


def test_what_the_gpu_cannot_read_is_read_on_the_host_or_replaced(plain: Path, monkeypatch: pytest.MonkeyPatch):
    """Its replacement brings its own label."""
    train = train_set(plain, "nvjpeg", on_bad="skip")
    monkeypatch.setattr(train.source, "labels", np.arange(NUM))
    exact = load(replace(train_set(plain, "exact"), source=train.source))
    decoder = Decoder(train, "cpu")

    def refuse(encoded: list) -> list:
        raise RuntimeError("nvJPEG: unsupported")

    monkeypatch.setattr(decoder, "_decode", refuse)
    assert apart([decoder(train.batch(positions)) for positions in batches()], exact) == 0
    waiting = [train.batch(positions) for positions in batches()]
    path = plain / "class" / "3.jpg"
    path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    found = [decoder(batch) for batch in waiting]
    samples = [train.stream[position][1] for position in range(8 * STEPS)]
    assert torch.cat([batch["labels"] for batch in found]).tolist() == [4 if one == 3 else one for one in samples]
    assert sum(len(batch["bad"]) for batch in found) == samples.count(3)


@pytest.mark.parametrize("decode", ["exact", "scaled", "nvjpeg"])
def test_images_grow_with_the_epoch_on_every_path(plain: Path, decode: str):
    """Each micro-batch as where its size is that of all; three begin in epoch 0, two in 1, three in 2."""
    grows = {"from_size": 16, "start": 0, "end": 2, "step": 16}
    found = load(train_set(plain, decode, progressive=grows))
    alone = {size: load(train_set(plain, decode, size=size)) for size in (16, 32, SIZE)}
    sides = [batch["images"].shape[-1] for batch in found]
    assert sides == [16, 16, 16, 32, 32, SIZE, SIZE, SIZE]
    for k, (one, side) in enumerate(zip(found, sides, strict=True)):
        assert torch.equal(one["images"], alone[side][k]["images"])


def test_policies_vary_what_the_device_decoded(plain: Path):
    augment = {"kind": "modern", "policy": "trivial"}
    varied = load(train_set(plain, "nvjpeg", augment=augment))
    assert apart(varied, load(train_set(plain, "exact", augment=augment))) < 6
    assert apart(varied, load(train_set(plain, "nvjpeg"))) > 6


class Overwritten(Decoder):
    """As pull request 9606 saw it: some rows of one picture hold another's."""

    def _decode(self, encoded: list) -> list:
        first, *rest = super()._decode(encoded)
        if rest:
            rest[-1] = rest[-1].clone()
            rest[-1][:, 20:24] = 255 - rest[-1][:, 20:24]
        return [first, *rest]


class Gone(Decoder):
    """A torchvision without decoders."""

    def _decode(self, encoded: list) -> list:
        raise ImportError("cannot import name 'decode_jpeg' from 'torchvision.io'")


@pytest.mark.parametrize(
    ("decoder", "says"), [(Overwritten, "of 20 pictures .* 4 came out wrong"), (Gone, "cannot import name")]
)
def test_a_decoder_that_errs_is_refused_before_training(plain: Path, decoder: type[Decoder], says: str):
    with pytest.raises(UserError, match=rf"data\.decode nvjpeg: .*{says}.*exact or scaled"):
        decoder(train_set(plain, "nvjpeg"), "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_nvjpeg_without_a_gpu_is_refused(plain: Path):
    with pytest.raises(UserError, match=r"data\.decode nvjpeg: torch sees no GPU.*exact or scaled"):
        train_loader(train_set(plain, "nvjpeg"), batches())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nvjpeg_agrees_with_the_exact_path(plain: Path):
    found = list(train_loader(train_set(plain, "nvjpeg"), batches(), torch.device("cuda")))
    assert {batch["images"].device.type for batch in found} == {"cuda"}
    on_host: Any = [{**batch, "images": batch["images"].cpu()} for batch in found]
    assert apart(on_host, load(train_set(plain, "exact"))) < 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"decode": "scaled", "augment": {"kind": "cifar"}}, "decode scaled is for augment modern or paper"),
        ({"decode": "nvjpeg", "augment": {"kind": "paper"}}, "decode nvjpeg is for augment modern, not paper"),
        ({"decode": "scaled"}, "source synthetic has none"),
        ({"decode": "fast"}, "decode"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str):
    where = {} if "synthetic" in message else {"source": "imagefolder", "train": "x", "val": "y"}
    with pytest.raises(ValueError, match=message):
        TypeAdapter(Data).validate_python(where | given)


def test_views_fill_shared_memory_of_loader_processes(plain: Path):
    """A batch that was made in ordinary memory would be copied on its way to training."""
    found = list(train_loader(train_set(plain, "exact", workers=1), batches()))
    assert all(batch["images"].is_shared() and batch["images"].is_contiguous() for batch in found)
    assert len({batch["images"].untyped_storage().data_ptr() for batch in found}) == 1
