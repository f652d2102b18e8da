"""Small annotated data sets, and the places where real ones may lie."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as rle

from detection.data.augment import View
from detection.data.patches import patch_of

REAL = os.environ.get("RAYBONE_TEST_DATA", "")
SIZES = ((40, 60), (50, 30), (64, 64), (32, 48))  # height, width


def jpeg(height: int, width: int, value: int = 100, orientation: int = 1) -> bytes:
    """Left half of grey `value`, right half of 255 - value, so that a turn is seen."""
    pixels = np.full((height, width, 3), value, np.uint8)
    pixels[:, width // 2 :] = 255 - value
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=95, exif=exif)
    return data.getvalue()


def blob(height: int, width: int, x: int, y: int, radius: int) -> np.ndarray:
    return cv2.circle(np.zeros((height, width), np.uint8), (x, y), radius, (1,), -1)


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths as COCO's crowds have them: column by column, zeros first."""
    flat = mask.flatten(order="F")
    borders = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *borders, len(flat)]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    encoded = rle.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def coco_tree() -> dict[str, Any]:
    """Four images: polygons and a crowd; compressed run lengths; nothing; an object that is two polygons.

    Category ids have holes and stand out of order; annotations are not sorted by image.
    """
    crowd, round_ = blob(40, 60, 40, 20, 12), blob(50, 30, 12, 22, 9)
    annotations = [
        _annotation(7, 30, 9, [4.0, 5.0, 20.5, 10.25], [[4, 5, 24.5, 5, 24.5, 15.25, 4, 15.25]]),
        _annotation(9, 30, 3, [28, 8, 25, 25], uncompressed(crowd), iscrowd=1),
        _annotation(12, 10, 3, [3, 13, 19, 19], compressed(round_)),
        _annotation(11, 20, 5, [2, 2, 30, 28], [[2, 2, 12, 2, 12, 22], [20, 20, 32, 20, 32, 30, 20, 30]]),
        _annotation(8, 30, 3, [10, 20, 8, 8], [[10, 20, 18, 20, 14, 28]]),
    ]
    ids = (30, 10, 40, 20)
    images = [
        {"id": id_, "file_name": f"{id_:012d}.jpg", "height": height, "width": width}
        for id_, (height, width) in zip(ids, SIZES, strict=True)
    ]
    categories = [{"id": 9, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 5, "name": "cow"}]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _annotation(number: int, image: int, category: int, box: list[float], segmentation: Any, **rest: Any) -> dict:
    encoded = rle.frPyObjects(segmentation, 64, 64) if isinstance(segmentation, list) else segmentation
    if isinstance(encoded, list):
        encoded = rle.merge(encoded)
    elif isinstance(encoded["counts"], list):
        encoded = rle.frPyObjects(encoded, *encoded["size"])
    rest = {"iscrowd": 0, "area": float(rle.area(encoded)), **rest}
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "segmentation": segmentation, **rest}


def make_coco(root: Path, change: Callable[[dict[str, Any]], object] = lambda tree: None, split: str = "val") -> Path:
    """Write the data set, its JSON changed in place by `change`; returns the folder of images."""
    tree = coco_tree()
    folder = root / split
    folder.mkdir(parents=True)
    for place, image in enumerate(tree["images"]):
        (folder / image["file_name"]).write_bytes(jpeg(image["height"], image["width"], 40 * place))
    change(tree)
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(tree))
    return folder


OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""

Placed = tuple[str, tuple[float, float, float, float], int]  # class, xmin ymin xmax ymax, difficult
VOC: dict[str, list[Placed]] = {
    "000012": [("dog", (1, 1, 60, 40), 0), ("cat", (5, 6, 20, 30), 0)],
    "000005": [("person", (10, 10, 12, 44), 1), ("dog", (3, 4, 30, 50), 0)],
    "000007": [],
}


def voc_xml(name: str, size: tuple[int, int], objects: list[Placed]) -> str:
    parts = "".join(OBJECT.format(name=kind, box=box, difficult=difficult) for kind, box, difficult in objects)
    return (
        f"<annotation><filename>{name}.jpg</filename><size><width>{size[1]}</width><height>{size[0]}</height>"
        f"<depth>3</depth></size>{parts}</annotation>"
    )


def make_voc(root: Path, images: dict[str, list[Placed]] | None = None, split: str = "trainval") -> Path:
    """Write a data set of one split."""
    images = VOC if images is None else images
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for name, size in zip(images, SIZES, strict=False):
        (root / "Annotations" / f"{name}.xml").write_text(voc_xml(name, size, images[name]))
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg(*size))
    (root / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in images))
    return root


def whole(seen: Any) -> Any:
    """A `View` or `Scene` with planes uint8 [h, w] in place of patches."""
    height, width = seen.image.shape[:2]
    return seen._replace(masks=[mask.plane(height, width) for mask in seen.masks])


def of_planes(view: Callable[..., View]) -> Callable[..., View]:
    """A training view that takes planes uint8 [H, W], and gives planes."""

    def seen(image: np.ndarray, boxes: np.ndarray, masks: list[np.ndarray], key: int, **more: Any) -> View:
        return whole(view(image, boxes, [patch_of(mask) for mask in masks], key, **more))

    return seen
