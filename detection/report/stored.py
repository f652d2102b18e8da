"""What detectors hit, read from the results folders of their evaluations."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from backbone.errors import UserError
from backbone.storage import filesystem, join
from detection.data.contract import Categories
from detection.matches import OVERLAPS, ROWS, all_matches
from detection.pixels import Pixels

Kind = Literal["bbox", "segm", "voc", "semantic"]


@dataclass(frozen=True)
class Overlaps:
    """How D detections lie on the G objects that count, of their class and of others. Objects are rows of `gt_*`."""

    iou: np.ndarray  # float [D], best with an object of the class
    near: np.ndarray  # int [D], that object, -1 where iou is 0
    iou_other: np.ndarray  # float [D], best with an object of another class
    near_other: np.ndarray  # int [D], likewise
    found: np.ndarray  # int [D], the object it is matched to at IoU .5, -1 where there is none


@dataclass(frozen=True)
class Matches:
    """Which detections of an evaluation hit: D detections and G objects of N images, at T thresholds of IoU.

    By boxes or masks as pycocotools matches them, area all, at most 100 detections an image and class, T = 10: IoU
    .50:.05:.95. By boxes as VOC's devkit matches them, all detections, T = 1: IoU .5. `image` and `gt_image` index
    `image_ids`; labels are 1..K.
    """

    image: np.ndarray  # int [D]
    label: np.ndarray  # int [D]
    score: np.ndarray  # float [D]
    tp: np.ndarray  # bool [D, T]
    ignored: np.ndarray  # bool [D, T], matched to a crowd, VOC: to a difficult object
    gt_image: np.ndarray  # int [G], crowds and difficult ones left out
    gt_label: np.ndarray  # int [G]
    image_ids: np.ndarray  # int64 [N]
    overlaps: Overlaps | None = None  # None for VOC's

    @property
    def num_classes(self) -> int:
        """K: the highest label seen."""
        return int(max(self.label.max(initial=0), self.gt_label.max(initial=0)))

    @property
    def judged_on(self) -> tuple[np.ndarray, np.ndarray]:
        """What is the same for all that are judged on the same images and objects."""
        objects = np.stack([self.image_ids[self.gt_image], self.gt_label.astype(np.int64)])
        return np.sort(self.image_ids), objects[:, np.lexsort(objects)]


def load(results: str, masks: bool = False) -> dict[Kind, Matches]:
    """Boxes' matches by COCO's rules and VOC's, and with `masks` theirs, of a results folder, local or remote.

    Those of version 0.1.0, which wrote less, are matched anew from the folder's JSON files.

    Raises:
        UserError: a file is missing or damaged.
    """
    arrays = _read(results)
    kinds: tuple[Kind, ...] = ("bbox", "segm", "voc") if masks else ("bbox", "voc")
    try:
        return {kind: _of(arrays, kind) for kind in kinds}
    except KeyError:
        again = _anew(results, masks)
        return {kind: _of(again, kind) for kind in kinds}


def load_pixels(results: str) -> Pixels:
    """The confusion of classes, image by image, of a results folder of kind semantic, local or remote.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        return Pixels.of(_read(results))
    except (KeyError, IndexError) as error:
        raise UserError(f"{results}/matches.npz: lacks {error}; evaluate the detector again") from error


def _read(results: str) -> dict[str, np.ndarray]:
    url = join(results, "matches.npz")
    fs, path = filesystem(url)
    try:
        with fs.open(path, "rb") as file, np.load(file, allow_pickle=False) as npz:
            return dict(npz)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{url}: cannot read the matches ({error}); evaluate the detector again") from error


def _of(arrays: Mapping[str, np.ndarray], kind: Kind) -> Matches:
    """KeyError where an array is missing."""
    if kind == "voc":
        named = {name: arrays["image_ids" if name == "image_ids" else f"voc_{name}"] for name in ROWS}
        return Matches(**named, overlaps=None)
    own = {name: arrays[name] for name in ROWS}
    prefix = "segm_" if kind == "segm" else ""
    own |= {name: arrays[prefix + name] for name in ("tp", "ignored")}
    return Matches(**own, overlaps=Overlaps(**{name: arrays[prefix + name] for name in OVERLAPS}))


def _anew(results: str, masks: bool) -> dict[str, np.ndarray]:
    from detection.scoring import read

    scored = read(results)
    classes = scored.ground_truth["categories"]  # in the order of the labels
    categories = Categories(tuple(c["name"] for c in classes), tuple(c["id"] for c in classes))
    return all_matches(scored.ground_truth, scored.detections, categories, masks)
