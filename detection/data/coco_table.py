"""An instances JSON as flat arrays, with all that is wrong with it: what the reader and the doctor go by alike."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle

from backbone.data.findings import Finding, Findings
from backbone.data.index import Arrays
from backbone.errors import printable
from detection.data import units
from detection.data.annotated import THINNEST, tabulate, within
from detection.data.contract import Categories
from detection.data.json_values import FARTHEST, is_name, is_number, is_pair, is_pairs, is_side, is_whole
from detection.data.segments import flatten, outlines, run_totals
from detection.data.settle import TWICE, add_alike, add_rows, flag, given_twice, settle_areas

BORDER = 0.01  # pixels a box may reach over the border before it is worth a word: COCO rounds to hundredths

UNIQUE = "give each an id of its own"
AGAIN = "draw or export it again"
COUNTED = "left out of training; scoring keeps them, as pycocotools does, and counts each as missed: remove them"
WHOLE = "write whole numbers, in images, categories and annotations alike: 7, not '7' or 7.5"
MASKLESS = "segmentations that are neither polygons nor run lengths"


# What is read of a record: two with one id that agree in it are one, whatever else they say.
READ = {"images": ("file_name", "coco_url", "height", "width"), "categories": ("name",)}


class Table(NamedTuple):
    """What an instances JSON holds."""

    arrays: Arrays  # of what is sound, by `annotated.tabulate`; empty where there are no images or categories
    numbers: np.ndarray  # int64 [A], the ids of its annotations
    refused: Findings  # what cannot be meant: the reader refuses the whole
    findings: Findings  # the rest: errors, which training and evaluation refuse, and what is read otherwise or left out


class Rows(NamedTuple):
    """Annotations that can be read, A of them, sorted by image."""

    numbers: np.ndarray  # int64 [A]
    image: np.ndarray  # int64 [A], 0..N-1
    labels: np.ndarray  # int64 [A], 1..K
    boxes: np.ndarray  # float64 [A, 4], x y width height as written
    records: list[dict[str, Any]]


def tabulate_coco(tree: dict[str, Any]) -> Table:
    """Arrays of an instances dict of three lists of dicts. Nothing that is in it raises."""
    refused, findings = Findings(), Findings()
    names, ids, sizes = _images(refused, findings, tree["images"])
    records = _once(findings, tree["annotations"], "annotations")
    categories = _categories(refused, findings, tree["categories"], records)
    named = {key: {repr(one.get("id")) for one in tree[key]} for key in ("images", "categories")}
    rows = _rows(refused, records, ids, categories, named)
    if not names or not categories.names:
        return Table({}, rows.numbers, refused, findings)
    segments = _segments(refused, findings, rows, sizes[rows.image])
    objects = _settle(findings, rows, sizes[rows.image], segments)
    add_alike(findings, categories.names)
    images = names, np.zeros(len(ids), np.int64), ids, sizes
    return Table(tabulate("coco", images, categories, objects, segments), rows.numbers, refused, findings)


def table_of_images(
    images: list[Any],
) -> tuple[list[str], np.ndarray, np.ndarray, list[Finding]]:
    """Names, ids int64 [N] and sizes int32 [N, 2] of a list of images alone, and what cannot be meant in it."""
    refused = Findings()
    names, ids, sizes = _images(refused, Findings(), images)
    return names, ids, sizes, refused.sorted()


def _images(refused: Findings, findings: Findings, images: list[Any]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, ids int64 [N] and sizes int32 [N, 2] of those that have them."""
    if not images:
        refused.add("error", "there are no images", "name another JSON", count=0)
    good = []
    for place, one in enumerate(map(_named, _once(findings, images, "images"))):
        has_id = _add_id(refused, "image", one, place)
        sound = {key: is_side(one.get(key)) for key in ("height", "width")} | {
            "file_name": is_name(one.get("file_name"))
        }
        lacks = [f"{key} {one[key]!r:.40}" if key in one else f"no {key}" for key, good_ in sound.items() if not good_]
        if lacks:
            what = "images without a whole id, height and width above 0, and file_name"
            which = one.get("id", f"number {place + 1} of the list")
            refused.add("error", what, "complete them", f"{which}: {', '.join(lacks)}")
        elif has_id:
            good.append(one)
    ids = [one["id"] for one in good]
    for number in _repeated(ids):
        refused.add("error", "image ids given twice", UNIQUE, number)
    names = [str(one["file_name"]) for one in good]
    for name in _repeated(names):
        findings.add("warning", "files given by two images", "each is trained on and scored on its own", name)
    sizes = np.array([(one["height"], one["width"]) for one in good], np.int32).reshape(-1, 2)
    return names, np.array(ids, np.int64), sizes


def _named(image: dict[str, Any]) -> dict[str, Any]:
    """With a file name: LVIS has them in URLs alone, as folder and name."""
    url = image.get("coco_url")
    if "file_name" in image or not is_name(url):
        return image
    return image | {"file_name": "/".join(str(url).rsplit("/", 2)[-2:])}


def _categories(
    refused: Findings, findings: Findings, categories: list[Any], annotations: list[dict[str, Any]]
) -> Categories:
    """In the order of their ids. Of two with one name, one that nothing is annotated with is left out."""
    if not categories:
        refused.add("error", "there are no categories", "name another JSON", count=0)
    good = []
    for place, one in enumerate(_once(findings, categories, "categories")):
        if not _add_id(refused, "category", one, place):
            continue
        if is_name(one.get("name")) and printable(str(one["name"])) == str(one["name"]):
            good.append((one["id"], str(one["name"])))
        else:
            refused.add("error", "categories without a name", "complete them", one["id"])
    for number in _repeated([number for number, _ in good]):
        refused.add("error", "category ids given twice", UNIQUE, number)
    used = {one["category_id"] for one in annotations if is_whole(one.get("category_id"))}
    kept: dict[str, int] = {}
    for number, name in sorted(good, key=lambda pair: (pair[0] not in used, pair[0])):
        if name not in kept:
            kept[name] = number
        elif number not in used:
            remedy = "the other of this name is taken"
            findings.add("warning", "unused categories with the name of another", remedy, f"{number} ({name})")
        elif number != kept[name]:
            refused.add("error", "category names given twice", "join the two, or rename one", name)
    pairs = sorted((number, name) for name, number in kept.items())
    return Categories(tuple(name for _, name in pairs), tuple(number for number, _ in pairs))


def _rows(
    refused: Findings,
    records: list[dict[str, Any]],
    ids: np.ndarray,
    categories: Categories,
    named: dict[str, set[str]],
) -> Rows:
    """Name the annotations that cannot be read, and keep the others. What is wrong with images and categories that are
    there, whose ids (by `repr`) are `named`, is said already.
    """
    places = {number: place for place, number in enumerate(ids.tolist())}
    labels = {number: label for label, number in enumerate(categories.ids, 1)}
    good, image, label = [], [], []
    for place, one in enumerate(records):
        its_image: Any = one.get("image_id")
        its_category: Any = one.get("category_id")
        box, number = one.get("bbox"), one.get("id")
        if not _add_id(refused, "annotation", one, place):
            continue
        known = is_whole(its_image) and its_image in places, is_whole(its_category) and its_category in labels
        for key, value, kind in (("image_id", its_image, "images"), ("category_id", its_category, "categories")):
            if not is_whole(value) and repr(value) not in named[kind]:
                which = f"{key} {value!r:.40}" if key in one else f"no {key}"
                refused.add(
                    "error", "annotations whose image_id or category_id is no whole number", WHOLE, f"{number}: {which}"
                )
        if not known[0] and is_whole(its_image) and repr(its_image) not in named["images"]:
            remedy = "add the image, or remove the annotation"
            refused.add("error", "annotations of unknown images", remedy, f"{number} (image {its_image!r})")
        if not known[1] and is_whole(its_category) and repr(its_category) not in named["categories"]:
            remedy = "add the category, or correct the annotation"
            example = f"{number} (category {its_category!r})"
            refused.add("error", "annotations of unknown categories", remedy, example)
        four = type(box) is list and len(box) == 4 and all(map(is_number, box))
        if not four:
            refused.add("error", "boxes that are not four numbers", "give x, y, width, height", f"{number}: {box}")
        if all(known) and four:
            good.append(one)
            image.append(places[its_image])
            label.append(labels[its_category])
    numbers = np.array([one["id"] for one in good], np.int64)
    for number in _repeated(numbers.tolist()):
        refused.add("error", "annotation ids given twice", UNIQUE, number)
    boxes = np.array([one["bbox"] for one in good], np.float64).reshape(-1, 4)
    order = np.argsort(np.array(image, np.int64), kind="stable")
    return Rows(
        numbers[order],
        np.array(image, np.int64)[order],
        np.array(label, np.int64)[order],
        boxes[order],
        [good[j] for j in order.tolist()],
    )


def _segments(refused: Findings, findings: Findings, rows: Rows, sizes: np.ndarray) -> Arrays:
    """Segmentations by `flatten`; those that are none are refused, and empty here."""
    polygons, counts = [], []
    for one, number, size in zip(rows.records, rows.numbers.tolist(), sizes.tolist(), strict=True):
        segmentation = one.get("segmentation")
        rings, encoded = [], b""
        try:
            if isinstance(segmentation, dict) and segmentation:
                encoded = _run_lengths(segmentation, size)
            elif segmentation:
                rings = _rings(findings, segmentation, number)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = "masks of another size than the image" if isinstance(error, OtherSize) else MASKLESS
            refused.add("error", what, AGAIN, f"{number}: {' '.join(str(error).split())}")
        polygons.append(rings)
        counts.append(encoded)
    arrays = flatten(polygons, counts)
    _, extents = outlines(arrays | {"counts_offsets": np.zeros(len(counts) + 1, np.int64)}, sizes)
    far = (np.diff(arrays["polygons_offsets"]) > 0) & ~(np.abs(extents) < FARTHEST).all(1)
    what = f"polygons that leave ±{FARTHEST:.0e} pixels"
    add_rows(refused, "error", (what, AGAIN), far, rows.numbers.__getitem__)
    wrong = (run_totals(arrays) != sizes.prod(1, dtype=np.int64)) & (np.diff(arrays["counts_offsets"]) > 0)
    kind = "masks whose run lengths do not add up to the image", AGAIN
    add_rows(refused, "error", kind, wrong, rows.numbers.__getitem__)
    for j in np.flatnonzero(far | wrong).tolist():
        polygons[j], counts[j] = [], b""
    return flatten(polygons, counts) if (far | wrong).any() else arrays


class OtherSize(ValueError):
    """A mask's size is not its image's."""


def _run_lengths(segmentation: dict[str, Any], size: list[int]) -> bytes:
    """Run lengths, compressed or not, in pycocotools' compressed form."""
    if lacks := [key for key in ("size", "counts") if key not in segmentation]:
        raise ValueError(f"run lengths without {' and '.join(lacks)}")
    if list(segmentation["size"]) != size:
        raise OtherSize(f"a mask is of {segmentation['size']}, its image of {size}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        return rle.frPyObjects({"size": size, "counts": counts}, *size)["counts"]
    return counts.encode("ascii")


def _rings(findings: Findings, segmentation: Any, number: int) -> list[list[float]]:
    """The polygons of three points and more, each [x, y, x, y, ...].

    pycocotools would fail on four numbers, and drop the last of seven. One polygon may stand without its outer list,
    and points as pairs: neither can be anything else.
    """
    if not isinstance(segmentation, list):
        raise TypeError(f"{type(segmentation).__name__} {segmentation!r:.40}")
    flat = segmentation
    if all(map(is_number, flat)) or (len(flat) > 2 and all(map(is_pair, flat))):
        flat = [flat]
    flat = [[side for pair in one for side in pair] if is_pairs(one) else one for one in flat]
    if flat != segmentation:
        what = "segmentations that are a polygon without the outer list, or points in pairs"
        findings.add("warning", what, "read as [[x, y, x, y, ...]]", number)
    for one in flat:
        kinds = set(map(type, one)) if isinstance(one, list) else {None}
        if not kinds <= {int, float}:
            raise TypeError(f"{type(one).__name__} {one!r:.40} where a polygon should be")
        if int in kinds:
            float(max(one)), float(min(one))  # integers may be larger than any float: an OverflowError
    usable = [one for one in flat if len(one) >= 6 and len(one) % 2 == 0]
    if len(usable) < len(flat):
        what = "polygons of less than three points or an odd number"
        findings.add("warning", what, "passed over", number, len(flat) - len(usable))
    return usable


def _settle(findings: Findings, rows: Rows, sizes: np.ndarray, segments: Arrays) -> dict[str, np.ndarray]:
    """Boxes, areas and crowds as they are taken; by the keys of `tabulate`'s objects."""
    number, get = rows.numbers.__getitem__, lambda key: [one.get(key) for one in rows.records]
    crowd = _crowds(findings, rows.numbers, get("iscrowd"))
    _ignored(findings, rows)
    masks, extents = outlines(segments, sizes)
    raw: list[Any] = get("area")
    written = np.array([float(one) if is_number(one) else np.nan for one in raw], np.float64)
    none = np.array([one is None for one in raw], bool)
    areas, impossible = settle_areas(written, rows.boxes, sizes, masks, segments)
    computed = "computed from the segmentation, or else from the box"
    say = lambda j: f"{rows.numbers[j]}: {raw[j]!r:.40}"  # noqa: E731
    add_rows(findings, "warning", ("annotations without area", computed), none, number)
    bad = ~none & ~(np.isfinite(written) & (written > 0))
    add_rows(findings, "warning", ("annotations whose area is no number above 0", computed), bad, say)
    kind = "annotations whose area cannot be that of their mask or box, as in other units", computed
    add_rows(findings, "warning", kind, impossible, say)
    _boxes(findings, rows, sizes, extents, written, segments)
    pairs = given_twice(rows.image, rows.labels, rows.boxes)
    same = [rows.records[a].get("segmentation") == rows.records[b].get("segmentation") for a, b in pairs.tolist()]
    pairs = pairs[np.array(same, bool) & ~crowd[pairs].any(1)] if len(pairs) else pairs
    both = np.isin(np.arange(len(rows.numbers)), pairs[:, 1])
    before = dict(pairs[:, ::-1].tolist())
    add_rows(findings, "warning", TWICE, both, lambda j: f"{rows.numbers[before[j]]} and {rows.numbers[j]}")
    return {
        "image": rows.image,
        # No box has a side below 0: evaluators would refuse it, or take it for one of 0.
        "boxes": np.concatenate([rows.boxes[:, :2], np.where(rows.boxes[:, 2:] < 0, 0, rows.boxes[:, 2:])], 1),
        "labels": rows.labels,
        "areas": areas,
        "crowd": crowd,
        "difficult": np.zeros(len(areas), bool),
    }


def _crowds(findings: Findings, numbers: np.ndarray, written: list[Any]) -> np.ndarray:
    marks = [flag(one) for one in written]
    say = lambda j: f"{numbers[j]}: {written[j]!r:.40}"  # noqa: E731
    none = np.array([one is None for one in written], bool)
    kind = "annotations without iscrowd", "taken as 0: single objects"
    add_rows(findings, "warning", kind, none, numbers.__getitem__)
    unclear = np.array([one is None for one in marks], bool)
    kind = "annotations whose iscrowd is neither 0 nor 1", "write 0 for single objects, 1 for crowds"
    add_rows(findings, "error", kind, unclear, say)
    odd = np.array([not (isinstance(one, int | float) and one in (0, 1)) for one in written], bool) & ~none & ~unclear
    for name, mark in (("0: single objects", False), ("1: crowds", True)):
        kind = f"annotations whose iscrowd is written otherwise, taken as {name}", "write 0 or 1"
        add_rows(findings, "warning", kind, odd & np.array([one is mark for one in marks], bool), say)
    return np.array([one is True for one in marks], bool)


def _ignored(findings: Findings, rows: Rows) -> None:
    """Objects that converters mark `ignore`, as from difficult ones of Pascal VOC: COCO has no such field."""
    ignored = [bool(flag(one.get("ignore"))) and not flag(one.get("iscrowd")) for one in rows.records]
    kind = "annotations with ignore set", "not read, as by pycocotools: set iscrowd to leave them out"
    add_rows(findings, "warning", kind, np.array(ignored, bool), rows.numbers.__getitem__)


def _boxes(
    findings: Findings, rows: Rows, sizes: np.ndarray, extents: np.ndarray, areas: np.ndarray, segments: Arrays
) -> None:
    boxes = rows.boxes
    say = lambda j: f"{rows.numbers[j]}: {rows.records[j]['bbox']}"  # noqa: E731
    finite = np.all(np.isfinite(boxes), 1)
    add_rows(findings, "error", ("boxes that are not finite", "correct or remove them"), ~finite, say)
    drawn = np.diff(segments["polygons_offsets"]) > 0
    tiny = drawn & units.in_fractions(extents)
    if 2 * tiny.sum() > drawn.sum():
        add_rows(findings, "error", units.POLYGON_FRACTIONS, tiny, rows.numbers.__getitem__)
    fractions = finite & units.in_fractions(boxes)
    if 2 * fractions.sum() > len(boxes):
        add_rows(findings, "error", units.FRACTIONS, fractions, say)
    else:
        corners = units.corners_given(boxes, sizes, extents, areas)
        add_rows(findings, "error", units.CORNERS, corners, say)
        misfits, compared = units.misfits(boxes, sizes, extents)
        most = misfits.sum() > max(1, compared.sum() / 2)
        kind = units.OTHER_UNITS if most else units.MISFITS
        if not corners.any():
            add_rows(findings, "error" if most else "warning", kind, misfits, say)
    wide, high = boxes[:, 2], boxes[:, 3]
    flat = finite & ((wide <= 0) | (high <= 0))
    thin = finite & ~flat & (boxes[:, 2:].min(1, initial=np.inf) < THINNEST)
    seen = within(np.where(finite[:, None], boxes, 0), sizes)
    seen = seen[:, 2:] - seen[:, :2]
    outside = finite & ~flat & ~thin & (seen < THINNEST).any(1)
    reaching = finite & ~flat & ~thin & ~outside & (boxes[:, 2:] - seen > BORDER).any(1)
    add_rows(findings, "warning", ("boxes without width or height", COUNTED), flat, say)
    add_rows(findings, "warning", ("boxes thinner than a pixel", COUNTED), thin, say)
    add_rows(findings, "warning", ("boxes wholly outside the image", COUNTED), outside, say)
    remedy = "cut off at the border for training; scored as they are; if they are corners, write x, y, width, height"
    kind = "boxes that reach outside the image", remedy
    add_rows(findings, "warning", kind, reaching, say)


def _once(findings: Findings, records: list[Any], what: str) -> list[Any]:
    """Without those that repeat another wholly, id and all, as where two files were joined."""
    first: dict[int, Any] = {}
    kept = []
    for one in records:
        number = one.get("id")
        before = first.setdefault(number, one) if is_whole(number) else one
        if before is not one and all(before.get(key) == one.get(key) for key in READ.get(what, {**before, **one})):
            findings.add("warning", f"{what} given twice, id and all", "read once", number)
        else:
            kept.append(one)
    return kept


def _add_id(refused: Findings, what: str, one: dict[str, Any], place: int) -> bool:
    """Whether it has a whole id; refused otherwise."""
    number = one.get("id")
    if is_whole(number):
        return True
    example = f"number {place + 1} of the list" if number is None else f"{number!r:.40}"
    if what == "annotation":
        example += f", of image {one.get('image_id')!r:.40}"
    refused.add("error", f"{what} ids that are missing or no whole numbers", WHOLE, example)
    return False


def _repeated(values: Sequence[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]
