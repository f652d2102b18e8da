"""Pascal VOC: ImageSets/Main, Annotations and JPEGImages (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/)."""

import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from backbone.data.formats import image_suffixes
from backbone.data.listing import THREADS
from backbone.errors import UserError
from backbone.storage import filesystem
from detection.data.annotated import AnnotatedSource, doctor, read, save, shown, tabulate
from detection.data.contract import Categories
from detection.data.segments import flatten

# VOC's twenty in their customary order, which is the alphabet's.
CLASSES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep"
    " sofa train tvmonitor".split()
)


LISTS, ANNOTATIONS, IMAGES = "ImageSets/Main", "Annotations", "JPEGImages"


@dataclass(frozen=True)
class Record:
    """One image with its annotations; K objects."""

    size: tuple[int, int]  # height, width
    classes: list[str]  # K
    boxes: list[tuple[float, float, float, float]]  # K: xmin, ymin, xmax, ymax, as written
    difficult: list[bool]  # K


@dataclass(frozen=True)
class Split:
    """The images of one split, or of the union of several, in the order of the lists."""

    location: str
    folders: tuple[str, ...]
    parts: list[int]  # number of an image's folder
    ids: list[str]
    names: list[str]  # of the images' files, under their folder
    records: list[Record]

    @property
    def classes(self) -> set[str]:
        return {name for record in self.records for name in record.classes}


def open_voc(train: str, val: str, keep_empty: bool = True, cache: str | None = None) -> list[AnnotatedSource]:
    """Open the splits for training and validation; for one alone see `open_split`.

    The classes of both are the 20 in their customary order where no other is found, else those found in either, sorted:
    a class that one split lacks keeps its label.

    Args:
        train: `folder:split`, several joined by commas: `VOC2007:trainval,VOC2012:trainval` is what the literature
            calls 07+12, `VOC2007:trainval,VOC2007:test,VOC2012:trainval` 07++12.
        val: likewise.
        keep_empty: False: training without the images that have nothing to be trained on.
        cache: local directory; `$XDG_CACHE_HOME/raybone` by default.

    Raises:
        UserError: no such folder or split, a list of one class, damaged annotations. Names the file.
    """
    splits = [read_split(location) for location in (train, val)]
    categories = categories_of(splits[0].classes | splits[1].classes)
    return [open_split(split, categories, keep, cache) for split, keep in zip(splits, (keep_empty, True), strict=True)]


def open_split(
    split: Split, categories: Categories, keep_empty: bool = True, cache: str | None = None
) -> AnnotatedSource:
    """What was read as a source.

    Boxes are 1-based and hold their last pixel, so that x1 = xmin - 1 and x2 = xmax. Objects marked difficult are not
    trained on. Images are numbered 1..N; VOC's own ids are the stems of `file_name` in `ground_truth`.
    """
    records = split.records
    corners = np.array([box for record in records for box in record.boxes], np.float64).reshape(-1, 4)
    boxes = np.concatenate([corners[:, :2] - 1, corners[:, 2:] - corners[:, :2] + 1], 1)
    label = {name: k for k, name in enumerate(categories.names, 1)}
    num = len(boxes)
    objects = {
        "image": np.repeat(np.arange(len(records)), [len(record.boxes) for record in records]),
        "boxes": boxes,
        "labels": np.array([label[name] for record in records for name in record.classes], np.int64),
        "areas": boxes[:, 2] * boxes[:, 3],
        "crowd": np.zeros(num, bool),
        "difficult": np.array([one for record in records for one in record.difficult], bool),
    }
    sizes = np.array([record.size for record in records], np.int32)
    images = (split.names, np.array(split.parts, np.int64), np.arange(1, len(records) + 1), sizes)
    arrays = tabulate("voc", images, categories, objects, flatten([[]] * num, [b""] * num))
    index = save("voc", arrays["fingerprint"].tobytes().decode(), arrays, cache)
    return AnnotatedSource(index, split.folders, keep_empty)


def categories_of(names: set[str]) -> Categories:
    """VOC's twenty where they suffice, else the names in sorted order; numbered from 1."""
    ordered = CLASSES if names <= set(CLASSES) else tuple(sorted(names))
    return Categories(ordered, tuple(range(1, len(ordered) + 1)))


def read_split(location: str) -> Split:
    """Read the lists and annotations of `folder:split[,folder:split]`.

    Raises:
        UserError: see `open_voc`.
    """
    folders, parts, ids = list_images(location)
    if len(set(zip(parts, ids, strict=True))) < len(ids):
        raise UserError(f"{location}: lists images twice; {doctor('voc', location)} names them")
    files = [image_files(folder) for folder in folders]
    with ThreadPoolExecutor(THREADS) as pool:
        records = list(pool.map(lambda part, name: _record(location, folders[part], name), parts, ids))
    names = [f"{IMAGES}/{files[part].get(name, name + '.jpg')}" for part, name in zip(parts, ids, strict=True)]
    return Split(location, folders, parts, ids, names, records)


def list_images(location: str) -> tuple[tuple[str, ...], list[int], list[str]]:
    """The folders of a location, and for every listed image the number of its folder and its id.

    Raises:
        UserError: not `folder:split`, no such folder or list, an empty one, or one of the lists of a single class.
    """
    folders, parts, ids = [], [], []
    for part in location.split(","):
        folder, _, split = part.strip().rpartition(":")
        if not folder or not split or "/" in split:
            raise UserError(f"{part}: Pascal VOC is given as folder:split, such as VOC2007:trainval")
        listed = _list(folder, split)
        if folder not in folders:
            folders.append(folder)
        parts += [folders.index(folder)] * len(listed)
        ids += listed
    return tuple(folders), parts, ids


def _list(folder: str, split: str) -> list[str]:
    name = f"{LISTS}/{split}.txt"
    where = shown(folder, name)
    try:
        lines = [line.strip() for line in read(folder, name).decode().splitlines()]
    except OSError as error:
        raise UserError(f"{where}: {error.strerror or error}; {_lists(folder)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not a list of names: {error}") from error
    ids = list(filter(None, lines))
    if not ids:
        raise UserError(f"{where}: lists no images")
    if all(line.split()[-1] in ("1", "-1", "0") and len(line.split()) == 2 for line in ids):
        raise UserError(
            f"{where}: says for one class which images show it (1, -1, 0); give the list of all images, such as"
            f" {split.rpartition('_')[2]}"
        )
    return ids


def _lists(folder: str) -> str:
    fs, root = filesystem(folder)
    if not fs.isdir(f"{root}/{LISTS}"):
        return f"a folder of Pascal VOC holds {LISTS}, {ANNOTATIONS} and {IMAGES}"
    names = sorted(PurePath(path).stem for path in fs.ls(f"{root}/{LISTS}", detail=False))
    return f"there are {', '.join([name for name in names if '_' not in name] or names[:10])}"


def image_files(folder: str) -> dict[str, str]:
    """The images of a folder, id -> file name; of two of one name the .jpg, VOC's own."""
    fs, root = filesystem(folder)
    try:
        found = [PurePath(path) for path in fs.ls(f"{root}/{IMAGES}", detail=False)]
    except OSError as error:
        raise UserError(f"{shown(folder, IMAGES)}: {error.strerror or error}") from error
    suffixes = {suffix: place for place, suffix in enumerate(image_suffixes())}  # .jpg is first
    images = [path for path in found if path.suffix.lower() in suffixes]
    images.sort(key=lambda path: suffixes[path.suffix.lower()], reverse=True)
    return {path.stem: path.name for path in images}


def parse(data: bytes) -> ElementTree.Element:
    """The `annotation` element. The parser fetches nothing: external entities are errors, and expat bounds the others.

    Raises:
        ValueError: not well-formed.
    """
    try:
        return ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ValueError(f"damaged XML: {error}") from error


def record_of(root: ElementTree.Element) -> Record:
    """The parts of an annotation that are read. Numbers may have a fraction, as some tools write them.

    Raises:
        ValueError: one is missing or no number. Names it.
    """
    objects = root.findall("object")
    names = [(one.findtext("name") or "").strip() for one in objects]
    if not all(names):
        raise ValueError("an object has no name")
    height, width = (int(_number(root, f"size/{key}")) for key in ("height", "width"))
    if height < 1 or width < 1:
        raise ValueError(f"size/width and size/height are {width} and {height}")
    return Record(
        (height, width),
        names,
        [(_side(one, "xmin"), _side(one, "ymin"), _side(one, "xmax"), _side(one, "ymax")) for one in objects],
        [(one.findtext("difficult") or "0").strip() not in ("", "0") for one in objects],
    )


def _side(element: ElementTree.Element, key: str) -> float:
    return _number(element, f"bndbox/{key}")


def _number(element: ElementTree.Element, path: str) -> float:
    text = element.findtext(path)
    try:
        return float(text or "")
    except ValueError as error:
        raise ValueError(f"{path} is {'missing' if text is None else repr(text)}") from error


def _record(location: str, folder: str, name: str) -> Record:
    path = f"{ANNOTATIONS}/{name}.xml"
    try:
        return record_of(parse(read(folder, path)))
    except OSError as error:
        fault = error.strerror or error
    except (ValueError, OverflowError) as error:
        fault = error
    raise UserError(f"{shown(folder, path)}: {fault}; all faults: {doctor('voc', location)}")
