"""Regions of classes as the page's pictures compare them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pycocotools import mask as rle

from detection.detections import encode
from detection.report.pictures import Detected


def without_ignored(truth: dict[str, Any], rows: Sequence[Detected]) -> tuple[dict[str, Any], list[Detected]]:
    """Ground truth, by `detection.semantic.ground_truth`, and what was found, both without pixels that are ignored."""
    ignored = {one["image_id"]: rle.decode(one["segmentation"]) for one in truth["annotations"] if one["iscrowd"]}
    kept = [one for one in truth["annotations"] if not one["iscrowd"]]

    def judged(found: dict[str, Any]) -> dict[str, Any] | None:
        if found["image_id"] not in ignored:
            return found
        left = rle.decode(found["segmentation"]) & (1 - ignored[found["image_id"]])
        encoded = encode(left)
        box = [float(side) for side in rle.toBbox(encoded)]
        return {**found, "segmentation": encoded, "bbox": box} if np.any(left) else None

    seen = [replace(row, detections=[one for found in row.detections if (one := judged(found))]) for row in rows]
    return {**truth, "annotations": kept}, seen
