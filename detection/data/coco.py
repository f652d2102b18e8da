"""COCO: a folder of images and an instances JSON (https://cocodataset.org/#format-data)."""

import gc
import hashlib
import json
import posixpath
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from backbone.data.findings import Findings, from_json
from backbone.data.formats import HEAD, what_is
from backbone.data.index import Arrays, digest, in_turn, is_fresh, map_arrays, pack, tell, unpack_all
from backbone.errors import UserError
from backbone.storage import filesystem
from detection.data.annotated import AnnotatedSource, doctor, index_path, save
from detection.data.coco_table import tabulate_coco
from detection.data.files import locate

KEYS = ("images", "annotations", "categories")
NAME_IT = "name the annotations by train_annotations and val_annotations (jobs/doctor.py: --annotations)"
# What else is written as JSON, by a key of the file or of its first annotation.
OTHERS = {
    "shapes": "LabelMe's file of one image; export COCO from it, such as by labelme2coco",
    "_via_img_metadata": "a project of the VGG Image Annotator; export COCO from it",
    "log": "a notebook or log",
}
OTHER_ANNOTATIONS = {
    "caption": "captions; give the instances, such as instances_val2017.json",
    "segments_info": "panoptic segments; give the instances, such as instances_val2017.json",
}


def open_coco(
    location: str, annotations: str = "", keep_empty: bool = True, cache: str | None = None
) -> AnnotatedSource:
    """Open one split.

    Labels are in the order of category ids. The JSON is parsed once and kept in the cache as flat arrays, under its
    SHA-256. `iscrowd` and `area` are taken as `settle` says: in words too, and computed where they cannot be meant.
    Polygons of less than three points or of an odd number of coordinates are passed over, as in detectron2. Images are
    looked for in the folder, see `files.locate`. What was read otherwise than written is among `findings`.

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
        with in_turn(index):
            if not is_fresh(index, state):
                index = save("coco", key, _tabulate(path, doctor("coco", location, annotations)), cache)
    arrays = map_arrays(index)
    findings = Findings().join(from_json(arrays["findings"].tobytes()))
    written = unpack_all(arrays, "names")
    names, _ = locate(location, written, findings)
    if names != list(written):
        index = save("coco", digest(key, *names), arrays | pack("names", names), cache)
    return AnnotatedSource(index, (location,), keep_empty, findings=findings.sorted())


def _tabulate(path: str, doctor_it: str) -> Arrays:
    with no_collection():
        table = tabulate_coco(read_json(path))
    refused = table.refused.sorted()
    if refused:
        more = f" (and {len(refused) - 1} other kinds of fault)" if len(refused) > 1 else ""
        raise UserError(f"{path}: {refused[0].as_line()}{more}; all its faults: {doctor_it}")
    return table.arrays | tell(table.findings)


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


def _sha256(url: str) -> str:
    fs, path = filesystem(url)
    try:
        with fs.open(path, "rb") as file:
            sha = hashlib.sha256()
            while block := file.read(1 << 22):
                sha.update(block)
            return sha.hexdigest()
    except OSError as error:
        raise UserError(f"{url}: {error.strerror or error}; {missing(url)}") from error


def missing(url: str) -> str:
    """What to do where there is no JSON: name one of those that lie about, if there are any."""
    fs, path = filesystem(url)
    parent = posixpath.dirname(posixpath.dirname(path))
    image_folder = posixpath.basename(path).removeprefix("instances_").removesuffix(".json")
    found = [one for folder in ("annotations", image_folder, "") for one in _jsons(fs, f"{parent}/{folder}")]
    there = ", ".join(dict.fromkeys(found[:5]))
    return NAME_IT + (f"; there are {there}" if there else "")


def _jsons(fs: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    try:
        return sorted(path for path in fs.ls(folder.rstrip("/"), detail=False) if path.endswith(".json"))
    except OSError:
        return []


def read_json(url: str, keys: Sequence[str] = KEYS) -> dict[str, Any]:
    """The three lists of an instances JSON, `images`, `annotations` and `categories`, all of dicts.

    `keys`: those that must be there, all or the first alone.

    UTF-8, UTF-16 or UTF-32, with a byte order mark or without.

    Raises:
        UserError: it is not there, is damaged, or lacks one of them.
    """
    fs, path = filesystem(url)
    try:
        data = fs.cat_file(path)
        tree = json.loads(data)
    except OSError as error:
        raise UserError(f"{url}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{url}: {_damage(data, error)}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{url}: not COCO's instances: {_kind_of_list(tree)}")
    for key in keys:
        if not (isinstance(tree.get(key), list) and all(isinstance(item, dict) for item in tree[key])):
            has = f"{key} is {'null' if tree[key] is None else 'something else'}" if key in tree else f"it has no {key}"
            needs = f"{', '.join(KEYS[:2])} and {KEYS[2]}, each" if keys == KEYS else f"{keys[0]},"
            raise UserError(f"{url}: not COCO's instances: it needs {needs} a list of objects, but {has}{_other(tree)}")
    return tree


def _damage(data: bytes, error: Exception) -> str:
    """Why bytes are not JSON, and what to do."""
    is_json = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")
    if not is_json and (other := what_is(data[:HEAD])):
        return other
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 at byte {error.start}; save it as UTF-8"
    return f"damaged, not JSON: {error}; copy or download it again"


def _kind_of_list(tree: Any) -> str:
    if not isinstance(tree, list):
        return f"it is {type(tree).__name__}, not an object with images, annotations and categories"
    first = tree[0] if tree and isinstance(tree[0], dict) else {}
    if "score" in first:
        return "it is a list of results (with score); give the annotations that they were judged against"
    if "bbox" in first or "segmentation" in first:
        return "it is a list of annotations alone; give the whole export, with images and categories"
    return "it is a list, not an object with images, annotations and categories"


def _other(tree: dict[str, Any]) -> str:
    annotations = tree.get("annotations")
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    kinds = [what for key, what in OTHERS.items() if key in tree]
    if isinstance(first, dict):
        kinds += [what for key, what in OTHER_ANNOTATIONS.items() if key in first]
    return f"; this looks like {kinds[0]}" if kinds else ""
