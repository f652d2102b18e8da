"""The challenge's numbers of classes, its lists of images and its lines, as the devkits' readmes have them.

Classification (2012's, task 1): up to five classes a line, the surest first; an image a line, in the order of the names
of their files. Localisation (2012's task 2, and CLS-LOC of 2015): each class is followed by its box. Detection: a line
an object, `<image> <class> <confidence> <xmin> <ymin> <xmax> <ymax>`, the image by its number in the list. Pixels are
counted from 1, and a box holds its last one.
"""

import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from backbone.data.decode import decode
from backbone.data.formats import is_image, some
from backbone.errors import BadImage, UserError
from backbone.storage import filesystem

CLSLOC, DET = "CLS-LOC", "DET"
LAYOUT = "folder:list, such as /data/ILSVRC:test"


class Synsets(NamedTuple):
    """The classes of a challenge."""

    numbers: dict[str, int]
    """WordNet id -> its number, from 1."""

    names: dict[str, str]
    """What the file calls a class -> its WordNet id; of those that are called so alone."""


def read_synsets(url: str) -> Synsets:
    """Of a file such as the devkit's map_clsloc.txt.

    Raises:
        UserError: it cannot be read, a line is not of this form, or the numbers are not 1 to N.
    """
    fs, path = filesystem(url)
    try:
        lines = [line.split() for line in fs.cat_file(path).decode().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"synsets {url}: cannot be read: {error}") from error
    if not lines:
        raise UserError(f"synsets {url}: is empty; give the devkit's data/map_clsloc.txt or data/map_det.txt")
    alone = all(len(line) == 1 for line in lines)
    wnids = [line[0] for line in lines]
    if alone and len(wnids) > 1 and wnids == sorted(wnids):
        raise UserError(
            f"synsets {url}: WordNet ids in their own order, which is that of folders and not the challenge's; give "
            "the devkit's data/map_clsloc.txt, or write the numbers: n02119789 1"
        )
    numbers = range(1, len(lines) + 1)
    if not alone:
        for line in lines:
            if len(line) < 2 or not line[1].isdecimal():
                raise UserError(f"synsets {url}: {' '.join(line)!r} is no WordNet id and number, as in n02119789 1")
        numbers = [int(line[1]) for line in lines]
    if sorted(numbers) != list(range(1, len(lines) + 1)) or len({*wnids}) < len(wnids):
        raise UserError(
            f"synsets {url}: the numbers of its {len(lines)} classes are to be 1 to {len(lines)}, each once"
        )
    called = [" ".join(line[2:]) for line in lines]
    times = Counter(called)
    names = {name: wnid for name, wnid in zip(called, wnids, strict=True) if name and times[name] == 1}
    return Synsets(dict(zip(wnids, numbers, strict=True)), names)


def numbers_of(classes: Sequence[str], synsets: Synsets, whose: str, by_position: bool | None = False) -> list[int]:
    """The challenge's number of each class: by WordNet id, or by the name in the file of synsets.

    `by_position` None: it is nothing that could be asked for.

    Raises:
        UserError: the challenge has no such class; or with `by_position`, another number of classes.
    """
    if by_position:
        if len(classes) != len(synsets.numbers):
            raise UserError(f"by_position: {whose} has {len(classes)} classes, the challenge {len(synsets.numbers)}")
        return [synsets.numbers[wnid] for wnid in sorted(synsets.numbers)]
    found = [name if name in synsets.numbers else synsets.names.get(name.replace(" ", "_"), "") for name in classes]
    unknown = [name for name, wnid in zip(classes, found, strict=True) if not wnid]
    if unknown:
        way = "" if by_position is None else "; --by_position true takes class k for the k-th sorted WordNet id"
        raise UserError(
            f"synsets: lacks {len(unknown)} of the {len(classes)} classes of {whose}: {some(unknown)}. Classes are "
            f"matched by WordNet id or the file's name{way}"
        )
    return [synsets.numbers[wnid] for wnid in found]


@dataclass(frozen=True)
class ListedImages:
    """The images of a list, which nobody gives the labels of: each is 0."""

    places: tuple[str, ...]
    numbers: tuple[int, ...]
    """In the list."""

    @property
    def labels(self) -> np.ndarray:
        return np.zeros(len(self.places), np.int64)

    def __len__(self) -> int:
        return len(self.places)

    def name(self, i: int) -> str:
        """Path of image i."""
        return self.places[i]

    def image(self, i: int) -> np.ndarray:
        """Image i, uint8 [H, W, 3], RGB.

        Raises:
            BadImage: it cannot be read or decoded. Names it.
        """
        try:
            return decode(Path(self.places[i]).read_bytes(), self.places[i])
        except OSError as error:
            raise BadImage(f"{self.places[i]}: {error.strerror or error}") from error


def read_list(location: str, challenge: str) -> ListedImages:
    """The images of `folder:list` of a challenge's layout, or of CLS-LOC those of a folder.

    In the order of their files' names, as CLS-LOC's lines are to be. A list's images lie in the folder that is called
    as the list is up to its first underscore.

    Raises:
        UserError: no such list or folder, no image, or of a list one that is missing; names it.
    """
    place = Path(location).expanduser()
    if challenge == CLSLOC and place.is_dir():
        files = sorted(path.name for path in place.iterdir() if is_image(path.name))
        if not files:
            raise UserError(f"images {location}: no image in this folder; give it, or {LAYOUT}")
        return ListedImages(tuple(str(place / name) for name in files), tuple(range(1, len(files) + 1)))
    folder, _, split = location.rpartition(":")
    root = Path(folder).expanduser()
    file = root / "ImageSets" / challenge / f"{split}.txt"
    if not folder or not root.is_dir():
        raise UserError(f"images {location}: no such folder; give {LAYOUT}")
    try:
        lines = [line.split() for line in file.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"images {location}: {file}: {error.strerror}; give {LAYOUT}") from error
    try:
        pairs = sorted((name, int(number)) for name, number in lines)
    except ValueError as error:
        raise UserError(f"{file}: is no list of names and numbers, as in ILSVRC2012_test_00000001 1") from error
    if not pairs or len({*(number for _, number in pairs)}) < len(pairs):
        raise UserError(f"{file}: names no image, or a number twice; restore it")
    data = root / "Data" / challenge / split.partition("_")[0]
    places = [data / f"{name}.JPEG" for name, _ in pairs]
    if missing := [str(path) for path in places if not path.is_file()]:
        raise UserError(f"images {location}: {len(missing)} of {len(places)} are missing: {some(missing, 2)}")
    return ListedImages(tuple(map(str, places)), tuple(number for _, number in pairs))


def classification_line(numbers: Sequence[int]) -> str:
    """Classes by their numbers, the surest first."""
    return " ".join(map(str, numbers)) + "\n"


def localisation_line(numbers: Sequence[int], boxes: np.ndarray) -> str:
    """The same, each followed by its box: float64 [len(numbers), 4], x1 y1 x2 y2, x2 - x1 the width."""
    return " ".join(f"{number} {_inclusive(*box)}" for number, box in zip(numbers, boxes.tolist(), strict=True)) + "\n"


def detection_line(image: int, number: int, row: Mapping[str, Any]) -> str:
    """An object of a class, by its number, in an image, by its own; `row` of COCO results."""
    x, y, width, height = row["bbox"]
    return f"{image} {number} {row['score']} {_inclusive(x, y, x + width, y + height)}\n"


def _inclusive(x1: float, y1: float, x2: float, y2: float) -> str:
    return f"{x1 + 1:.2f} {y1 + 1:.2f} {x2:.2f} {y2:.2f}"


def detection_lines(
    images: ListedImages, found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], synsets: Synsets
) -> list[str]:
    """Of `images.json` and `detections.json` of jobs/detect.py; images in the order of the list.

    Raises:
        UserError: images of the list are missing there, or others are there, or classes that the challenge lacks.
    """
    known = {_stem(one["file_name"]): one["id"] for one in found["images"]}
    listed = {_stem(place): number for place, number in zip(images.places, images.numbers, strict=True)}
    again = "detect in the folder of the list alone: jobs/detect.py --images FOLDER"
    for whose, stems, fix in (
        ("they hold", [one["file_name"] for one in found["images"]], again),
        ("the list has", images.places, "take one of each from the list"),
    ):
        if twice := [name for name, times in Counter(map(_stem, stems)).items() if times > 1]:
            raise UserError(
                f"detections: {whose} several images called {some(twice)}, and images are matched by their names "
                f"without folder and suffix; {fix}"
            )
    if lacking := sorted(listed.keys() - known.keys()):
        raise UserError(
            f"detections: {len(lacking)} images of the list were not detected in: {some(lacking)}; those that "
            "unreadable.txt names could not be read: put good copies in their place and detect into another --output"
        )
    if others := sorted(known.keys() - listed.keys()):
        raise UserError(f"detections: hold {len(others)} images that are not in the list: {some(others)}")
    categories = found["categories"]
    numbers = numbers_of([one["name"] for one in categories], synsets, "the detector", None)
    of_category = {one["id"]: number for one, number in zip(categories, numbers, strict=True)}
    of_image = {known[stem]: number for stem, number in listed.items()}
    rows = sorted(rows, key=lambda row: of_image[row["image_id"]])
    return [detection_line(of_image[row["image_id"]], of_category[row["category_id"]], row) for row in rows]


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]
