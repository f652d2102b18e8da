"""Pascal VOC's segmentation: ImageSets/Segmentation, SegmentationClass and JPEGImages; no Annotations are read.

A PNG of SegmentationClass holds a number for every pixel, whatever colours its palette shows: 0 background, 1 to 20 the
classes, 255 what is ignored (the borders of objects, and difficult ones).
"""

import hashlib
import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as rle

from backbone.data.ahead import Ahead
from backbone.data.findings import Finding
from backbone.data.index import digest, is_fresh, map_arrays, pack, store, unpack, unpack_all
from backbone.data.listing import THREADS
from backbone.errors import BadImage, StorageError, UserError
from detection.data.annotated import decode_as, index_path, read, shown
from detection.data.contract import Categories, Objects
from detection.data.label_map import IGNORED, regions
from detection.data.voc import CLASSES
from detection.data.voc_lists import IMAGES, MAP_LISTS, MAPS, image_files, list_images
from detection.data.voc_xml import NotText, text_of

NAMES = "labelmap.txt"  # CVAT and Datumaro write it: name:colour:parts:actions, in the order of the numbers
INDEXED = ("P", "L")  # Pillow's modes of PNGs that hold numbers


def open_segments(location: str, cache: str | None = None) -> "VocSegments":
    """Open `folder:split[,folder:split]`.

    Classes are VOC's twenty, or those of labelmap.txt in the folder.

    Raises:
        UserError: no such folder or list, a missing or damaged file, PNGs that hold colours, or a number that is no
            class. Names the file.
    """
    folders, parts, entries = list_images(location, MAP_LISTS)
    categories = _categories(folders)
    images = [image_files(folder) for folder in folders]
    lost = [(part, name) for part, name in zip(parts, entries, strict=True) if name not in images[part]]
    if lost:
        part, name = lost[0]
        raise UserError(
            f"{shown(folders[part], f'{IMAGES}/{name}.jpg')}: is missing, and {len(lost)} image(s) in all; restore "
            "them, or take them from the list"
        )
    if len(set(zip(parts, entries, strict=True))) < len(entries):
        raise UserError(f"{location}: lists an image twice; name each once")
    places = list(zip([folders[part] for part in parts], entries, strict=True))
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = list(pool.map(lambda place: hashlib.sha256(_map_bytes(*place)).hexdigest(), places))
        fingerprint = digest("voc segments", *categories.names, *map(str, parts), *entries, *hashes)
        files = [images[part][name][0] for part, name in zip(parts, entries, strict=True)]
        index, state = index_path("voc-segments", digest(fingerprint, *files), cache)
        if not is_fresh(index, state):
            maps = list(pool.map(lambda place: _look(*place, categories), places))
            pairs = [(i, label) for i, (_, labels) in enumerate(maps) for label in labels]
            arrays = pack("names", entries) | pack("files", files) | pack("classes", categories.names)
            arrays["parts"] = np.array(parts, np.int64)
            arrays["sizes"] = np.array([size for size, _ in maps], np.int32).reshape(-1, 2)
            arrays["regions"] = np.array(pairs, np.int64).reshape(-1, 2)
            arrays["fingerprint"] = np.frombuffer(fingerprint.encode(), np.uint8)
            index = store([index], state, arrays)
    return VocSegments(index, folders, fingerprint)


class VocSegments:
    """A `DetectionSource` whose objects are the regions of a class in an image, all of them one. Pickled as paths."""

    def __init__(self, index: Path, folders: tuple[str, ...], fingerprint: str) -> None:
        """Open.

        Args:
            index: the folder of arrays.
            folders: under which images and maps lie.
            fingerprint: what the index must hold.

        Raises:
            UserError: it holds another.
        """
        self._arguments = (index, folders, fingerprint)
        self._arrays, self._folders = map_arrays(index), folders
        self._ahead = Ahead()
        self.fingerprint = self._arrays["fingerprint"].tobytes().decode()
        if self.fingerprint != fingerprint:
            raise UserError(f"{', '.join(folders)}: changed while in use ({index} was rewritten); start again")
        names = unpack_all(self._arrays, "classes")
        self.categories = Categories(names, tuple(range(1, len(names) + 1)))
        self.sizes: np.ndarray = self._arrays["sizes"]
        self.image_ids = np.arange(1, len(self.sizes) + 1)
        self.has_masks = True
        self.dropped: dict[str, int] = {}
        self.findings: list[Finding] = []

    def __len__(self) -> int:
        return len(self.image_ids)

    def __reduce__(self) -> tuple:
        return VocSegments, self._arguments

    def _place(self, i: int) -> tuple[str, str]:
        """Folder and name of image i."""
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        return self._folders[self._arrays["parts"][i]], unpack(self._arrays, "names", i)

    def name(self, i: int) -> str:
        """Path or URL of the image."""
        return shown(self._place(i)[0], f"{IMAGES}/{unpack(self._arrays, 'files', i)}")

    def image(self, i: int) -> np.ndarray:
        """Image i, uint8 [H, W, 3], RGB, of the size of its map; BadImage where it is not, or cannot be read."""
        try:
            data = self._ahead.take(i, self._read)
        except StorageError:
            raise
        except OSError as error:
            raise BadImage(f"{self.name(i)}: {error.strerror or error}") from error
        return decode_as(data, self.name(i), *map(int, self.sizes[i]))

    def ahead(self, ids: Iterable[int]) -> None:
        """Begin to read these images, which are going to be asked for in this order, where they lie at URLs."""
        if any("://" in folder for folder in self._folders):
            self._ahead.begin(ids, self._read)

    def _read(self, i: int) -> bytes:
        return read(self._place(i)[0], f"{IMAGES}/{unpack(self._arrays, 'files', i)}")

    def label_map(self, i: int) -> np.ndarray:
        """The class of every pixel of image i, uint8 [H, W], as in its file."""
        return _decoded(_map_bytes(*self._place(i)), *self._place(i), self.categories)

    def objects(self, i: int, masks: bool = False) -> Objects:
        """The region of each class in image i, and the box around it."""
        found = regions(self.label_map(i), self.categories, 0)
        boxes = np.array([one["bbox"] for one in found], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([one["category_id"] for one in found], np.int64)
        return Objects(boxes, labels, [rle.decode(one["segmentation"]) for one in found] if masks else [])

    def num_objects(self) -> np.ndarray:
        """int64 [N]: of how many classes an image shows something."""
        return np.bincount(self._arrays["regions"][:, 0], minlength=len(self)).astype(np.int64)

    def ground_truth(self, ids: np.ndarray | None = None) -> dict[str, Any]:
        """The regions of images `ids` (all by default) as a COCO instances dict; what is ignored is none."""
        images, annotations = [], []
        for i in range(len(self)) if ids is None else ids.tolist():
            height, width = self.sizes[i].tolist()
            file = unpack(self._arrays, "files", i)
            images.append({"id": int(self.image_ids[i]), "file_name": file, "height": height, "width": width})
            for one in regions(self.label_map(i), self.categories, images[-1]["id"]):
                annotations.append({"id": len(annotations) + 1, **one, "iscrowd": 0})
        categories = [{"id": k, "name": name} for k, name in enumerate(self.categories.names, 1)]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _categories(folders: tuple[str, ...]) -> Categories:
    """The folders' classes, which must be the same."""
    first, *others = (_names(folder) for folder in folders)
    for folder, names in zip(folders[1:], others, strict=True):
        if names != first:
            raise UserError(f"{folder}: has other classes than {folders[0]}; give both the same {NAMES}")
    return Categories(first, tuple(range(1, len(first) + 1)))


def _names(folder: str) -> tuple[str, ...]:
    """Of labels 1, 2, ...: labelmap.txt's, or VOC's twenty where there is none."""
    try:
        lines = text_of(read(folder, NAMES))[0].splitlines()
    except FileNotFoundError:
        return CLASSES
    except NotText as error:
        raise UserError(f"{shown(folder, NAMES)}: not a list of names: {error}") from error
    names = [line.split(":")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
    if "ignored" in names[:-1]:
        raise UserError(
            f"{shown(folder, NAMES)}: ignored stands before {names[names.index('ignored') + 1]}, whose number is its "
            "place in the list and cannot be told; write ignored, which is 255, last, or leave it out"
        )
    names = [name for name in names if name != "ignored"]
    if len(names) < 2 or names[0] != "background" or len(set(names)) < len(names):
        raise UserError(f"{shown(folder, NAMES)}: begin with background, and name each class once, a line each")
    return tuple(names[1:])


def _map_bytes(folder: str, name: str) -> bytes:
    file = f"{MAPS}/{name}.png"
    try:
        return read(folder, file)
    except StorageError:
        raise  # no property of the file
    except OSError as error:
        raise UserError(
            f"{shown(folder, file)}: {error.strerror or error}; detector.kind semantic needs a PNG of {MAPS} for every "
            f"image of {MAP_LISTS}: restore it, or take {name} from the list"
        ) from error


def _look(folder: str, name: str, categories: Categories) -> tuple[tuple[int, int], list[int]]:
    """Height and width of a map, and the labels in it."""
    classes = _decoded(_map_bytes(folder, name), folder, name, categories)
    height, width = classes.shape
    return (height, width), [label for label in np.unique(classes).tolist() if label not in (0, IGNORED)]


def _decoded(data: bytes, folder: str, name: str, categories: Categories) -> np.ndarray:
    file = shown(folder, f"{MAPS}/{name}.png")
    try:
        with Image.open(io.BytesIO(data)) as png:
            mode, classes = png.mode, np.array(png)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{file}: cannot be read: {error}; restore it") from error
    if mode not in INDEXED:
        raise UserError(
            f"{file}: holds colours (mode {mode}), not numbers of classes; write PNGs with a palette, as VOC's are"
        )
    outside = [label for label in np.unique(classes).tolist() if len(categories) < label < IGNORED]
    if outside:
        raise UserError(
            f"{file}: {outside[0]} is the number of no class; they are 0 background, 1 {categories.names[0]} to "
            f"{len(categories)} {categories.names[-1]}, and 255 ignored; correct the file, or name your classes in "
            f"{shown(folder, NAMES)}, a line each, the first background"
        )
    return classes
