"""The page's pictures: detections beside ground truth, and the worst errors. JPEGs, boxes or masks as SVG over them."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask

from detection.coco_format import encoded

SIDE = 320
SHOWN = 0.3  # score from which a detection counts in the pictures
HIT = 0.5  # IoU of a hit
BUDGET = 2_000_000  # base64 letters of all JPEGs of a page, which stays under 3 MB
OFF = 0.7  # pixels that the outline of a mask may be off

Pixels = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class Detected:
    """One row's detections, COCO results format, and the training seed they come from."""

    label: str
    detections: list[dict[str, Any]]
    seed: int


@dataclass(frozen=True)
class Box:
    """In pixels of the picture: x, y, width, height. `kind` is its colour: truth, hit, wrong, missed or other."""

    xywh: tuple[float, float, float, float]
    kind: str
    text: str
    rle: dict[str, Any] | None = None
    """Its mask in the whole image, where masks are shown."""

    path: str = ""
    """The mask's outline in the picture, SVG."""


@dataclass(frozen=True)
class Panel:
    """Boxes over a picture, and what is to be said of it."""

    boxes: tuple[Box, ...]
    caption: str


@dataclass(frozen=True)
class Picture:
    """A JPEG (base64) of width x height with one panel or several over it."""

    image_id: int
    jpeg: str
    width: int
    height: int
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Errors:
    """One row's worst: highest-scored false detections, and largest objects missed."""

    label: str
    seed: int
    wrong: tuple[Picture, ...]
    missed: tuple[Picture, ...]


@dataclass(frozen=True)
class Gallery:
    """`samples` have a panel for the ground truth and one for each row."""

    samples: tuple[Picture, ...]
    errors: tuple[Errors, ...]


@dataclass(frozen=True)
class _Shot:
    """A picture before its pixels are read: boxes in pixels of the whole image, `crop` the part to show."""

    image_id: int
    crop: tuple[float, float, float, float] | None
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class _Scene:
    """One image and one row: detections best first with (is hit, what went wrong), and objects missed."""

    detections: list[dict[str, Any]]
    hits: list[bool]
    reasons: list[str]
    objects: int
    missed: list[tuple[dict[str, Any], str]]


def gallery(
    truth: dict[str, Any],
    rows: Sequence[Detected],
    image: Pixels,
    samples: int = 6,
    worst: int = 6,
    masks: bool = False,
    budget: int = BUDGET,
    regions: bool = False,
) -> Gallery:
    """Pick the pictures and draw them.

    Samples are spread evenly over the images that have objects: nobody chose them. Matching is COCO's at IoU .5, among
    detections scored .3 or more; crowds are neither hit nor missed. Of a sample that has none the surest is drawn.

    Args:
        truth: COCO instances dict.
        image: uint8 [H, W, 3] RGB of an image id, of the size that `truth` records.
        samples: images shown with ground truth and every row.
        worst: false detections, and missed objects, of each row; one an image.
        masks: match and show masks, not boxes; truth and detections need `segmentation`.
        budget: most base64 letters of all JPEGs.
        regions: what is found are the regions of classes, all of which count, whatever their score.
    """
    if masks:
        truth = {**truth, "annotations": _with_masks(truth["annotations"], truth["images"])}
    names = {c["id"]: c["name"] for c in truth["categories"]}
    objects = _by_image(truth["annotations"])
    sizes = {i["id"]: (i["width"], i["height"]) for i in truth["images"]}
    scenes_of_rows: list[dict[int, _Scene]] = []
    for row in rows:
        sure = [d for d in row.detections if regions or d["score"] >= SHOWN]
        found = _by_image(_with_masks(sure, truth["images"]) if masks else sure)
        scenes_of_rows.append({i: _scene(objects.get(i, []), found.get(i, []), names) for i in sizes})
    full = sorted(i for i, found in objects.items() if not all(a.get("iscrowd") for a in found))
    at = np.linspace(0, len(full) - 1, min(samples, len(full))).round().astype(int)
    what = "region" if regions else "object"
    faint = [{} if regions else _surest(row.detections, {full[i] for i in at}, truth["images"], masks) for row in rows]
    shots = [[_sample(full[i], objects[full[i]], rows, scenes_of_rows, faint, names, what) for i in at]]
    for scenes in scenes_of_rows:
        shots += [_wrong(scenes, objects, names, sizes, worst), _missed(scenes, names, sizes, worst)]
    pictures = _within(budget, shots, image)
    errors = [Errors(r.label, r.seed, *pictures[2 * k + 1 : 2 * k + 3]) for k, r in enumerate(rows)]
    return Gallery(pictures[0], tuple(errors))


def whole(panels: dict[int, Panel], image: Pixels, budget: int = BUDGET) -> tuple[Picture, ...]:
    """The whole image of each id with a panel over it; `image` and `budget` as in `gallery`."""
    return _within(budget, [[_Shot(image_id, None, (panel,)) for image_id, panel in panels.items()]], image)[0]


def _within(budget: int, shots: Sequence[Sequence[_Shot]], image: Pixels) -> list[tuple[Picture, ...]]:
    """Each group drawn, as well as `budget` lets them all be."""
    pictures: list[tuple[Picture, ...]] = []
    for quality in (85, 65, 40, 20):
        pictures = [tuple(_draw(shot, image, quality) for shot in group) for group in shots]
        if sum(len(p.jpeg) for group in pictures for p in group) <= budget:
            break
    return pictures


def _with_masks(rows: Sequence[dict[str, Any]], images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each with its mask as `rle`, by which it is matched and drawn."""
    return [{**row, "rle": one} for row, one in zip(rows, encoded(list(rows), images), strict=True)]


def _by_image(entries: Sequence[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for entry in entries:
        found.setdefault(entry["image_id"], []).append(entry)
    return found


def _scene(objects: list[dict[str, Any]], found: list[dict[str, Any]], names: dict[int, str]) -> _Scene:
    """Match as COCO does: best score first, each takes the free object of its class it overlaps most."""
    objects = sorted(objects, key=lambda a: a.get("iscrowd", 0))
    found = sorted(found, key=lambda d: -d["score"])
    overlap = np.zeros((len(found), len(objects)))
    if found and objects:
        crowd = [a.get("iscrowd", 0) for a in objects]
        overlap = mask.iou(_extents(found), _extents(objects), crowd)
    free = np.ones(len(objects), bool)
    kept, hits, reasons = [], [], []
    for d, row in zip(found, overlap, strict=True):
        same = np.array([a["category_id"] == d["category_id"] for a in objects], bool)
        crowds = np.array([bool(a.get("iscrowd")) for a in objects], bool)
        open_to = row * (same & free & ~crowds)
        hit = bool(len(row)) and open_to.max() >= HIT
        if hit:
            free[open_to.argmax()] = False
        elif (row * (same & crowds) >= HIT).any():
            continue
        kept.append(d)
        hits.append(hit)
        reasons.append(_reason(row, same, objects, names))
    missed = []
    for k, a in enumerate(objects):
        if free[k] and not a.get("iscrowd"):
            column = overlap[:, k] if found else np.zeros(0)
            text = "nothing found there"
            if len(column) and column.max() >= 0.1:
                d = found[int(column.argmax())]
                text = f"nearest: {names[d['category_id']]} {d['score']:.2f}, IoU {column.max():.2f}"
            missed.append((a, text))
    return _Scene(kept, hits, reasons, sum(not a.get("iscrowd") for a in objects), missed)


def _extents(rows: Sequence[dict[str, Any]]) -> Any:
    """What overlaps: masks where the rows have them, else boxes."""
    return [row["rle"] for row in rows] if "rle" in rows[0] else np.array([row["bbox"] for row in rows])


def _box(row: dict[str, Any], kind: str, text: str) -> Box:
    return Box(tuple(row["bbox"]), kind, text, row.get("rle"))


def _reason(row: np.ndarray, same: np.ndarray, objects: list[dict[str, Any]], names: dict[int, str]) -> str:
    """Why a detection that overlaps objects by `row` is wrong."""
    if not len(row) or row.max() < 0.1:
        return "nothing is there"
    own = (row * same).max()
    if own >= HIT:
        return f"found twice, IoU {own:.2f}"
    if row.max() >= HIT:
        return f"is {names[objects[int(row.argmax())]['category_id']]}, IoU {row.max():.2f}"
    if own >= 0.1:
        return f"badly placed, IoU {own:.2f}"
    return f"only {names[objects[int(row.argmax())]['category_id']]} near, IoU {row.max():.2f}"


def _sample(
    image_id: int,
    objects: list[dict[str, Any]],
    rows: Sequence[Detected],
    scenes_of_rows: Sequence[dict[int, _Scene]],
    faint: Sequence[dict[int, dict[str, Any]]],
    names: dict[int, str],
    what: str,
) -> _Shot:
    real = [a for a in objects if not a.get("iscrowd")]
    boxes = tuple(_box(a, "truth", names[a["category_id"]]) for a in real)
    panels = [Panel(boxes, f"Ground truth: {len(real)} {what}{'s' * (len(real) != 1)}")]
    for row, scenes, surest in zip(rows, scenes_of_rows, faint, strict=True):
        scene = scenes[image_id]
        boxes = tuple(
            _box(d, "hit" if hit else "wrong", f"{names[d['category_id']]} {d['score']:.2f}")
            for d, hit in zip(scene.detections, scene.hits, strict=True)
        )
        caption = f"{row.label}: {sum(scene.hits)} of {scene.objects} found, {len(boxes) - sum(scene.hits)} wrong"
        if not boxes and (d := surest.get(image_id)):
            boxes = (_box(d, "other", f"{names[d['category_id']]} {d['score']:.2f}"),)
            caption += f"; its surest is scored below {SHOWN}"
        panels.append(Panel(boxes, caption))
    return _Shot(image_id, None, tuple(panels))


def _surest(
    detections: Sequence[dict[str, Any]], ids: set[int], images: list[dict[str, Any]], masks: bool
) -> dict[int, dict[str, Any]]:
    """The detection of the highest score in each of these images, if that is below `SHOWN`; with its mask where `masks`
    are shown."""
    best: dict[int, dict[str, Any]] = {}
    for d in detections:
        if d["image_id"] in ids and d["score"] > best.get(d["image_id"], {"score": 0.0})["score"]:
            best[d["image_id"]] = d
    found = [d for d in best.values() if d["score"] < SHOWN]  # surer ones that are not drawn lie on crowds
    return {d["image_id"]: d for d in (_with_masks(found, images) if masks else found)}


def _wrong(
    scenes: dict[int, _Scene],
    objects: dict[int, list[dict[str, Any]]],
    names: dict[int, str],
    sizes: dict[int, tuple[int, int]],
    count: int,
) -> list[_Shot]:
    """The highest-scored false detection of an image, the `count` highest of all."""
    worst = []
    for image_id, scene in scenes.items():
        at = next((k for k, hit in enumerate(scene.hits) if not hit), None)
        if at is not None:
            worst.append((scene.detections[at], scene.reasons[at], image_id))
    shots = []
    for d, reason, image_id in sorted(worst, key=lambda w: (-w[0]["score"], w[2]))[:count]:
        name = f"{names[d['category_id']]} {d['score']:.2f}"
        real = [a for a in objects.get(image_id, []) if not a.get("iscrowd")]
        boxes = [_box(a, "truth", "") for a in real]
        panel = Panel((*boxes, _box(d, "wrong", name)), f"{name}: {reason}")
        shots.append(_Shot(image_id, _around(d["bbox"], sizes[image_id]), (panel,)))
    return shots


def _missed(
    scenes: dict[int, _Scene], names: dict[int, str], sizes: dict[int, tuple[int, int]], count: int
) -> list[_Shot]:
    """The largest missed object of an image, the `count` largest of all, by its share of the image."""
    worst = []
    for image_id, scene in scenes.items():
        if scene.missed:
            a, text = max(scene.missed, key=lambda m: m[0]["bbox"][2] * m[0]["bbox"][3])
            w, h = sizes[image_id]
            worst.append((a["bbox"][2] * a["bbox"][3] / (w * h), a, text, image_id))
    shots = []
    for share, a, text, image_id in sorted(worst, key=lambda w: (-w[0], w[3]))[:count]:
        name = names[a["category_id"]]
        found = scenes[image_id].detections
        boxes = [_box(d, "other", f"{names[d['category_id']]} {d['score']:.2f}") for d in found]
        panel = Panel((*boxes, _box(a, "missed", name)), f"{name}, {100 * share:.0f} % of the image: {text}")
        shots.append(_Shot(image_id, _around(a["bbox"], sizes[image_id]), (panel,)))
    return shots


def _around(bbox: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box with as much again around it, at least 2/5 of the image and square where the image lets it."""
    x, y, w, h = bbox
    side = max(2 * w, 2 * h, 0.4 * max(size))
    width, height = min(side, size[0]), min(side, size[1])
    left = min(max(0.0, x + w / 2 - width / 2), size[0] - width)
    top = min(max(0.0, y + h / 2 - height / 2), size[1] - height)
    return left, top, width, height


def _draw(shot: _Shot, image: Pixels, quality: int) -> Picture:
    """Read, crop and shrink to 320 px; boxes follow, and leave where nothing of them is to be seen."""
    pixels = image(shot.image_id)
    left, top, width, height = shot.crop or (0, 0, pixels.shape[1], pixels.shape[0])
    x0, y0 = int(left), int(top)
    part = Image.fromarray(pixels[y0 : y0 + max(1, round(height)), x0 : x0 + max(1, round(width))])
    scale = SIDE / max(part.size)
    view = (max(1, round(part.width * scale)), max(1, round(part.height * scale)))
    if scale < 1:  # smaller pictures are kept, and enlarged on the page
        part = part.resize(view, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    part.save(file, "JPEG", quality=quality, optimize=True)
    panels = []
    for panel in shot.panels:
        boxes = []
        for box in panel.boxes:
            x, y, w, h = box.xywh
            # where the box meets the picture
            a, b = max(0.0, (x - x0) * scale), max(0.0, (y - y0) * scale)
            c, d = min(float(view[0]), (x + w - x0) * scale), min(float(view[1]), (y + h - y0) * scale)
            if c - a >= 1 and d - b >= 1:
                xywh = (round(a, 1), round(b, 1), round(c - a, 1), round(d - b, 1))
                window = (x0, y0, round(width), round(height))
                path = _outline(box.rle, window, view) if box.rle else ""
                boxes.append(Box(xywh, box.kind, box.text, path=path))
        panels.append(Panel(tuple(boxes), panel.caption))
    return Picture(shot.image_id, base64.b64encode(file.getvalue()).decode(), *view, tuple(panels))


def _outline(rle: dict[str, Any], window: tuple[int, int, int, int], view: tuple[int, int]) -> str:
    """Outlines of the part of a mask in `window` (x, y, width, height of the image) as an SVG path of the picture."""
    x, y, w, h = window
    seen = np.ascontiguousarray(mask.decode(rle)[y : y + h, x : x + w])
    if not seen.size:
        return ""
    small = cv2.resize(255 * seen, view, interpolation=cv2.INTER_AREA if view[0] < w else cv2.INTER_LINEAR)
    lines, _ = cv2.findContours((small >= 128).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parts = []
    for line in lines:
        points = cv2.approxPolyDP(line, OFF, True)[:, 0]
        if len(points) > 2:
            parts.append("M" + " ".join(f"{px},{py}" for px, py in points.tolist()) + "Z")
    return "".join(parts)
