"""Parts put together into files that other tools read: COCO results, and Pascal VOC's of competition 4."""

import json
import re
from collections import Counter
from typing import Any

from backbone.errors import UserError, printable
from backbone.storage import filesystem, join, writing
from detection.artifact import Loaded
from detection.data.contract import Categories
from detection.detecting.lists import ImageList

PARTS, UNREADABLE = "parts", "unreadable.txt"
DETECTIONS, IMAGES = "detections.json", "images.json"
NAMES = (DETECTIONS, IMAGES, "comp4_det_*.txt")
STAYS = "finished parts"  # where an output is full or fails


def part_name(number: int) -> str:
    return f"part-{number:06d}.json"


def write(output: str, images: ImageList, loaded: Loaded, parts: int) -> dict[str, Any]:
    """Write the results from the parts, which are read one at a time.

    `detections.json` are COCO results, a line each, sorted by image id; `images.json` a COCO instances dict of the
    images that were read, without annotations, to load them against; `unreadable.txt` names the others.

    Returns:
        `{"images", "detections", "unreadable"}`: two counts, and a line for each image that could not be read.

    Raises:
        UserError: a part is damaged, or the output is full.
    """
    categories = loaded.categories
    voc_names = dict(zip(images.ids, images.names, strict=True))
    of_class: dict[int, list[str]] = {number: [] for number in categories.ids}
    entries: list[dict[str, Any]] = []
    unreadable: list[str] = []
    count = 0
    with writing(output, DETECTIONS, STAYS) as file:
        file.write(b"[\n")
        for number in range(parts):
            part = _read(output, number)
            entries += part["images"]
            unreadable += part["unreadable"]
            for row in part["detections"]:
                file.write(b",\n" * bool(count) + json.dumps(row).encode())
                of_class[row["category_id"]].append(voc_line(voc_names[row["image_id"]], row))
                count += 1
        file.write(b"\n]\n")
    named = [{"id": i, "name": name} for i, name in zip(categories.ids, categories.names, strict=True)]
    tree = {"info": {}, "images": entries, "annotations": [], "categories": named}
    texts = {IMAGES: json.dumps(tree) + "\n"}
    for number, name in zip(categories.ids, file_names(categories), strict=True):
        texts[f"comp4_det_{images.split}_{name}.txt"] = "".join(of_class[number])
    if unreadable:
        texts[UNREADABLE] = "".join(f"{printable(one)}\n" for one in unreadable)
    for name, text in texts.items():
        with writing(output, name, STAYS) as file:
            file.write(text.encode("utf-8", "surrogateescape"))
    return {"images": len(entries), "detections": count, "unreadable": unreadable}


def voc_line(name: str, row: dict[str, Any]) -> str:
    """A line of `comp4_det_*`: image, score, xmin ymin xmax ymax. Pixels are counted from 1 and the last one belongs to
    the box, so that its width is xmax - xmin + 1."""
    x, y, w, h = row["bbox"]
    return f"{name} {row['score']} {x + 1:.3f} {y + 1:.3f} {x + w:.3f} {y + h:.3f}\n"


def file_names(categories: Categories) -> list[str]:
    """Classes as parts of file names: without what no file system takes, with their ids where two would be one."""
    names = [re.sub(r'[/\\:*?"<>|\x00-\x1f]', "_", name) for name in categories.names]
    times = Counter(name.casefold() for name in names)
    pairs = zip(names, categories.ids, strict=True)
    return [name if times[name.casefold()] == 1 else f"{name}_{number}" for name, number in pairs]


def _read(output: str, number: int) -> dict[str, Any]:
    fs, path = filesystem(output)
    name = f"{PARTS}/{part_name(number)}"
    try:
        return json.loads(fs.cat_file(join(path, name)))
    except (OSError, ValueError) as error:
        raise UserError(f"{output}/{name}: cannot be read ({error}); remove it and run the same again") from error
