"""From image files to batches in memory: our loader against torchvision's reference transform, DALI and FFCV.

An ImageFolder is read as it is, and repacked into shards of shorter side 256: JPEG of quality 90, and raw pixels. All
ways load as many images, from the page cache, in turns; a turn's ratio is against the turn beside it of the reference
with the same augmentation, which always reads the original files. With one core everything happens in this process,
pinned to one, and its processor time counts, which others on the machine do not take; with more, in as many loader
processes (DALI: threads), and what counts is the clock. The reference hands over normalised floats, as its training
loop expects, and mixes them as it collates; all others hand over uint8, and ours are mixed on the device, which
`device` in the file measures by itself. FFCV has no row: its last release, of 2023, needs OpenCV's headers to build,
and built with them its loader hangs while numba 0.68 compiles it (Python 3.11, numpy 2.4).

Views of ours are also compared with PIL's: the same file, decoded, cropped and resized by PIL alone.
"""

import argparse
import importlib
import importlib.util
import io
import json
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
import yaml
from PIL import Image, ImageOps
from pydantic import TypeAdapter
from results import parser, spread, write
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from backbone.data.augment import Draws, TrainingView, blend, resize
from backbone.data.batches import TrainSet, make_loader
from backbone.data.index import IndexedSource
from backbone.data.loader import train_loader
from backbone.data.options import Augment, Data, ModernAugment, PaperAugment
from backbone.data.raw import MAGIC, encode_raw
from backbone.data.sources import open_source
from backbone.data.stream import MicroBatches, mix
from backbone.inputs import IMAGENET_MEAN, IMAGENET_STD, InputConvention

REFERENCE = "torchvision reference"
SIDE, SHORTER, QUALITY = 224, 256, 90
Run = Callable[[], None]


RECIPES = Path(__file__).parents[1] / "jobs" / "recipes"
AUGMENTS: dict[str, str | dict[str, Any]] = {
    "crop and flip": {"kind": "modern"},
    "imagenet-modern": "imagenet-modern/resnet50.yaml",  # TrivialAugment, mixup, CutMix
    "RandAugment": {"kind": "modern", "policy": "rand"},
    "jitter and erasing": {"kind": "modern", "jitter": 0.4, "erasing": 0.25},
    "imagenet-paper": "imagenet-paper/resnet50.yaml",
}


@dataclass
class Way:
    """One way to load; `run` loads the images `passes` times over."""

    augment: str
    name: str
    data: str
    run: Run
    passes: int
    difference: tuple[float, float] | None = None


def options_of(augment: str) -> dict[str, Any]:
    """The `augment:` section of that name, a recipe's own where it is a recipe's."""
    found = AUGMENTS[augment]
    return found if isinstance(found, dict) else yaml.safe_load((RECIPES / found).read_text())["data"]["augment"]


def reference_transform(augment: Augment) -> transforms.Compose:
    """What torchvision's references/classification would do, on PIL images; AlexNet's colour shift it does not have."""
    bilinear = transforms.InterpolationMode.BILINEAR
    steps: list[Any] = []
    if isinstance(augment, PaperAugment):
        first, last = augment.shorter_side
        steps += [v2.RandomShortestSize(list(range(first, last + 1))), transforms.RandomCrop(SIDE)]
    elif isinstance(augment, ModernAugment):
        steps.append(transforms.RandomResizedCrop(SIDE, scale=augment.area, interpolation=bilinear))
    steps.append(transforms.RandomHorizontalFlip())
    if isinstance(augment, ModernAugment):
        policies = {"trivial": transforms.TrivialAugmentWide, "rand": transforms.RandAugment}
        if augment.policy != "none":
            steps.append(policies[augment.policy](interpolation=bilinear))
        if augment.jitter:
            steps.append(transforms.ColorJitter(*[augment.jitter] * 3))
    steps += [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float)]
    steps.append(transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD))
    if isinstance(augment, ModernAugment) and augment.erasing:
        steps.append(transforms.RandomErasing(augment.erasing))
    return transforms.Compose(steps)


class Reference(torch.utils.data.Dataset):
    """ImageFolder with `reference_transform`, in whole batches, mixed as they are collated."""

    def __init__(self, root: str, augment: Augment) -> None:
        self.folder = ImageFolder(root, reference_transform(augment))
        classes, mixers = len(self.folder.classes), []
        if isinstance(augment, ModernAugment) and augment.mixup:
            mixers.append(v2.MixUp(alpha=augment.mixup, num_classes=classes))
        if isinstance(augment, ModernAugment) and augment.cutmix:
            mixers.append(v2.CutMix(alpha=augment.cutmix, num_classes=classes))
        self.mix: Any = v2.RandomChoice(mixers) if mixers else None

    def __len__(self) -> int:
        return len(self.folder)

    def __getitems__(self, ids: list[int]) -> Any:
        batch = torch.utils.data.default_collate([self.folder[i] for i in ids])
        return self.mix(*batch) if self.mix else batch


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
    augment: str,
    storage: tuple[str, str, str],
    how: str,
    passes: int,
    given: argparse.Namespace,
    workers: int,
    cache: str,
) -> Way:
    """Our loader, as training makes it. `storage`: source, where it lies, what it is called."""
    kind, root, data = storage
    source = open_source(kind, root, cache)
    options = TypeAdapter(Data).validate_python(
        {"source": kind, "train": root, "val": root, "size": SIDE, "decode": how, "workers": workers}
        | {"augment": options_of(augment)}
    )
    train_set = TrainSet(source, options, 0, (124, 116, 104))
    steps = passes * len(source) // given.batch
    loader = train_loader(train_set, MicroBatches(given.batch, given.batch, 0, 1, 0, steps))
    assert isinstance(source, IndexedSource)
    apart = difference(train_set, source, given.batch) if options.augment == ModernAugment() else None
    return Way(augment, f"raybone, {how}", data, drain(loader), passes, apart)


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


def measure(ways: list[Way], images: int, turns: int, clock: Callable[[], float]) -> list[list[float]]:
    """Milliseconds an image of each way, turn by turn; the first turn is warm-up."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(turns + 1):
        for way, mine in zip(ways, times, strict=True):
            began = clock()
            way.run()
            mine.append(1000 * (clock() - began) / (images * way.passes))
    return [mine[1:] for mine in times]


def ways_to_load(cores: int, folder: Path, given: argparse.Namespace) -> tuple[list[Way], int, dict[str, str]]:
    """All that can be measured, how many images each loads, and what is absent with the reason."""
    root, cache = str(given.images), str(folder / "cache")
    workers = 0 if cores == 1 else cores
    files = ("imagefolder", root, "original files")
    jpeg = ("webdataset", str(folder / "jpeg"), f"shards, {SHORTER} px JPEG")
    raw = ("webdataset", str(folder / "raw"), f"shards, {SHORTER} px raw")
    ways, images = [], 0
    absent = {"FFCV": "1.0.2 hangs while numba compiles its loader"}
    for augment in given.augments:
        reference = Reference(root, TypeAdapter(Augment).validate_python(options_of(augment)))
        images = len(reference) // given.batch * given.batch
        loader = make_loader(reference, workers, False, sampler=range(images), batch_size=given.batch)
        ways.append(Way(augment, REFERENCE, files[2], drain(loader), 1))
        kinds = [(files, "exact", 1), (jpeg, "exact", 2), (raw, "exact", 5)]
        if augment == next(iter(AUGMENTS)):
            kinds += [(files, "scaled", 1), (files, "nvjpeg", 2)]
        for storage, how, passes in kinds:
            if how == "nvjpeg" and not torch.cuda.is_available():
                absent["raybone, nvjpeg"] = "no GPU"
            else:
                ways.append(ours(augment, storage, how, passes, given, workers, cache))
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
        version = importlib.import_module("nvidia.dali").__version__
        run = dali(root, given.batch, cores, 1)
        ways.append(Way(next(iter(AUGMENTS)), f"DALI {version}, CPU", files[2], run, 1))
    else:
        absent["DALI, CPU"] = "not installed"
    return ways, images, absent


def on_cores(cores: int, folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of all ways on so many cores."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[:cores])
    ways, images, absent = ways_to_load(cores, folder, given)
    times = measure(ways, images, given.turns, time.process_time if cores == 1 else time.perf_counter)
    os.sched_setaffinity(0, allowed)
    by_name = {(way.augment, way.name, way.data): mine for way, mine in zip(ways, times, strict=True)}
    rows = []
    for way, mine in zip(ways, times, strict=True):
        beside = by_name.get((way.augment, REFERENCE, "original files"), mine)
        plain = by_name.get((next(iter(AUGMENTS)), way.name, way.data), mine)
        ratio, low, high = spread([theirs / own for theirs, own in zip(beside, mine, strict=True)])
        rows.append(
            {
                "cores": cores,
                "augmentation": way.augment,
                "loader": way.name,
                "from": way.data,
                "ms an image": spread(mine)[0],
                "ms beyond crop and flip": spread([x - y for x, y in zip(mine, plain, strict=True)])[0],
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


def views(augments: list[str], turns: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a core for a view of 341 x 256 pixels that are decoded already, in turns of 50 views: each
    augmentation's, and by how much it is more than that of the first.
    """
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (32, 43, 3), np.uint8), (341, 256))
    planes = np.empty((3, SIDE, SIDE), np.uint8)
    made = {
        name: TrainingView(TypeAdapter(Augment).validate_python(options_of(name)), SIDE, 0.875, (124, 116, 104))
        for name in augments
    }
    times: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(turns + 1):
        for name, view in made.items():
            began = time.process_time()
            for i in range(50):
                view.fill(planes, image, mix(turn, i))
            times[name].append((time.process_time() - began) * 1000 / 50)
    plain = np.array(times[augments[0]][1:])
    return {
        name: {
            "ms": float(np.median(mine[1:])),
            "ms more": float(np.median(np.array(mine[1:]) - plain)),
            "ms more, fastest turns": min(mine[1:]) - float(plain.min()),
        }
        for name, mine in times.items()
    }


def on_device(batch: int, turns: int) -> dict[str, dict[str, Any]]:
    """Milliseconds an image of what follows on the device, this machine's GPU or else a core of it; in turns."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.randint(256, (batch, 3, SIDE, SIDE), dtype=torch.uint8, device=device)
    labels = torch.arange(batch, device=device) % 1000
    draws = Draws(ModernAugment(mixup=0.2, cutmix=1.0), 0)
    blending = torch.from_numpy(np.stack([draws.blending(i) for i in range(batch)])).to(device)
    convention, mixed = (
        InputConvention(),
        v2.RandomChoice([v2.MixUp(alpha=0.2, num_classes=1000), v2.CutMix(num_classes=1000)]),
    )
    normal = convention.normalize(images)
    works: dict[str, Callable[[], Any]] = {
        "normalise": lambda: convention.normalize(images),
        "normalise, mixup or CutMix of each pair": lambda: blend(convention.normalize(images), blending),
        "torchvision's mixup or CutMix of the batch, of floats": lambda: mixed(normal, labels),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for _ in range(turns + 1):
        for name, work in works.items():
            began = clock()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(1000 * (clock() - began) / batch)
    return {
        name: dict(zip(("ms an image", "low", "high"), spread(mine[1:]), strict=True)) for name, mine in times.items()
    }


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--images", type=Path, required=True, help="an ImageFolder: <class>/*.jpg")
    words.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    words.add_argument("--turns", type=int, default=15, help="turns of each way")
    words.add_argument("--augments", nargs="+", default=list(AUGMENTS), choices=list(AUGMENTS))
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
        rows = [row for cores in given.cores for row in on_cores(cores, folder, given)]
    device = on_device(64, given.turns)
    varied = views(given.augments, 40)
    print(json.dumps({"device": device, "views": varied}, indent=1))
    write(given.output, rows, device=device, views=varied)


if __name__ == "__main__":
    main()
