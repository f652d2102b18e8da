"""What can be wrong with Pascal VOC annotations."""

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from xml.etree.ElementTree import Element

from backbone.data.findings import Findings
from backbone.data.listing import THREADS
from detection.data.annotated import read
from detection.data.findings import Survey
from detection.data.voc import ANNOTATIONS, CLASSES, IMAGES, Record, image_files, list_images, parse, record_of

COUNTED = "left out of training; scoring counts them as missed: correct or remove them"


def examine_voc(findings: Findings, location: str) -> Survey:
    """Look over the lists and annotations of `folder:split[,folder:split]`.

    Raises:
        UserError: a folder or list is not there, or the list is of one class.
    """
    folders, parts, ids = list_images(location)
    files = [image_files(folder) for folder in folders]
    pairs = list(dict.fromkeys(zip(parts, ids, strict=True)))
    for (_, name), count in Counter(zip(parts, ids, strict=True)).items():
        if count > 1:
            findings.add("error", "images listed twice", "name each once", name)
    survey = Survey()
    used: Counter[str] = Counter()
    with ThreadPoolExecutor(THREADS) as pool:
        read_all = pool.map(lambda pair: _read(folders[pair[0]], pair[1]), pairs)
        for (part, name), data in zip(pairs, read_all, strict=True):
            record = _record(findings, name, data)
            file = f"{IMAGES}/{files[part].get(name, name + '.jpg')}"
            survey.files.append((folders[part], file, record.size if record else None))
            if record:
                _objects(findings, name, record, survey)
                used.update(record.classes)
                survey.with_objects += bool(record.classes)
    _classes(findings, used)
    survey.per_class = dict(used)
    without = len(pairs) - survey.with_objects
    if without:
        remedy = "trained on as background; data.keep_empty false leaves them out"
        findings.add("note", "images without objects", remedy, count=without)
    return survey


def _read(folder: str, name: str) -> bytes | OSError:
    try:
        return read(folder, f"{ANNOTATIONS}/{name}.xml")
    except OSError as error:
        return error


def _record(findings: Findings, name: str, data: bytes | OSError) -> Record | None:
    if isinstance(data, OSError):
        remedy = "restore the file, or take the image from the list"
        findings.add("error", "annotations that are missing", remedy, f"{name}.xml: {data.strerror or data}")
        return None
    try:
        root = parse(data)
    except ValueError as error:
        findings.add("error", "annotations that are damaged", "restore the file", f"{name}.xml: {error}")
        return None
    _file_name(findings, name, root)
    try:
        return record_of(root)
    except (ValueError, OverflowError) as error:
        what = "annotations with a part missing or no number"
        findings.add("error", what, "complete or correct it", f"{name}.xml: {error}")
        return None


def _file_name(findings: Findings, name: str, root: Element) -> None:
    written = (root.findtext("filename") or "").strip()
    if written and PurePath(written).stem != name and written != name:
        remedy = "not read: the image is found by the name in the list"
        findings.add("note", "annotations that name another file", remedy, f"{name}.xml: {written}")


def _objects(findings: Findings, name: str, record: Record, survey: Survey) -> None:
    height, width = record.size
    for kind, box, difficult in zip(record.classes, record.boxes, record.difficult, strict=True):
        example = f"{name}: {kind} {[round(side, 2) if math.isfinite(side) else side for side in box]}"
        left, top, right, bottom = box
        if not all(map(math.isfinite, box)):
            findings.add("error", "boxes that are not finite", "correct or remove them", example)
            continue
        wide, high = right - left + 1, bottom - top + 1  # the last pixel belongs to the box
        survey.areas.append(max(wide, 0) * max(high, 0))
        if wide < 1 or high < 1:
            findings.add("warning", "boxes whose max is below their min", COUNTED, example)
        elif min(right, width) < max(left, 1) or min(bottom, height) < max(top, 1):
            findings.add("warning", "boxes wholly outside the image", COUNTED, example)
        elif min(left, top) < 1 or right > width or bottom > height:
            remedy = "cut off at the border for training; where many begin at 0, their tool counted from 0, not 1"
            findings.add("warning", "boxes that reach outside the image", remedy, example)
        elif wide == 1 or high == 1:
            findings.add("warning", "boxes of a single row or column of pixels", "read so; probably a slip", example)
        if difficult:
            remedy = "left out of training; neither found nor missed in scoring"
            findings.add("note", "difficult objects", remedy, example)


def _classes(findings: Findings, used: Counter[str]) -> None:
    own = [name for name in used if name not in CLASSES]
    handled = "classes are those found in train and val, sorted"
    if own and len(own) < len(used):
        remedy = f"a slip of the pen? {handled}; with the 20 alone, the customary order"
        for name in own:
            findings.add("warning", "classes unknown among VOC's 20, used beside them", remedy, name, used[name])
    elif own:
        for name in sorted(own):
            findings.add("note", "classes other than VOC's 20", handled, name)
    else:
        for name in CLASSES:
            if name not in used:
                findings.add("warning", "classes never used", "the detector learns a class it never sees", name)
