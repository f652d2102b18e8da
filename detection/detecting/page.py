"""`report.html`: pictures with boxes and masks, and what was found of each class. One file that needs nothing else."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

from backbone.errors import UserError, printable
from backbone.pages import style
from backbone.storage import filesystem, join, writing
from detection.artifact import Loaded
from detection.detecting.files import DETECTIONS, IMAGES, STAYS, UNREADABLE
from detection.detecting.lists import ImageList
from detection.detecting.options import Detecting
from detection.report.page import figures
from detection.report.pictures import Box, Panel, whole
from detection.report.tables import table

PAGE = "report.html"
COLOURS = 8  # of classes, in turn
NAMED = 20  # unreadable images that the page names


def write_page(options: Detecting, images: ImageList, loaded: Loaded, unreadable: Sequence[str]) -> None:
    """Write the page from the other results.

    Its pictures are spread evenly over the images with a detection scored `options.min_score` or more; nobody chose
    them.

    Raises:
        UserError: the results cannot be read, or the output cannot be written.
    """
    names = dict(zip(loaded.categories.ids, loaded.categories.names, strict=True))
    kinds = {number: f"c{k % COLOURS}" for k, number in enumerate(names)}
    every, sure, of_class = Counter[int](), Counter[int](), defaultdict[int, set[int]](set)
    for row in _rows(options.output):
        every[row["category_id"]] += 1
        if row["score"] >= options.min_score:
            sure[row["category_id"]] += 1
            of_class[row["category_id"]].add(row["image_id"])
    having = sorted(set().union(*of_class.values()))
    entries = {entry["id"]: entry["file_name"] for entry in _read(options.output, IMAGES)["images"]}
    candidates = having or list(entries)
    at = np.linspace(0, len(candidates) - 1, min(options.pictures, len(candidates))).round().astype(int)
    panels = _panels(options, {candidates[i]: entries[candidates[i]] for i in at.tolist()}, names, kinds)
    index = {number: i for i, number in enumerate(images.ids)}
    pictures = whole(panels, lambda image_id: images.image(index[image_id]))
    body = [
        [
            (f'<span class="swatch {kinds[number]}"></span>{escape(name)}', ""),
            *((f"{count:,}", "") for count in (sure[number], len(of_class[number]), every[number])),
        ]
        for number, name in names.items()
        if every[number]
    ]
    facts = {
        "detector": options.detector,
        "its weights, SHA-256": loaded.block["weights_sha256"],
        "images": ", ".join(images.roots),
        "their names, SHA-256": images.fingerprint,
        "numbers": f"{DETECTIONS} and {IMAGES} beside this page",
    }
    score = f"scored {options.min_score:g} or more"
    among = "the images that have some" if having else "all images, for none has one: a lower --min_score shows more"
    head = ["Class", f"Detections {score}", "In images", "All detections"]
    text = Template(files("detection.detecting").joinpath("page.html").read_text("utf-8")).substitute(
        style=style(),
        title=escape("Detections"),
        lead=f"{sure.total():,} detections {score} in {len(having):,} of {len(entries):,} images",
        notes=_notes(unreadable),
        classes=table("What was found of each class.", head, body) if body else "<p>Nothing was found.</p>",
        chosen=f"Detections {score}. Spread evenly over {among}; nobody chose them.",
        pictures="".join(figures(picture, f"p{k}") for k, picture in enumerate(pictures)),
        facts="".join(f"<dt>{escape(key)}</dt><dd>{escape(printable(value))}</dd>" for key, value in facts.items()),
    )
    with writing(options.output, PAGE, STAYS) as file:
        file.write(text.encode())


def _panels(
    options: Detecting, chosen: dict[int, str], names: dict[int, str], kinds: dict[int, str]
) -> dict[int, Panel]:
    """What is drawn over the images `chosen`, id -> file name."""
    boxes: dict[int, list[Box]] = {image_id: [] for image_id in chosen}
    for row in _rows(options.output) if chosen else ():
        if row["image_id"] in boxes and row["score"] >= options.min_score:
            number = row["category_id"]
            text = f"{names[number]} {row['score']:.2f}"
            boxes[row["image_id"]].append(Box(tuple(row["bbox"]), kinds[number], text, row.get("segmentation")))
    return {
        image_id: Panel(tuple(found), f"{printable(chosen[image_id])}: {len(found)} detection{'s' * (len(found) != 1)}")
        for image_id, found in boxes.items()
    }


def _notes(unreadable: Sequence[str]) -> str:
    if not unreadable:
        return ""
    lines = [f"{len(unreadable):,} image{'s' * (len(unreadable) != 1)} could not be read:", *unreadable[:NAMED]]
    if len(unreadable) > NAMED:
        lines.append(f"and {len(unreadable) - NAMED:,} more, see {UNREADABLE}")
    return f'<ul class="notes">{"".join(f"<li>{escape(printable(line))}</li>" for line in lines)}</ul>'


def _rows(output: str) -> Iterator[dict[str, Any]]:
    """The detections, which are a line each: of many images they would fill the memory."""
    fs, path = filesystem(output)
    try:
        with fs.open(join(path, DETECTIONS), "rb") as file:
            for line in file:
                if line.startswith(b"{"):  # the others are [ and ]
                    yield json.loads(line.rstrip(b",\n"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{output}/{DETECTIONS}: cannot be read ({error}); remove the folder and detect again"
        ) from error


def _read(output: str, name: str) -> dict[str, Any]:
    fs, path = filesystem(output)
    try:
        return json.loads(fs.cat_file(join(path, name)))
    except (OSError, ValueError) as error:
        raise UserError(f"{output}/{name}: cannot be read ({error}); detect again, elsewhere") from error
