"""From image files to batches in memory: our loader against torchvision's reference transform, DALI and FFCV.

An ImageFolder is read as it is, and repacked into shards of shorter side 256: JPEG of quality 90, and raw pixels. All
ways load as many images, from the page cache, in turns; a turn's ratio is against the reference's turn beside it, which
always reads the original files. With one core everything happens in this process, pinned to one; with more, in as many
loader processes (DALI: threads). The reference hands over normalised floats, as its training loop expects; all others
uint8. FFCV has no row: its last release, of 2023, needs OpenCV's headers to build, and built with them its loader hangs
while numba 0.68 compiles it (Python 3.11, numpy 2.4).

Views of ours are also compared with PIL's: the same file, decoded, cropped and resized by PIL alone.
"""

import argparse
import importlib
import importlib.util
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import TypeAdapter
from results import parser, spread, write
from torchvision import transforms
from torchvision.datasets import ImageFolder

from backbone.data.augment import resize
from backbone.data.batches import TrainSet, make_loader
from backbone.data.index import IndexedSource
from backbone.data.loader import train_loader
from backbone.data.options import Data
from backbone.data.raw import MAGIC, encode_raw
from backbone.data.sources import open_source
from backbone.data.stream import MicroBatches, mix
from backbone.inputs import IMAGENET_MEAN, IMAGENET_STD

SIDE, SHORTER, QUALITY = 224, 256, 90
Run = Callable[[], None]


@dataclass
class Way:
    """One way to load; `run` loads the images `passes` times over."""

    name: str
    data: str
    run: Run
    passes: int
    difference: tuple[float, float] | None = None


class Reference(torch.utils.data.Dataset):
    """ImageFolder with the transform of torchvision's references/classification, in whole batches."""

    def __init__(self, root: str) -> None:
        self.folder = ImageFolder(
            root,
            transforms.Compose(
                [
                    transforms.RandomResizedCrop(SIDE),
                    transforms.RandomHorizontalFlip(),
                    transforms.PILToTensor(),
                    transforms.ConvertImageDtype(torch.float),
                    transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
                ]
            ),
        )

    def __len__(self) -> int:
        return len(self.folder)

    def __getitems__(self, ids: list[int]) -> Any:
        return torch.utils.data.default_collate([self.folder[i] for i in ids])


def drain(batches: Iterable[Any]) -> Run:
    """Load all of it."""

    def run() -> None:
        for _ in batches:
            pass
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def repack(source: IndexedSource, folder: Path, suffix: str, encode: Callable[[np.ndarray], bytes]) -> str:
    """Write `source` as a shard of images of shorter side 256."""
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as archive:
        for i in range(len(source)):
            image = source.image(i)
            scale = SHORTER / min(image.shape[:2])
            data = encode(resize(image, *(round(side * scale) for side in image.shape[:2])))
            for name, content in ((f"{i}.{suffix}", data), (f"{i}.cls", str(source.labels[i]).encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return str(folder)


def encode_jpeg(image: np.ndarray) -> bytes:
    """Quality 90, chroma halved."""
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def ours(
    kind: str, root: str, data: str, how: str, passes: int, given: argparse.Namespace, workers: int, cache: str
) -> Way:
    """Our loader, as training makes it."""
    source = open_source(kind, root, cache)
    options = TypeAdapter(Data).validate_python(
        {"source": kind, "train": root, "val": root, "size": SIDE, "decode": how, "workers": workers}
    )
    train_set = TrainSet(source, options, 0, (0, 0, 0))
    steps = passes * len(source) // given.batch
    loader = train_loader(train_set, MicroBatches(given.batch, given.batch, 0, 1, 0, steps))
    assert isinstance(source, IndexedSource)
    return Way(f"raybone, {how}", data, drain(loader), passes, difference(train_set, source, given.batch))


def difference(train_set: TrainSet, source: IndexedSource, batch: int) -> tuple[float, float]:
    """Mean absolute difference of views from PIL's, grey levels, and PSNR, dB."""
    alone = TrainSet(source, train_set.options.model_copy(update={"workers": 0}), train_set.seed, train_set.fill)
    absolute, squares = [], []
    for found in train_loader(alone, MicroBatches(batch, batch, 0, 1, 0, len(source) // batch)):
        for place, image in enumerate(found["images"].cpu()):
            epoch, sample = alone.stream[found["position"] + place]
            apart = image.permute(1, 2, 0).numpy().astype(np.float64) - pils_view(
                alone, source.data(sample), epoch, sample
            )
            absolute.append(np.abs(apart).mean())
            squares.append(np.square(apart).mean())
    return float(np.mean(absolute)), float(10 * np.log10(255**2 / np.mean(squares)))


def pils_view(train_set: TrainSet, data: bytes, epoch: int, sample: int) -> np.ndarray:
    """uint8 [S, S, 3]: the same crop, mirrored alike, decoded and resized by PIL."""
    key = mix(train_set.seed, epoch, sample)
    stored = Image.fromarray(np.load(io.BytesIO(data))) if data.startswith(MAGIC) else Image.open(io.BytesIO(data))
    image = ImageOps.exif_transpose(stored).convert("RGB")
    top, left, height, width = train_set.view.box(image.height, image.width, key)
    image = image.crop((left, top, left + width, top + height)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(ImageOps.mirror(image) if train_set.view.flips(key) else image)


def dali(root: str, batch: int, threads: int, passes: int) -> Run:
    """DALI on the CPU: decode what the crop needs, resize, flip; uint8."""
    module: Any = importlib.import_module("nvidia.dali")  # not among our requirements
    fn, pipeline_def, types = module.fn, module.pipeline_def, module.types

    @pipeline_def
    def pipeline() -> Any:
        files, labels = fn.readers.file(file_root=root, random_shuffle=True, name="reader")
        images = fn.decoders.image_random_crop(files, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3])
        images = fn.resize(images, resize_x=SIDE, resize_y=SIDE, interp_type=types.INTERP_TRIANGULAR)
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    made: Any = pipeline(  # nothing ahead: it would work in the turns of others
        batch_size=batch, num_threads=threads, device_id=None, exec_async=False, exec_pipelined=False
    )
    made.build()
    steps = passes * made.epoch_size("reader") // batch

    def run() -> None:
        for _ in range(steps):
            images, _ = made.run()
            torch.from_numpy(images.as_array().copy())

    return run


def measure(ways: list[Way], images: int, turns: int) -> dict[str, list[float]]:
    """Seconds an image of each way, turn by turn; the first turn is warm-up."""
    seconds: dict[str, list[float]] = {way.name + way.data: [] for way in ways}
    for _ in range(turns + 1):
        for way in ways:
            began = time.perf_counter()
            way.run()
            seconds[way.name + way.data].append((time.perf_counter() - began) / (images * way.passes))
    return {name: values[1:] for name, values in seconds.items()}


def on_cores(cores: int, folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of all ways on so many cores."""
    root, cache = str(given.images), str(folder / "cache")
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[:cores])
    workers = 0 if cores == 1 else cores
    reference = Reference(root)
    images = len(reference) // given.batch * given.batch
    loader = make_loader(reference, workers, False, sampler=range(images), batch_size=given.batch)
    shards = {"jpeg": str(folder / "jpeg"), "raw": str(folder / "raw")}
    ways = [Way("torchvision reference", "original files", drain(loader), 1)]
    absent = {"FFCV": "1.0.2 hangs while numba compiles its loader"}
    for kind, place, data, how, passes in (
        ("imagefolder", root, "original files", "exact", 1),
        ("imagefolder", root, "original files", "scaled", 1),
        ("imagefolder", root, "original files", "nvjpeg", 2),
        ("webdataset", shards["jpeg"], f"shards, {SHORTER} px JPEG", "exact", 2),
        ("webdataset", shards["raw"], f"shards, {SHORTER} px raw", "exact", 5),
    ):
        if how == "nvjpeg" and not torch.cuda.is_available():
            absent["raybone, nvjpeg"] = "no GPU"
        else:
            ways.append(ours(kind, place, data, how, passes, given, workers, cache))
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
        version = importlib.import_module("nvidia.dali").__version__
        ways.append(Way(f"DALI {version}, CPU", "original files", dali(root, given.batch, cores, 1), 1))
    else:
        absent["DALI, CPU"] = "not installed"
    seconds = measure(ways, images, given.turns)
    os.sched_setaffinity(0, allowed)
    beside = seconds["torchvision reference" + "original files"]
    rows = []
    for way in ways:
        mine = seconds[way.name + way.data]
        ratio, low, high = spread([theirs / own for theirs, own in zip(beside, mine, strict=True)])
        rows.append(
            {
                "cores": cores,
                "loader": way.name,
                "from": way.data,
                "images/s": 1 / spread(mine)[0],
                "x reference": ratio,
                "quartiles": f"{low:.2f} to {high:.2f}",
                "turns": given.turns,
                "from PIL, grey levels": way.difference[0] if way.difference else "",
                "PSNR, dB": way.difference[1] if way.difference else "",
            }
        )
    empty = dict.fromkeys(rows[0], "")
    rows += [empty | {"cores": cores, "loader": name, "from": f"absent: {why}"} for name, why in absent.items()]
    return rows


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--images", type=Path, required=True, help="an ImageFolder: <class>/*.jpg")
    words.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    words.add_argument("--turns", type=int, default=15, help="turns of each way")
    words.add_argument("--batch", type=int, default=25, help="images; what is over is left out")
    given = words.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = open_source("imagefolder", str(given.images), name + "/cache")
        assert isinstance(source, IndexedSource)
        repack(source, folder / "jpeg", "jpg", encode_jpeg)
        repack(source, folder / "raw", "rgb.npy", encode_raw)
        write(given.output, [row for cores in given.cores for row in on_cores(cores, folder, given)])


if __name__ == "__main__":
    main()
