"""Pascal VOC: ImageSets/Main, Annotations and JPEGImages (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/)."""

import io
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from backbone.data.findings import Findings
from backbone.data.index import Arrays
from backbone.data.listing import THREADS
from backbone.errors import UserError
from backbone.storage import filesystem
from detection.data import units
from detection.data.annotated import AnnotatedSource, doctor, orientation, read, save, shown, tabulate, within
from detection.data.contract import Categories
from detection.data.files import FOUND, MISSING, RESPELLED, RESTORE, SEVERAL, WHICH
from detection.data.segments import flatten
from detection.data.settle import TWICE, add_alike, add_rows, alike, given_twice
from detection.data.voc_lists import ANNOTATIONS, HOLDS, IMAGES, Folder, list_images
from detection.data.voc_xml import ESCAPE, OTHERWISE, SAVE, Annotation, NotText, Unescaped, annotation_of, parse

# VOC's twenty in their customary order, which is the alphabet's.
CLASSES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep"
    " sofa train tvmonitor".split()
)
COUNTED = "left out of training; scoring counts them as missed: correct or remove them"
OUTSIDE = (
    "cut off at the border for training; where many begin at 0, their tool counted from 0, not 1; if they are x, y, "
    "width, height, write corners"
)
BESIDE = (
    "images with files of several suffixes",
    "the one that <filename> names is read, or else .jpg: remove the others",
)
UNTRAINED = "classes that only data.val has", "never seen in training, so never found; correct a slip in the name"
FRACTIONAL = "boxes with fractions of a pixel", "read as they are, less 1 at the left and top as all of Pascal VOC's"


@dataclass(frozen=True)
class Split:
    """The images of one split, or of the union of several, in the order of the lists. Only those that can be read."""

    folders: tuple[str, ...]
    parts: list[int]  # number of an image's folder
    ids: list[str]
    names: list[str]  # of the images' files, under their folder
    annotations: list[Annotation]
    missing: list[bool]  # images without a file
    refused: Findings  # what cannot be meant: the reader refuses the whole
    findings: Findings  # the rest: errors, which training and evaluation refuse, and what is read otherwise or left out

    @property
    def classes(self) -> set[str]:
        return {name for annotation in self.annotations for name in annotation.classes}


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
    splits = [sound(read_split(location), location) for location in (train, val)]
    trained = set(map(alike, splits[0].classes))  # of those that look alike more is said
    for name in sorted(name for name in splits[1].classes if alike(name) not in trained):
        splits[0].findings.add("warning", *UNTRAINED, name)
    categories = categories_of(splits[0].classes | splits[1].classes)
    return [open_split(split, categories, keep, cache) for split, keep in zip(splits, (keep_empty, True), strict=True)]


def sound(split: Split, location: str) -> Split:
    """The split, if all of it can be read.

    Raises:
        UserError: annotations are missing, damaged or cannot be meant. Names the first, and the doctor.
    """
    refused = split.refused.sorted()
    if refused:
        more = f" (and {len(refused) - 1} other kinds of fault)" if len(refused) > 1 else ""
        raise UserError(f"{location}: {refused[0].as_line()}{more}; all its faults: {doctor('voc', location)}")
    return split


def open_split(
    split: Split, categories: Categories, keep_empty: bool = True, cache: str | None = None
) -> AnnotatedSource:
    """What was read as a source.

    Boxes are 1-based and hold their last pixel, so that x1 = xmin - 1 and x2 = xmax. Objects marked difficult are not
    trained on. Images are numbered 1..N; VOC's own ids are the stems of `file_name` in `ground_truth`.
    """
    findings = Findings().join(split.findings)
    arrays = arrays_of(split, categories, findings)
    index = save("voc", arrays["fingerprint"].tobytes().decode(), arrays, cache)
    return AnnotatedSource(index, split.folders, keep_empty, findings=findings.sorted())


def arrays_of(split: Split, categories: Categories, findings: Findings, kind: str = "voc") -> Arrays:
    """The arrays of a split, by `annotated.tabulate`, and what is to be said of boxes and classes."""
    annotations = split.annotations
    corners = np.array([box for annotation in annotations for box in annotation.boxes], np.float64).reshape(-1, 4)
    # No box has a side below 0: evaluators would refuse it, or take it for one of 0.
    sides = corners[:, 2:] - corners[:, :2] + 1
    boxes = np.concatenate([corners[:, :2] - 1, np.where(sides < 0, 0, sides)], 1)
    label = {name: k for k, name in enumerate(categories.names, 1)}
    num = len(boxes)
    image = np.repeat(np.arange(len(annotations)), [len(annotation.boxes) for annotation in annotations])
    objects = {
        "image": image,
        "boxes": boxes,
        "labels": np.array([label[name] for annotation in annotations for name in annotation.classes], np.int64),
        "areas": boxes[:, 2] * boxes[:, 3],
        "crowd": np.zeros(num, bool),
        "difficult": np.array([one for annotation in annotations for one in annotation.difficult], bool),
    }
    sizes = np.array([annotation.size for annotation in annotations], np.int32).reshape(-1, 2)
    _boxes(findings, split.ids, objects, corners, sizes[image], categories)
    add_alike(findings, categories.names)
    images = (split.names, np.array(split.parts, np.int64), np.arange(1, len(annotations) + 1), sizes)
    return tabulate(kind, images, categories, objects, flatten([[]] * num, [b""] * num))


def categories_of(names: set[str]) -> Categories:
    """VOC's twenty where they suffice, else the names in sorted order; numbered from 1."""
    ordered = CLASSES if names <= set(CLASSES) else tuple(sorted(names))
    return Categories(ordered, tuple(range(1, len(ordered) + 1)))


def read_split(location: str) -> Split:
    """Read the lists and annotations of `folder:split[,folder:split]`, and all that is wrong with them.

    Raises:
        UserError: not `folder:split`, no such folder or list, an empty one, or one of the lists of a single class.
    """
    refused, findings = Findings(), Findings()
    names, parts, entries = list_images(location)
    for name in names:
        fs, root = filesystem(name)
        if not fs.isdir(f"{root}/{ANNOTATIONS}"):
            raise UserError(f"{shown(name, ANNOTATIONS)}: no such folder; {HOLDS}")
    folders = [
        Folder(name, [entry for part, entry in zip(parts, entries, strict=True) if part == k], len(names) > 1)
        for k, name in enumerate(names)
    ]
    listed = [(part, folders[part].id_of(entry, findings)) for part, entry in zip(parts, entries, strict=True)]
    for (_, name), count in Counter(listed).items():
        if count > 1:
            refused.add("error", "images listed twice", "name each once", name)
    pairs = list(dict.fromkeys(listed))
    with ThreadPoolExecutor(THREADS) as pool:
        read_all = list(pool.map(lambda pair: _read(folders[pair[0]], pair[1]), pairs))
    kept: list[tuple[int, str, Annotation]] = []
    for (part, name), annotation in zip(pairs, read_all, strict=True):
        if not isinstance(annotation, Annotation):
            refused.join(annotation)
            continue
        findings.join(annotation.findings)
        kept.append((part, name, annotation))
    files, missing = _images(findings, folders, kept)
    return Split(
        names,
        [part for part, _, _ in kept],
        [name for _, name, _ in kept],
        files,
        [annotation for _, _, annotation in kept],
        missing,
        refused,
        findings,
    )


def _read(folder: Folder, name: str) -> Annotation | Findings:
    """An annotation, or what is wrong with it."""
    fault, file = Findings(), folder.shown(name)
    try:
        root, as_declared = parse(read(folder.folder, f"{ANNOTATIONS}/{folder.annotation(name)}"))
    except OSError as error:
        remedy = "restore the file, or take the image from the list"
        fault.add("error", "annotations that are missing", remedy, f"{file}: {error.strerror or error}")
        return fault
    except NotText as error:
        fault.add("error", "annotations that are not text in the encoding they declare", SAVE, f"{file}: {error}")
        return fault
    except Unescaped as error:
        fault.add("error", *ESCAPE, f"{file}: {error}")
        return fault
    except ValueError as error:
        fault.add("error", "annotations that are damaged", "restore the file", f"{file}: {error}")
        return fault
    try:
        annotation = annotation_of(root, file, lambda called: _measure(folder, name, called))
    except (ValueError, OverflowError) as error:
        what = "annotations with a part missing or no number"
        fault.add("error", what, "complete or correct it", f"{file}: {error}")
        return fault
    if not as_declared:
        annotation.findings.add("warning", *OTHERWISE, file)
    return annotation


def _measure(folder: Folder, name: str, file: str) -> tuple[int, int] | None:
    """Height and width of an image seen upright; None where it cannot be read."""
    found = folder.fitting(name, file)
    if len(found) != 1:
        return None
    try:
        data = read(folder.folder, f"{IMAGES}/{found[0]}")
        with Image.open(io.BytesIO(data)) as header:
            width, height = header.size
    except Exception:  # Pillow lets through whatever a broken header makes it raise
        return None
    return (width, height) if orientation(data) > 4 else (height, width)


def _images(
    findings: Findings, folders: list[Folder], kept: list[tuple[int, str, Annotation]]
) -> tuple[list[str], list[bool]]:
    """The files of the images, under their folders, and which have none."""
    fitting = [folders[part].fitting(name, annotation.file) for part, name, annotation in kept]
    taken = Counter((part, found[0]) for (part, _, _), found in zip(kept, fitting, strict=True) if len(found) == 1)
    files, missing = [], []
    for (part, name, _), found in zip(kept, fitting, strict=True):
        others = [file for file in folders[part].images.get(name, []) if file != found[0]]
        if others:
            findings.add("warning", *BESIDE, f"{found[0]} is read, not {', '.join(others)}")
        own = len(found) == 1 and name in (found[0], str(PurePosixPath(found[0]).with_suffix("")))
        lost = not own and (len(found) != 1 or taken[part, found[0]] > 1)
        files.append(f"{IMAGES}/{f'{name}.jpg' if lost else found[0]}")
        missing.append(lost)
        if lost and found:
            which = ", ".join(found[:3]) if len(found) > 1 else f"{found[0]}, as another does"
            findings.add("error", SEVERAL, WHICH, f"{name} fits {which}")
        elif lost:
            findings.add("error", MISSING, RESTORE, files[-1])
        elif not own:
            findings.add("warning", RESPELLED, FOUND, f"{name} is {found[0]}")
    return files, missing


def _boxes(
    findings: Findings,
    ids: list[str],
    objects: dict[str, np.ndarray],
    corners: np.ndarray,
    sizes: np.ndarray,
    categories: Categories,
) -> None:
    """What is wrong with boxes, xmin ymin xmax ymax as written."""
    image, labels, boxes = objects["image"], objects["labels"], objects["boxes"]

    def say(j: int) -> str:
        sides = [round(side, 2) if math.isfinite(side) else side for side in corners[j].tolist()]
        return f"{ids[image[j]]}: {categories.names[labels[j] - 1]} {sides}"

    finite = np.all(np.isfinite(corners), 1)
    add_rows(findings, "error", ("boxes that are not finite", "correct or remove them"), ~finite, say)
    fractions = finite & units.in_fractions(corners) & (corners < 1).any(1)
    if 2 * fractions.sum() > len(corners):
        add_rows(findings, "error", units.VOC_FRACTIONS, fractions, say)
    add_rows(findings, "error", units.SIDES, units.sides_given(corners, sizes), say)
    corners = np.where(finite[:, None], corners, 1)
    seen = within(np.where(finite[:, None], boxes, 0), sizes)
    turned = finite & (corners[:, 2:] - corners[:, :2] + 1 < 1).any(1)
    outside = finite & ~turned & ((seen[:, 2:] - seen[:, :2]) < 1).any(1)
    reaching = finite & ~turned & ~outside & ((corners[:, :2] < 1) | (corners[:, 2:] > sizes[:, ::-1])).any(1)
    single = finite & ~turned & ~outside & ~reaching & (boxes[:, 2:] == 1).any(1)
    add_rows(findings, "warning", ("boxes whose max is below their min", COUNTED), turned, say)
    add_rows(findings, "warning", ("boxes wholly outside the image", COUNTED), outside, say)
    add_rows(findings, "warning", ("boxes that reach outside the image", OUTSIDE), reaching, say)
    kind = "boxes of a single row or column of pixels", "read so; probably a slip"
    add_rows(findings, "warning", kind, single, say)
    add_rows(findings, "note", FRACTIONAL, finite & (corners != np.floor(corners)).any(1), say)
    twice = np.isin(np.arange(len(image)), given_twice(image, labels, boxes)[:, 1])
    add_rows(findings, "warning", TWICE, twice, say)
    left_out = "left out of training; neither found nor missed in scoring"
    add_rows(findings, "note", ("difficult objects", left_out), objects["difficult"], say)
