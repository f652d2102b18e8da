"""Label maps: the class of every pixel, for semantic segmentation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle

from backbone.errors import UserError
from detection.data.contract import Categories

IGNORED = 255
"""Neither trained on nor judged: crowds, and what Pascal VOC calls void."""
MOST_CLASSES = IGNORED - 1  # a map is uint8, and 0 is the background


def painted(height: int, width: int, masks: Sequence[np.ndarray], labels: Sequence[int]) -> np.ndarray:
    """A label map uint8 [height, width]: 0 the background, then objects, of two that overlap the smaller on top.

    Args:
        masks: [height, width] each, not 0 where the object is. Of equal areas the later is on top.
        labels: from 1; IGNORED of crowds, which lie below all objects.
    """
    found = np.zeros((height, width), np.uint8)
    areas = np.array([np.count_nonzero(mask) for mask in masks], np.int64)
    crowd = np.array([label == IGNORED for label in labels], bool)
    for k in np.lexsort((-areas, ~crowd)).tolist():
        found[masks[k] != 0] = labels[k]
    return found


def class_names(categories: Categories) -> tuple[str, ...]:
    """Of labels 0, 1, ...: the background's is another where a class is called so."""
    return ("background" if "background" not in categories.names else "no class", *categories.names)


def check_labelled(has_masks: bool, categories: Categories, where: str) -> None:
    """UserError where data at `where` have no label maps."""
    if not has_masks:
        raise UserError(
            f"{where}: objects without a segmentation, so that their pixels have no class; detector.kind semantic "
            "needs one of every object (COCO's layout), or SegmentationClass (Pascal VOC's)"
        )
    if len(categories) > MOST_CLASSES:
        raise UserError(f"{where}: {len(categories)} classes; detector.kind semantic has room for {MOST_CLASSES}")


def regions(classes: np.ndarray, categories: Categories, image_id: int) -> list[dict[str, Any]]:
    """The pixels of each class in a label map as a COCO annotation: `image_id`, `category_id`, `bbox`, `area` and
    `segmentation`, compressed run lengths. The background and what is ignored have none."""
    found = []
    for label in np.unique(classes).tolist():
        if label in (0, IGNORED):
            continue
        encoded = rle.encode(np.asfortranarray(classes == label, np.uint8))
        found.append(
            {
                "image_id": image_id,
                "category_id": categories.ids[label - 1],
                "bbox": [float(side) for side in rle.toBbox(encoded)],
                "area": float(rle.area(encoded)),
                "segmentation": {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode()},
            }
        )
    return found
