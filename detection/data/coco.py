"""COCO: a folder of images and an instances JSON (https://cocodataset.org/#format-data)."""

import gc
import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from backbone.data.index import Arrays, is_fresh
from backbone.errors import UserError
from backbone.storage import filesystem
from detection.data.annotated import AnnotatedSource, doctor, index_path, save, tabulate
from detection.data.contract import Categories
from detection.data.segments import flatten, run_totals

FARTHEST = 1e6  # pixels: pycocotools needs memory in proportion to a polygon's coordinates


def open_coco(
    location: str, annotations: str = "", keep_empty: bool = True, cache: str | None = None
) -> AnnotatedSource:
    """Open one split.

    Labels are in the order of category ids. The JSON is parsed once and kept in the cache as flat arrays, under its
    SHA-256. Missing `iscrowd` is 0, missing `area` that of the segmentation or else of the box; polygons of less than
    three points or of an odd number of coordinates are passed over, as in detectron2.

    Args:
        location: folder or URL of the images.
        annotations: path or URL of the JSON; `annotations/instances_<folder>.json` beside the folder by default.
        keep_empty: False: without the images that have nothing to be trained on.
        cache: local directory; `$XDG_CACHE_HOME/raybone` by default.

    Raises:
        UserError: no such folder or file, damaged JSON, or annotations that cannot be meant. Names the file and fault.
    """
    path = annotations_of(location, annotations)
    fs, root = filesystem(location)
    if not fs.isdir(root):
        raise UserError(f"{location}: no such folder of images")
    key = _sha256(path)
    index, state = index_path("coco", key, cache)
    if not is_fresh(index, state):
        try:
            with no_collection():
                arrays = tabulate_coco(read_json(path))
        except Malformed as error:
            raise UserError(f"{path}: {error}; all its faults: {doctor('coco', location, annotations)}") from error
        index = save("coco", key, arrays, cache)
    return AnnotatedSource(index, (location,), keep_empty)


def annotations_of(location: str, annotations: str = "") -> str:
    """The JSON that belongs to a folder or URL of images, if none is named."""
    if annotations:
        return annotations
    place, mark, query = location.partition("?") if "://" in location else (location, "", "")
    if "://" not in place:
        place = str(Path(place).expanduser().absolute())
    parent, _, name = place.rstrip("/").rpartition("/")
    return f"{parent}/annotations/instances_{name}.json{mark}{query}"


@contextmanager
def no_collection() -> Generator[None]:
    """Python's collector would go through millions of young objects again and again: COCO took thrice the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class Malformed(ValueError):
    """Annotations that the reader refuses: says which."""


def _sha256(url: str) -> str:
    fs, path = filesystem(url)
    try:
        with fs.open(path, "rb") as file:
            sha = hashlib.sha256()
            while block := file.read(1 << 22):
                sha.update(block)
            return sha.hexdigest()
    except OSError as error:
        raise UserError(
            f"{url}: {error.strerror or error}; name the annotations by train_annotations and val_annotations"
            " (jobs/doctor.py: --annotations)"
        ) from error


def read_json(url: str) -> dict[str, Any]:
    """The three lists of an instances JSON, `images`, `annotations` and `categories`, all of dicts.

    Raises:
        UserError: it is not there, is damaged, or lacks one of them.
    """
    fs, path = filesystem(url)
    try:
        tree = json.loads(fs.cat_file(path))
    except OSError as error:
        raise UserError(f"{url}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{url}: damaged, not JSON: {error}; copy or download it again") from error
    lists = [tree.get(key) if isinstance(tree, dict) else None for key in ("images", "annotations", "categories")]
    if not all(isinstance(one, list) and all(isinstance(item, dict) for item in one) for one in lists):
        raise UserError(f"{url}: not COCO's instances: it needs images, annotations and categories, each a list")
    return tree


def tabulate_coco(tree: dict[str, Any]) -> Arrays:
    """Arrays by `tabulate` of an instances dict.

    Raises:
        Malformed: a field is missing or of another type, ids are given twice or not defined, masks are impossible.
    """
    images, annotations = tree["images"], tree["annotations"]
    try:
        categories = _categories(tree["categories"])
        ids = _whole([image["id"] for image in images])
        sizes = _whole([(image["height"], image["width"]) for image in images]).astype(np.int32).reshape(-1, 2)
        names = [str(image["file_name"]) for image in images]
        _refuse(not len(ids), "there are no images")
        _refuse(len(set(ids.tolist())) < len(ids), f"{_twice(ids)} images have the id of another")
        _refuse((sizes < 1).any(), "an image has a height or width below 1")
        numbers = _whole([one["id"] for one in annotations])
        _refuse(len(set(numbers.tolist())) < len(numbers), f"{_twice(numbers)} annotations have the id of another")
        image = _places(ids, [one["image_id"] for one in annotations], "image")
        order = np.argsort(image, kind="stable")
        image = image[order]
        annotations = [annotations[j] for j in order.tolist()]
        objects = {
            "image": image,
            "boxes": np.array([one["bbox"] for one in annotations], np.float64).reshape(len(annotations), 4),
            "labels": _places(np.array(categories.ids), [one["category_id"] for one in annotations], "category") + 1,
            "areas": np.array([one.get("area") for one in annotations], np.float64),  # NumPy makes None a NaN
            "crowd": np.array([bool(one.get("iscrowd")) for one in annotations], bool),
            "difficult": np.zeros(len(annotations), bool),
        }
        segments = _segments([one.get("segmentation") for one in annotations], sizes[image])
    except KeyError as error:
        raise Malformed(f"an image, annotation or category lacks {error}") from error
    except (TypeError, OverflowError, ValueError) as error:
        if isinstance(error, Malformed):
            raise
        raise Malformed(f"a field is not what COCO has there: {error}") from error
    return tabulate("coco", (names, np.zeros(len(ids), np.int64), ids, sizes), categories, objects, segments)


def usable(polygon: Any) -> bool:
    """Whether this has three points or more; pycocotools would fail on four numbers, and drop the last of seven."""
    return isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0


def run_lengths(segmentation: dict[str, Any]) -> bytes:
    """Run lengths, compressed or not, in pycocotools' compressed form."""
    counts = segmentation["counts"]
    if isinstance(counts, list):
        return rle.frPyObjects(segmentation, *segmentation["size"])["counts"]
    return counts.encode("ascii")


def _categories(categories: list[dict[str, Any]]) -> Categories:
    _refuse(not categories, "there are no categories")
    numbers = _whole([one["id"] for one in categories]).tolist()
    ids, names = zip(*sorted(zip(numbers, (str(one["name"]) for one in categories), strict=True)), strict=True)
    _refuse(len(set(ids)) < len(ids), f"{_twice(np.array(ids))} categories have the id of another")
    _refuse(len(set(names)) < len(names), "two categories have one name")
    return Categories(names, ids)


def _segments(segmentations: list[Any], sizes: np.ndarray) -> Arrays:
    polygons, counts = [], []
    for segmentation, size in zip(segmentations, sizes.tolist(), strict=True):
        encoded = isinstance(segmentation, dict) and bool(segmentation)
        if encoded:
            _refuse(list(segmentation["size"]) != size, f"a mask is of {segmentation['size']}, its image of {size}")
        counts.append(run_lengths(segmentation) if encoded else b"")
        polygons.append([] if encoded else [one for one in segmentation or () if usable(one)])
    arrays = flatten(polygons, counts)
    _refuse(not (np.abs(arrays["points"]) < FARTHEST).all(), f"a polygon leaves ±{FARTHEST:.0e} pixels")
    there = np.diff(arrays["counts_offsets"]) > 0
    wrong = (run_totals(arrays) != sizes.prod(1, dtype=np.int64)) & there
    _refuse(wrong.any(), f"the run lengths of {np.count_nonzero(wrong)} masks do not add up to the image")
    return arrays


def _places(known: np.ndarray, wanted: list[Any], what: str) -> np.ndarray:
    """Where each of `wanted` stands in `known`, int64."""
    values = _whole(wanted)
    order = np.argsort(known)
    found = order[np.minimum(np.searchsorted(known, values, sorter=order), len(known) - 1)].astype(np.int64)
    unknown = values[known[found] != values]
    _refuse(len(unknown), f"{len(unknown)} annotations name an unknown {what} id, such as {unknown[:1].tolist()}")
    return found


def _whole(values: list[Any]) -> np.ndarray:
    """Whole numbers, int64: NumPy would cut off the fraction of others."""
    array = np.array(values) if values else np.zeros(0, np.int64)
    if array.dtype.kind != "i":
        raise Malformed("ids, heights and widths must be whole numbers, and one is not")
    return array


def _twice(ids: np.ndarray) -> int:
    return len(ids) - len(set(ids.tolist()))


def _refuse(fault: object, message: str) -> None:
    if fault:
        raise Malformed(message)
