"""COCO's ground truth and results as dicts: checked, mended where evaluators stumble, and as arrays."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle

from backbone.errors import UserError
from detection.data.contract import Categories


class Table(NamedTuple):
    """Ground truth and detections of the same N images, each sorted by image; order within an image is kept."""

    image_ids: np.ndarray  # int64 [N], ascending
    gt_image: np.ndarray  # int64 [G], index into image_ids
    gt_label: np.ndarray  # int64 [G], 1..K
    gt_box: np.ndarray  # float64 [G, 4], x y w h
    gt_area: np.ndarray  # float64 [G]
    gt_crowd: np.ndarray  # bool [G]
    gt_difficult: np.ndarray  # bool [G], VOC's: difficult, or a crowd
    image: np.ndarray  # int64 [D]
    label: np.ndarray  # int64 [D]
    box: np.ndarray  # float64 [D, 4], x y w h
    score: np.ndarray  # float64 [D]
    gt_mask: list[Any] | None = None  # G compressed RLEs; None: boxes are what overlaps
    mask: list[Any] | None = None  # D likewise

    def select(self, rows: np.ndarray) -> "Table":
        """With these detections (int [...]), in this order."""
        mask = None if self.mask is None else [self.mask[i] for i in rows.tolist()]
        columns = (self.image[rows], self.label[rows], self.box[rows], self.score[rows])
        return self._replace(**dict(zip(("image", "label", "box", "score"), columns, strict=True)), mask=mask)


def mended(ground_truth: dict[str, Any]) -> dict[str, Any]:
    """The ground truth as it is scored and written: a copy that evaluators may scribble on.

    Annotations are numbered from 1 (pycocotools takes id 0 for "no match"), a missing `iscrowd` is 0, a missing `area`
    that of the box.
    """
    annotations = []
    for number, annotation in enumerate(ground_truth["annotations"], start=1):
        area = annotation.get("area")
        annotations.append(
            {
                **annotation,
                "id": number,
                "area": annotation["bbox"][2] * annotation["bbox"][3] if area is None else area,
                "iscrowd": int(annotation.get("iscrowd") or 0),
            }
        )
    copies = {part: [dict(entry) for entry in ground_truth[part]] for part in ("images", "categories")}
    return {**ground_truth, **copies, "annotations": annotations}


def check(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], categories: Categories, masks: bool = False
) -> None:
    """Refuse what evaluators would crash on, or take without a word for a miss.

    Raises:
        UserError: images or categories that the other side lacks, a category of another name, boxes or scores that are
            not numbers, and, if `masks`, annotations or results without one.
    """
    images, known = {image["id"] for image in ground_truth["images"]}, set(categories.ids)
    for what, rows in (("results", results), ("ground truth", ground_truth["annotations"])):
        if unknown := {row["image_id"] for row in rows} - images:
            raise UserError(
                f"{what}: image ids {_few(unknown)} are not among the {len(images)} images of the ground truth; "
                "detections and annotations must be of the same split"
            )
        if unknown := {row["category_id"] for row in rows} - known:
            raise UserError(
                f"{what}: category ids {_few(unknown)} are not among the detector's {_few(known)}; use the data set's "
                "own ids, and a detector trained on these classes"
            )
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
        bad = ~np.isfinite(boxes).all(1) | (boxes[:, 2:] < 0).any(1)
        if what == "results":
            bad |= ~np.isfinite(np.array([row["score"] for row in rows], dtype=np.float64))
        if bad.any():
            row = rows[int(np.flatnonzero(bad)[0])]
            raise UserError(
                f"{what}: {int(bad.sum())} boxes or scores are no finite x, y, w, h with w, h >= 0; the first is "
                f"{row['bbox']}, score {row.get('score', 'none')}, on image {row['image_id']}"
            )
        if masks:
            lacking = [row for row in rows if not row.get("segmentation")]
            if lacking:
                raise UserError(
                    f"{what}: {len(lacking)} of {len(rows)} have no segmentation, the first on image "
                    f"{lacking[0]['image_id']}; score boxes alone, or give masks"
                )
    names = dict(zip(categories.ids, categories.names, strict=True))
    for category in ground_truth["categories"]:
        own = names.get(category["id"], category["name"])
        if own != category["name"]:
            raise UserError(
                f"category {category['id']} is {category['name']} in the ground truth and {own} in the detector; "
                "evaluate on the classes it was trained on"
            )


def as_table(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], categories: Categories, masks: bool = False
) -> Table:
    """Arrays of what `mended` and `check` have passed; with `masks` they are what overlaps."""
    image_ids = np.unique(np.array([image["id"] for image in ground_truth["images"]], dtype=np.int64))
    label_of = {category: label for label, category in enumerate(categories.ids, start=1)}
    truth = sorted(ground_truth["annotations"], key=lambda row: row["image_id"])
    found = sorted(results, key=lambda row: row["image_id"])

    def columns(rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        images = np.array([row["image_id"] for row in rows], dtype=np.int64)
        labels = np.array([label_of[row["category_id"]] for row in rows], dtype=np.int64)
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
        return np.searchsorted(image_ids, images), labels, boxes

    crowd = np.array([bool(row["iscrowd"]) for row in truth], dtype=bool)
    return Table(
        image_ids,
        *columns(truth),
        np.array([row["area"] for row in truth], dtype=np.float64),
        crowd,
        crowd | np.array([bool(row.get("difficult")) for row in truth], dtype=bool),
        *columns(found),
        np.array([row["score"] for row in found], dtype=np.float64),
        encoded(truth, ground_truth["images"]) if masks else None,
        encoded(found, ground_truth["images"]) if masks else None,
    )


def encoded(rows: list[dict[str, Any]], images: list[dict[str, Any]]) -> list[Any]:
    """Each segmentation, polygons or runs, as compressed RLE, as pycocotools' `annToRLE`."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    found = []
    for row in rows:
        mask = row["segmentation"]
        if isinstance(mask, list):
            mask = rle.merge(rle.frPyObjects(mask, *sizes[row["image_id"]]))
        elif isinstance(mask["counts"], list):
            mask = rle.frPyObjects(mask, *sizes[row["image_id"]])
        found.append(mask)
    return found


def overlaps(table: Table, crowds: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """For each image with both: rows of detections, rows of ground truth, and their IoU, float64, of any classes.

    pycocotools' own IoU, to its last bit, of masks where the table has them; where `crowds` (bool [G]) says so, over
    the detection's area alone.
    """
    every = np.arange(len(table.image_ids) + 1)
    d, g = np.searchsorted(table.image, every).tolist(), np.searchsorted(table.gt_image, every).tolist()
    for i in range(len(table.image_ids)):
        rows, truth = slice(d[i], d[i + 1]), slice(g[i], g[i + 1])
        if d[i] < d[i + 1] and g[i] < g[i + 1]:
            by_box = table.mask is None or table.gt_mask is None
            pair = (table.box[rows], table.gt_box[truth]) if by_box else (table.mask[rows], table.gt_mask[truth])
            yield rows, truth, np.asarray(rle.iou(*pair, crowds[truth].astype(int).tolist()))


def _few(ids: set[int]) -> str:
    return str(sorted(ids)[:10])[:-1] + (", ...]" if len(ids) > 10 else "]")
