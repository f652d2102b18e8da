"""What can be wrong with COCO annotations: what the reader says, and what else is worth a word."""

from typing import Any

import numpy as np
from pycocotools import mask as rle

from backbone.data.findings import Findings
from backbone.data.index import Arrays, unpack_all
from backbone.errors import UserError
from backbone.storage import filesystem
from detection.data.annotated import left_out_of, nothing_to_train_on
from detection.data.coco import missing, no_collection, read_json
from detection.data.coco_table import AGAIN, Table, tabulate_coco
from detection.data.files import locate
from detection.data.findings import Survey
from detection.data.segments import encode, has_mask, outlines
from detection.data.settle import add_rows

BROAD = 64  # pixels of area: a polygon so large holds some
BEYOND = 1.0  # pixels a polygon may reach over the border


def examine_coco(findings: Findings, location: str, annotations: str) -> Survey:
    """Look over an instances JSON, and for its images.

    Raises:
        UserError: it is not there.
    """
    fs, path = filesystem(annotations)
    if not fs.exists(path):
        raise UserError(f"{annotations}: no such file; {missing(annotations)}")
    try:
        with no_collection():
            table = tabulate_coco(read_json(annotations))
    except UserError as error:
        findings.add("error", "annotations that cannot be read", "copy or export the file again", error)
        return Survey()
    findings.join(table.refused).join(table.findings)
    if not table.arrays:
        return Survey()
    survey = _survey(findings, location, table)
    _remarks(findings, table, survey)
    _masks(findings, table)
    return survey


def _survey(findings: Findings, location: str, table: Table) -> Survey:
    arrays = table.arrays
    written = unpack_all(arrays, "names")
    names, lost = locate(location, written, findings)
    sizes = [(height, width) for height, width in arrays["sizes"].tolist()]
    classes = unpack_all(arrays, "classes")
    counts = np.bincount(arrays["labels"], minlength=len(classes) + 1)[1:].tolist()
    finite = np.isfinite(arrays["boxes"]).all(1)
    return Survey(
        files=[(location, *one) for one in zip(names, sizes, (~lost).tolist(), strict=True)],
        per_class=dict(zip(classes, counts, strict=True)),
        areas=arrays["areas"][finite].tolist(),
        with_objects=int((np.diff(arrays["starts"]) > 0).sum()),
    )


def _remarks(findings: Findings, table: Table, survey: Survey) -> None:
    arrays, numbers = table.arrays, table.numbers
    nothing = nothing_to_train_on(int((arrays["left_out"] == 0).sum()), left_out_of(arrays))
    if nothing:
        findings.add("error", nothing, "training refuses this", count=len(numbers))
    add_rows(
        findings,
        "note",
        ("crowds", "left out of training, ignored in scoring, as pycocotools does"),
        arrays["crowd"],
        numbers.__getitem__,
    )
    if (numbers == 0).any():
        remedy = "scored under new ids from 1; pycocotools takes a match with id 0 for none"
        findings.add("warning", "annotation id 0", remedy, "annotation 0")
    handled = "handled: labels are 1..K in the order of ids, and results carry the ids of the data set"
    ids = arrays["category_ids"].tolist()
    if 0 in ids:
        findings.add("note", "category id 0", handled, unpack_all(arrays, "classes")[ids.index(0)])
    if len(ids) < max(ids) - min(ids) + 1:
        findings.add("note", "holes in the category ids", handled, f"{len(ids)} ids up to {max(ids)}")
    for name, count in survey.per_class.items():
        if not count:
            findings.add("warning", "categories never used", "the detector learns a class it never sees", name)
    without = len(survey.files) - survey.with_objects
    if without > 0:
        remedy = "trained on as background; data.keep_empty false leaves them out"
        findings.add("note", "images without objects", remedy, count=without)


def _masks(findings: Findings, table: Table) -> None:
    """What is odd about segmentations that the reader takes."""
    arrays, numbers = table.arrays, table.numbers
    masked, sizes = has_mask(arrays), _sizes(arrays)
    if masked.all():
        pass
    elif masked.any():
        remedy = "boxes can be trained; Mask R-CNN needs a segmentation for every object"
        kind = "annotations without segmentation, while others have one", remedy
        add_rows(findings, "warning", kind, ~masked, numbers.__getitem__)
    else:
        remedy = "boxes alone can be trained"
        findings.add("note", "annotations without segmentation", remedy, count=len(numbers))
    areas, extents = outlines(arrays, sizes)
    polygons = np.diff(arrays["polygons_offsets"]) > 0
    beyond = polygons & ((extents[:, :2] < -BEYOND) | (extents[:, 2:] - sizes[:, ::-1] > BEYOND)).any(1)
    kind = "polygons that reach outside the image", "cut off at the border"
    add_rows(findings, "warning", kind, beyond, numbers.__getitem__)
    doubtful = masked & (beyond | (areas <= BROAD))  # drawing the others would only cost time
    empty = np.zeros(len(numbers), bool)
    for j in np.flatnonzero(doubtful).tolist():
        encoded: Any = encode(arrays, j, *map(int, sizes[j]))
        empty[j] = not rle.area(encoded)
    kind = "empty masks", "left out of training with masks, trained on as boxes without; " + AGAIN
    add_rows(findings, "warning", kind, empty, numbers.__getitem__)


def _sizes(arrays: Arrays) -> np.ndarray:
    """Of each object's image, [A, 2]."""
    return np.repeat(arrays["sizes"], np.diff(arrays["starts"]), axis=0)
