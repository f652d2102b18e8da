"""A detector's artifact to another framework's folder, written only after both found the same in the same images."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as rle

from backbone.data.stream import order
from backbone.errors import UserError
from backbone.extras import how_to_install
from backbone.interop.export import BLOCK, installed
from backbone.storage import check_kept, filesystem, join, write_folder
from detection import artifact
from detection.detections import Detections
from detection.evaluate import detect_one
from detection.interop import card, onnx, torchvision
from detection.interop.source import Answer, Files, Source
from detection.nets import Rcnn, Semantic

SAME_MASK = 0.8  # IoU: a box off by the tolerance may end a pixel further
OTHERS = 0.02
"""Part of the detections that may be others: where two scores, or an IoU and its threshold, are as good as equal."""
ALL = {"score": 0.0}
FEWEST = 10  # detections in the images that are compared, or the threshold of scores is taken away for it


class Tolerance(NamedTuple):
    """What the same detection may differ by."""

    boxes: float
    """Pixels of the image."""
    scores: float


@dataclass(frozen=True)
class Target:
    """What is particular to one framework."""

    write: Callable[[Source], Files]
    snippet: Callable[[Source], str]
    obstacle: Callable[[Source], str]
    """Why it cannot have a detector, and what to do; empty: it can."""
    answers: Callable[[Path, Source], Answer]
    sizes: Callable[[Source], tuple[tuple[int, int], ...]]
    """Heights and widths of the images that are compared."""
    packages: tuple[str, ...]
    notes: Callable[[Source], list[str]]
    tolerance: Tolerance


TARGETS: dict[str, Target] = {
    "onnx": Target(
        onnx.write,
        onnx.snippet,
        lambda source: "",
        onnx.answers,
        onnx.sizes,
        ("onnx", "onnxruntime"),
        onnx.notes,
        Tolerance(1e-3, 1e-5),
    ),
    "torchvision-detection": Target(
        torchvision.write,
        torchvision.snippet,
        torchvision.obstacle,
        torchvision.answers,
        torchvision.sizes,
        ("torchvision",),
        torchvision.notes,
        Tolerance(1e-2, 1e-4),  # a net that reads BGR has its first kernels reversed, and adds up in another order
    ),
}


class Agreement(NamedTuple):
    """What both sides found in one image."""

    sides: tuple[int, int]
    found: int
    others: int
    """Of them, those that the other side has not."""
    boxes: float
    """By how much the same ones differ at most, pixels."""
    scores: float

    def __str__(self) -> str:
        height, width = self.sides
        others = f", {self.others} of them others" if self.others else ""
        same = f"boxes within {self.boxes:.1e} pixels, scores within {self.scores:.1e}"
        return f"image of {height} x {width}: {self.found} detections{others}; {same}"


@dataclass(frozen=True)
class Exported:
    """What was written."""

    agreements: tuple[Agreement, ...]
    notes: tuple[str, ...]
    snippet: str
    files: tuple[str, ...]


def is_detector(url: str) -> bool:
    """Whether an artifact is a detector's; what cannot be read is left to those who say why."""
    fs, path = filesystem(url)
    try:
        config = json.loads(fs.cat_file(join(path, "config.json")))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "raybone_detector" in config


def export(url: str, to: str, output: str, license: str = "unknown") -> Exported:
    """Write the detector's artifact at `url` for the framework `to` into the folder `output`.

    Nothing is written unless both sides find the same in the same images.

    Raises:
        UserError: the artifact is not intact, the framework cannot have the detector, it finds something else, a
            package is missing, or the place cannot be written.
    """
    check_kept(output, "output")
    if to not in TARGETS:
        raise UserError(
            f"{url} is a detector, and {to} takes backbones alone. Detectors go to {' and '.join(TARGETS)}; the "
            "backbone that it was made of is named in its config.json (provenance.recipe.backbone)"
        )
    target = TARGETS[to]
    absent = [name for name in target.packages if not installed(name)]
    if absent:
        extra = how_to_install(to) if to == "onnx" else f"pip install {' '.join(absent)}"
        raise UserError(f"{to}: its own side of the probe needs {' and '.join(absent)}: {extra}")
    loaded = artifact.load(url)
    if isinstance(loaded.detector, Semantic):
        raise UserError(
            f"{url} is of kind semantic, and {to} takes detectors of boxes alone; call detection.segment in Python"
        )
    source = Source(loaded, str(output).rstrip("/"))
    if reason := target.obstacle(source):
        able = [name for name, other in TARGETS.items() if not other.obstacle(source)]
        raise UserError(f"{source.title} cannot go to {to}: {reason}. These can have it: {', '.join(able)}")
    files = target.write(source)
    agreements = tuple(verify(source, to, files))
    notes, snippet = tuple(target.notes(source)), target.snippet(source)
    files[BLOCK] = (json.dumps({"provenance": source.loaded.block["provenance"]}, indent=2) + "\n").encode()
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    checked = [str(agreement) for agreement in agreements]
    files["README.md"] = card.write(source, to, sums, checked, notes, snippet, license).encode()
    write_folder(output, files, "export")
    return Exported(agreements, notes, snippet, tuple(files))


def verify(source: Source, to: str, files: Files) -> Iterator[Agreement]:
    """Compare what the framework finds with `files` and what the detector finds, image by image.

    A detector that finds next to nothing in them is compared once more without its threshold.

    Raises:
        UserError: they differ, or the framework cannot read the files.
    """
    rows = list(_compared(source, to, files))
    if sum(row.found for row in rows) < FEWEST:
        with _without_threshold(source):
            rows = list(_compared(source, to, TARGETS[to].write(source)))
    yield from rows


def _compared(source: Source, to: str, files: Files) -> Iterator[Agreement]:
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        try:
            answer = TARGETS[to].answers(Path(folder), source)
        except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"{to} does not load what was written: {' '.join(str(error).split())[:400]}") from error
        for height, width in TARGETS[to].sizes(source):
            image = picture(height, width)
            yield agree(detect_one(source.loaded, image), answer(image), (height, width), to)


def agree(ours: Detections, theirs: Detections, sides: tuple[int, int], to: str) -> Agreement:
    """How much the detections of one image differ; UserError where it is too much.

    The same detection has its class, and of that the nearest box: rows with as good as equal scores may have changed
    places.
    """
    most = TARGETS[to].tolerance
    apart = np.abs(ours.boxes[:, None] - theirs.boxes[None]).max(-1, initial=0)
    apart[ours.labels[:, None] != theirs.labels[None]] = np.inf
    used, boxes, scores = set[int](), [0.0], [0.0]
    for row in range(len(ours)):
        free = [column for column in np.argsort(apart[row], kind="stable").tolist() if column not in used][:1]
        for column in free:
            score = abs(float(ours.scores[row]) - float(theirs.scores[column]))
            near = apart[row, column] <= most.boxes and score <= most.scores
            if near and _same_mask(ours, theirs, row, column):
                used.add(column)
                boxes.append(float(apart[row, column]))
                scores.append(score)
    others = max(len(ours), len(theirs)) - len(used)
    if others > OTHERS * max(len(ours), len(theirs)):
        raise UserError(
            f"{to} does not find the same: of {len(ours)} detections in an image of {sides[0]} x {sides[1]} pixels it "
            f"has {len(used)} (within {most.boxes:g} pixels and {most.scores:g} of score), and "
            f"{len(theirs) - len(used)} others"
        )
    return Agreement(sides, len(ours), others, max(boxes), max(scores))


def _same_mask(ours: Detections, theirs: Detections, row: int, column: int) -> bool:
    if ours.masks is None or theirs.masks is None:
        return ours.masks is theirs.masks
    pair = [ours.masks[row]], [theirs.masks[column]]
    empty = [not rle.area(one[0]) for one in pair]
    return all(empty) or (not any(empty) and float(rle.iou(*pair, [0])[0][0]) >= SAME_MASK)


def picture(height: int, width: int) -> np.ndarray:
    """An image uint8 [height, width, 3] of soft spots, always the same."""
    spots = (order(2015, 7, 3 * 12 * 16) % 256).astype("uint8").reshape(12, 16, 3)
    return cv2.resize(spots, (width, height), interpolation=cv2.INTER_CUBIC)


@contextmanager
def _without_threshold(source: Source) -> Generator[None, None, None]:
    """Its detector with all detections, however low their score."""
    detector, options = source.loaded.detector, source.loaded.detector.options
    try:
        if isinstance(detector, Rcnn):
            detector.options = options.model_copy(update={"roi": detector.options.roi.model_copy(update=ALL)})
            detector.roi_heads.score_thresh = 0.0
        else:
            detector.options = options.model_copy(update=ALL)
        yield
    finally:
        detector.options = options
        if isinstance(detector, Rcnn):
            detector.roi_heads.score_thresh = detector.options.roi.score
