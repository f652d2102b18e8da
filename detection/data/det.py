"""ImageNet DET in ILSVRC's own layout (the devkit's readme, section 2).

    ILSVRC/ImageSets/DET/train_1.txt ... train_200.txt   ILSVRC2013_train/n02672831/n02672831_11478 1
    ILSVRC/ImageSets/DET/val.txt                         ILSVRC2012_val_00000001 1
    ILSVRC/Data/DET/train/ILSVRC2013_train/n02672831/n02672831_11478.JPEG
    ILSVRC/Annotations/DET/val/ILSVRC2012_val_00000001.xml

There is a training list for each class, whose second column is 1 (positive: all instances of the class are annotated),
0 (partial: not all may be) or -1 (negative: there is none). Annotations are Pascal VOC's XML with WordNet ids for
names.
"""

import io
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backbone.data.findings import Findings
from backbone.data.index import digest
from backbone.data.listing import THREADS
from backbone.errors import UserError
from detection.data.annotated import BLACKLIST, AnnotatedSource, orientation, save
from detection.data.contract import Categories
from detection.data.voc import Split, arrays_of
from detection.data.voc_xml import Annotation, NotText, annotation_of, parse

LISTS, ANNOTATIONS, IMAGES = "ImageSets/DET", "Annotations/DET", "Data/DET"
OF_CLASS = re.compile(r"train_(\d+)")
LAYOUT = f"a folder of ILSVRC holds {LISTS}, {ANNOTATIONS} and {IMAGES}"
PARTIAL, NEGATIVE = 0, -1


@dataclass(frozen=True)
class Devkit:
    """What the devkit's `data` folder says. Classes in the order of their numbers in the challenge, from 1."""

    names: dict[str, str]
    """WordNet id -> name."""

    blacklist: tuple[tuple[int, str], ...]
    """Numbers of validation images, and the WordNet ids of what is not judged in them."""


@dataclass(frozen=True)
class Choice:
    """Which training images are taken beside positive ones."""

    partial: bool = False
    negatives: bool = False


def open_det(
    locations: list[str], choice: Choice, keep_empty: bool = True, devkit: str = "", cache: str | None = None
) -> list[AnnotatedSource]:
    """Open splits, which share their classes: the devkit's where it is given, else those found, sorted by WordNet id.

    Args:
        locations: `folder:list`, several joined by commas: `ILSVRC:train,ILSVRC:val1`. The list `train` is all of
            train_1 to train_200; others are of numbered images. Local folders.
        choice: of training images.
        keep_empty: False: the first location without images that have nothing to be trained on.
        devkit: its `data` folder, with meta_det.mat and the blacklist of validation images.
        cache: local directory; `$XDG_CACHE_HOME/raybone` by default.

    Raises:
        UserError: no such folder or list, or a missing or damaged file; names it.
    """
    kit = read_devkit(devkit) if devkit else None
    splits = [read_split(location, choice) for location in locations]
    found = {name for split, _ in splits for name in split.classes}
    names = kit.names if kit else {name: name for name in sorted(found)}
    if unknown := sorted(found - names.keys()):
        raise UserError(f"{locations[0]}: has classes that {devkit}/meta_det.mat lacks: {', '.join(unknown[:10])}")
    categories = Categories(tuple(names.values()), tuple(range(1, len(names) + 1)))
    sources = []
    for k, (split, numbers) in enumerate(splits):
        named = [replace(one, classes=[names[name] for name in one.classes]) for one in split.annotations]
        split = replace(split, annotations=named)
        findings = Findings().join(split.findings)
        arrays = arrays_of(split, categories, findings, "det")
        row = {number: i for i, number in enumerate(numbers) if number}
        label = {wnid: j for j, wnid in enumerate(names, 1)}
        black = [(row[number], label[wnid]) for number, wnid in (kit.blacklist if kit else ()) if number in row]
        arrays[BLACKLIST] = np.array(sorted(black), np.int64).reshape(-1, 2)
        fingerprint = digest(arrays["fingerprint"].tobytes().decode(), arrays[BLACKLIST].tolist())
        arrays["fingerprint"] = np.frombuffer(fingerprint.encode(), np.uint8)
        if black:
            what = "neither found nor missed in det's mAP; COCO's AP and VOC's mAP judge them as all others"
            findings.add("note", "classes of images on the blacklist", what, count=len(black))
        index = save("det", fingerprint, arrays, cache)
        sources.append(AnnotatedSource(index, split.folders, keep_empty or k > 0, findings=findings.sorted()))
    return sources


def read_split(location: str, choice: Choice) -> tuple[Split, list[int]]:
    """The images of a location with their annotations, and their numbers in `val.txt`, 0 where they are not in it.

    Raises:
        UserError: see `open_det`.
    """
    folders: list[str] = []
    images: list[tuple[int, str, bool, int]] = []  # folder, name, whether it must have an annotation, number
    findings = Findings()
    for part in location.split(","):
        folder, _, name = part.strip().rpartition(":")
        root = Path(folder).expanduser()
        if not folder or not (root / LISTS).is_dir():
            raise UserError(f"{part}: give folder:list, such as /data/ILSVRC:val; {LAYOUT}")
        if folder not in folders:
            folders.append(folder)
        of_classes = name == "train" or OF_CLASS.fullmatch(name)
        listed = _training(root, name, choice, findings) if of_classes else _numbered(root, name)
        images += [(folders.index(folder), *one) for one in listed]
    with ThreadPoolExecutor(THREADS) as pool:
        annotations = list(pool.map(lambda one: _read(Path(folders[one[0]]).expanduser(), *one[1:3]), images))
    names = [f"{IMAGES}/{name}.JPEG" for _, name, _, _ in images]
    twice = [name for (_, name), count in Counter(one[:2] for one in images).items() if count > 1]
    if twice:
        raise UserError(f"{location}: lists {twice[0]} twice, and {len(twice)} image(s) in all; give each list once")
    for annotation in annotations:
        findings.join(annotation.findings)
    parts, ids = [one[0] for one in images], [one[1] for one in images]
    missing = [False] * len(images)
    split = Split(tuple(folders), parts, ids, names, annotations, missing, Findings(), findings)
    return split, [one[3] for one in images]


def read_devkit(folder: str) -> Devkit:
    """Of a devkit's `data` folder.

    Raises:
        UserError: no meta_det.mat, or it or the blacklist is damaged.
    """
    from scipy.io import loadmat

    root = Path(folder).expanduser()
    try:
        synsets = np.atleast_1d(loadmat(root / "meta_det.mat", squeeze_me=True)["synsets"])
        number = next(name for name in synsets.dtype.names or () if name.endswith("DET_ID"))
        # Beyond the 200 some devkits list inner nodes of the tree.
        leaves = sorted((one for one in synsets if 1 <= int(one[number]) <= 200), key=lambda one: int(one[number]))
        names = {str(one["WNID"]): str(one["name"]) for one in leaves}
    except Exception as error:  # loadmat raises anything on damaged files
        raise UserError(f"data.devkit {folder}: meta_det.mat is missing or damaged: {error}") from error
    pairs = []
    for file in sorted(root.glob("*det_validation_blacklist.txt"))[-1:]:
        for line in _lines(file):
            try:
                pairs.append((int(line[0]), line[1]))
            except (ValueError, IndexError) as error:
                raise UserError(f"{file}: {' '.join(line)!r} is no number and WordNet id") from error
            if line[1] not in names:
                raise UserError(f"{file}: {line[1]} is no class of meta_det.mat")
    return Devkit(names, tuple(pairs))


def _training(root: Path, name: str, choice: Choice, findings: Findings) -> list[tuple[str, bool, int]]:
    """Images of the lists of classes, in sorted order. What is partial for one class is so for all."""
    files = sorted((root / LISTS).glob("train_*.txt") if name == "train" else [root / LISTS / f"{name}.txt"])
    files = [file for file in files if OF_CLASS.fullmatch(file.stem)]
    if not files:
        raise UserError(f"{root / LISTS}: has no train_1.txt to train_200.txt; {LAYOUT}")
    labels: dict[str, set[int]] = {}
    for file in files:
        for line in _lines(file):
            if len(line) != 2 or line[1] not in ("1", "0", "-1"):
                raise UserError(f"{file}: {' '.join(line)!r} is no image with 1, 0 or -1")
            labels.setdefault(line[0], set()).add(int(line[1]))
    kept, counts = [], {PARTIAL: 0, NEGATIVE: 0}
    for image, said in sorted(labels.items()):
        if said == {NEGATIVE} and not choice.negatives:
            counts[NEGATIVE] += 1
        elif PARTIAL in said and not choice.partial:
            counts[PARTIAL] += 1
        else:
            kept.append((f"train/{image}", said != {NEGATIVE}, 0))
    if counts[PARTIAL]:
        what, remedy = "images that are annotated in part", "left out of training; data.partial true takes them"
        findings.add("note", what, remedy, count=counts[PARTIAL])
    if counts[NEGATIVE]:
        what, remedy = "negative images", "left out of training; data.negatives true takes them"
        findings.add("note", what, remedy, count=counts[NEGATIVE])
    if not kept:
        raise UserError(f"{root}:{name}: lists no image to train on")
    return kept


def _numbered(root: Path, name: str) -> list[tuple[str, bool, int]]:
    """Images of a list such as val, val1 or val2, with their numbers in val."""
    prefix = re.sub(r"[\d_].*", "", name)
    own = [line[0] for line in _lines(root / LISTS / f"{name}.txt")]
    if not own:
        raise UserError(f"{root / LISTS}/{name}.txt: lists no images")
    every = own if name == "val" or prefix != "val" else [line[0] for line in _lines(root / LISTS / "val.txt")]
    numbers = {image: k for k, image in enumerate(every, 1)}
    return [(f"{prefix}/{image}", True, numbers.get(image, 0)) for image in own]


def _lines(file: Path) -> list[list[str]]:
    try:
        return [line.split() for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        there = ", ".join(sorted(path.stem for path in file.parent.glob("*.txt"))[:10])
        raise UserError(f"{file}: {getattr(error, 'strerror', None) or error}; lists there: {there}") from error


def _read(root: Path, name: str, required: bool) -> Annotation:
    file, image = root / ANNOTATIONS / f"{name}.xml", root / IMAGES / f"{name}.JPEG"
    measure: Callable[[Any], tuple[int, int] | None] = lambda called: _measure(image)  # noqa: E731
    try:
        annotation = annotation_of(parse(file.read_bytes())[0], f"{name}.xml", measure)
        if not image.is_file():
            raise UserError(f"{image}: is missing; restore it, or take {name} from the list")
        return annotation
    except FileNotFoundError as error:
        sides = None if required else _measure(image)
        if sides:  # "Images without any annotated objects may not have a corresponding xml file."
            return Annotation(sides, [], [], [])
        what = image if not required else file
        raise UserError(f"{what}: is missing or cannot be read; restore it, or take {name} from the list") from error
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; restore it") from error
    except (NotText, ValueError, OverflowError) as error:
        raise UserError(f"{file}: {error}; restore the file") from error


def _measure(image: Path) -> tuple[int, int] | None:
    """Height and width of an image seen upright; None where it cannot be read."""
    try:
        data = image.read_bytes()
        with Image.open(io.BytesIO(data)) as header:
            width, height = header.size
    except Exception:  # Pillow lets through whatever a broken header makes it raise
        return None
    return (width, height) if orientation(data) > 4 else (height, width)
