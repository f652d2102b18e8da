"""What can be wrong with COCO annotations."""

import math
from collections import Counter
from typing import Any

import numpy as np
from pycocotools import mask as rle

from backbone.data.findings import Findings
from backbone.errors import UserError
from backbone.storage import filesystem
from detection.data.annotated import THINNEST
from detection.data.coco import FARTHEST, Malformed, no_collection, read_json, run_lengths, tabulate_coco, usable
from detection.data.findings import Survey
from detection.data.segments import flatten, run_totals

BORDER = 0.01  # pixels a box may reach over the border before it is worth a word: COCO rounds to hundredths
BROAD = 64  # pixels
UNIQUE = "give each an id of its own"
COUNTED = "left out of training; scoring keeps them, as pycocotools does, and counts each as missed: remove them"


def examine_coco(findings: Findings, location: str, annotations: str) -> Survey:
    """Look over an instances JSON.

    Raises:
        UserError: it is not there.
    """
    fs, path = filesystem(annotations)
    if not fs.exists(path):
        raise UserError(f"{annotations}: no such file; name the annotations by --annotations")
    try:
        with no_collection():
            tree = read_json(annotations)
            return _examine(findings, location, tree)
    except UserError as error:
        findings.add("error", "annotations that cannot be read", "copy or export the file again", error)
        return Survey()


def _examine(findings: Findings, location: str, tree: dict[str, Any]) -> Survey:
    survey = Survey()
    sizes = _images(findings, tree["images"], location, survey)
    names = _categories(findings, tree["categories"])
    shown, used, masked = set(), Counter(), 0
    for number in _repeated(one.get("id") for one in tree["annotations"]):
        findings.add("error", "annotation ids given twice", UNIQUE, number)
    for one in tree["annotations"]:
        size = sizes.get(_key(one, "image_id"))
        _references(findings, one, sizes, names)
        box = _box(findings, one, size)
        if one.get("segmentation"):
            masked += 1
            if size:
                _mask(findings, one, size)
        if size and box:
            used[names.get(_key(one, "category_id"), "?")] += 1
            area = one.get("area")
            survey.areas.append(float(area) if _is_number(area) else box[2] * box[3])
            shown.add(one["image_id"])
    survey.with_objects = len(shown)
    survey.per_class = {name: used[name] for name in (*names.values(), *used) if name != "?" or used["?"]}
    _remarks(findings, tree, survey, masked)
    if not findings.errors:
        _final(findings, tree)
    return survey


def _images(findings: Findings, images: list[Any], location: str, survey: Survey) -> dict[Any, tuple[int, int]]:
    """Sizes by image id."""
    if not images:
        findings.add("error", "there are no images", "name another JSON", count=0)
    sizes: dict[Any, tuple[int, int]] = {}
    for number in _repeated(image.get("id") for image in images):
        findings.add("error", "image ids given twice", UNIQUE, number)
    for name in _repeated(image.get("file_name") for image in images):
        findings.add("warning", "files given by two images", "each is trained on and scored on its own", name)
    for place, image in enumerate(images):
        size = image.get("height"), image.get("width")
        whole = all(isinstance(value, int) and value > 0 for value in size)
        if not (whole and isinstance(image.get("id"), int) and isinstance(image.get("file_name"), str)):
            findings.add(
                "error",
                "images without a whole id, height and width above 0, and file_name",
                "complete them",
                image.get("id", f"number {place + 1} of the list"),
            )
        if isinstance(image.get("id"), int):
            sizes[image["id"]] = size if whole else (0, 0)
        if isinstance(image.get("file_name"), str):
            survey.files.append((location, image["file_name"], size if whole else None))
    return sizes


def _categories(findings: Findings, categories: list[Any]) -> dict[Any, str]:
    """Names by category id."""
    good = [one for one in categories if isinstance(one.get("id"), int) and isinstance(one.get("name"), str)]
    if len(good) < len(categories) or not categories:
        bad = [one for one in categories if one not in good]
        findings.add("error", "categories without a whole id and a name", "complete them", bad[:1], max(len(bad), 1))
    for number in _repeated(one["id"] for one in good):
        findings.add("error", "category ids given twice", UNIQUE, number)
    for name in _repeated(one["name"] for one in good):
        findings.add("error", "category names given twice", "join the two, or rename one", name)
    names = {one["id"]: one["name"] for one in sorted(good, key=lambda one: one["id"])}
    handled = "handled: labels are 1..K in the order of ids, and results carry the ids of the data set"
    if 0 in names:
        findings.add("note", "category id 0", handled, names[0])
    if names and len(names) < max(names) - min(names) + 1:
        findings.add("note", "holes in the category ids", handled, f"{len(names)} ids up to {max(names)}")
    return names


def _references(findings: Findings, one: dict[str, Any], sizes: dict[Any, Any], names: dict[Any, str]) -> None:
    number = one.get("id")
    if not isinstance(number, int):
        findings.add("error", "annotations without a whole id", UNIQUE, f"image {one.get('image_id')}")
    elif number == 0:
        remedy = "scored under new ids from 1; pycocotools takes a match with id 0 for none"
        findings.add("warning", "annotation id 0", remedy, "annotation 0")
    if _key(one, "image_id") not in sizes:
        remedy = "add the image, or remove the annotation"
        findings.add("error", "annotations of unknown images", remedy, f"{number} (image {one.get('image_id')})")
    if _key(one, "category_id") not in names:
        remedy = "add the category, or correct the annotation"
        example = f"{number} (category {one.get('category_id')})"
        findings.add("error", "annotations of unknown categories", remedy, example)
    if one.get("area") is None:
        remedy = "computed from the segmentation, or else from the box"
        findings.add("warning", "annotations without area", remedy, number)
    elif not _is_number(one["area"]):
        findings.add("error", "annotations whose area is no number", "remove the area: it is computed", number)
    if one.get("iscrowd") is None:
        findings.add("warning", "annotations without iscrowd", "taken as 0: single objects", number)
    elif one["iscrowd"]:
        findings.add("note", "crowds", "left out of training, ignored in scoring, as pycocotools does", number)


def _box(findings: Findings, one: dict[str, Any], size: tuple[int, int] | None) -> list[float] | None:
    box, number = one.get("bbox"), one.get("id")
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        findings.add("error", "boxes that are not four numbers", "give x, y, width, height", f"{number}: {box}")
        return None
    if not all(map(math.isfinite, box)):
        findings.add("error", "boxes that are not finite", "correct or remove them", f"{number}: {box}")
        return None
    x, y, width, height = box
    if width <= 0 or height <= 0:
        findings.add("warning", "boxes without width or height", COUNTED, f"{number}: {box}")
    elif min(width, height) < THINNEST:
        findings.add("warning", "boxes thinner than a pixel", COUNTED, f"{number}: {box}")
    elif size and size[0]:
        right, bottom = min(x + width, size[1]) - max(x, 0), min(y + height, size[0]) - max(y, 0)
        if min(right, bottom) < THINNEST:
            findings.add("warning", "boxes wholly outside the image", COUNTED, f"{number}: {box}")
        elif width - right > BORDER or height - bottom > BORDER:
            remedy = "cut off at the border for training; scored as they are"
            findings.add("warning", "boxes that reach outside the image", remedy, f"{number}: {box}")
    return box


def _mask(findings: Findings, one: dict[str, Any], size: tuple[int, int]) -> None:
    segmentation, number = one["segmentation"], one.get("id")
    again = "draw or export it again"
    try:
        if isinstance(segmentation, dict):
            if list(segmentation["size"]) != list(size):
                example = f"{number}: {segmentation['size']}, image {list(size)}"
                findings.add("error", "masks of another size than the image", again, example)
                return
            counts = run_lengths(segmentation)
            if int(run_totals(flatten([[]], [counts]))[0]) != size[0] * size[1]:
                findings.add("error", "masks whose run lengths do not add up to the image", again, number)
                return
            encoded: Any = {"size": list(size), "counts": counts}
        else:
            few = [polygon for polygon in segmentation if not usable(polygon)]
            if few:
                remedy = "passed over"
                findings.add("warning", "polygons of less than three points or an odd number", remedy, number, len(few))
            rings = [np.array(polygon, np.float64) for polygon in segmentation if usable(polygon)]
            if not all((np.abs(ring) < FARTHEST).all() for ring in rings):
                raise ValueError("coordinates out of all bounds")
            if not rings:
                return
            beyond = max(max((-ring).max(), (ring.reshape(-1, 2) - size[::-1]).max()) for ring in rings)
            if beyond > 1:
                findings.add("warning", "polygons that reach outside the image", "cut off at the border", number)
            if any(map(_is_broad, rings)) and beyond <= 1:
                return
            encoded = rle.merge(rle.frPyObjects([ring.tolist() for ring in rings], *size))
        if not rle.area(encoded):
            remedy = "the box is trained on, with an empty mask; " + again
            findings.add("warning", "empty masks", remedy, number)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = "segmentations that are neither polygons nor run lengths"
        findings.add("error", what, again, f"{number}: {' '.join(str(error).split())}")


def _is_broad(ring: np.ndarray) -> bool:
    """Whether a polygon must hold pixels: its area, by the shoelace formula, is far from none. Saves drawing it."""
    x, y = ring[::2], ring[1::2]
    twice = x[:-1] @ y[1:] - y[:-1] @ x[1:] + x[-1] * y[0] - y[-1] * x[0]
    return abs(twice) > 2 * BROAD


def _remarks(findings: Findings, tree: dict[str, Any], survey: Survey, masked: int) -> None:
    for name, count in survey.per_class.items():
        if not count:
            findings.add("warning", "categories never used", "the detector learns a class it never sees", name)
    without = len(survey.files) - survey.with_objects
    if without > 0:
        remedy = "trained on as background; data.keep_empty false leaves them out"
        findings.add("note", "images without objects", remedy, count=without)
    lacking = len(tree["annotations"]) - masked
    if lacking and masked:
        remedy = "boxes can be trained; Mask R-CNN needs a segmentation for every object"
        first = next(one.get("id") for one in tree["annotations"] if not one.get("segmentation"))
        findings.add("warning", "annotations without segmentation, while others have one", remedy, first, lacking)
    elif lacking:
        findings.add("note", "annotations without segmentation", "boxes alone can be trained", count=lacking)


def _final(findings: Findings, tree: dict[str, Any]) -> None:
    """The reader has the last word: what it refuses is an error, whatever was looked for above."""
    try:
        tabulate_coco(tree)
    except Malformed as error:
        findings.add("error", "annotations the reader refuses", "correct them", error)


def _repeated(values: Any) -> list[Any]:
    counts = Counter(value for value in values if isinstance(value, int | str))
    return [value for value, count in counts.items() if count > 1]


def _key(one: dict[str, Any], name: str) -> int | None:
    return one[name] if isinstance(one.get(name), int) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
