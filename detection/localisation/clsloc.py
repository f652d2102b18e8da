"""ILSVRC's CLS-LOC layout: Data/CLS-LOC, Annotations/CLS-LOC, ImageSets/CLS-LOC.

    ILSVRC/ImageSets/CLS-LOC/train_loc.txt         n01440764/n01440764_10040 1
    ILSVRC/ImageSets/CLS-LOC/val.txt               ILSVRC2012_val_00000001 1
    ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_10040.JPEG
    ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml

A list's folder is called as the list up to its first underscore. Annotations are Pascal VOC's XML with WordNet ids for
names; boxes hold their last pixel and are counted from 1, as the devkit's overlap takes them.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from backbone.data.findings import Findings
from backbone.data.index import IndexedSource, cache_directory, is_fresh, store, tabulate, tell
from backbone.data.listing import THREADS
from backbone.errors import UserError
from detection.data.voc_xml import NotText, annotation_of, parse

LAYOUT = "a folder of ILSVRC holds Data/CLS-LOC, Annotations/CLS-LOC and ImageSets/CLS-LOC"
FORMAT = 1


class Entry(NamedTuple):
    """One image of a list."""

    number: int
    """In the list, which a blacklist means."""

    name: str
    """Its file under Data/CLS-LOC."""

    size: int
    """Bytes."""

    synset: str
    sides: tuple[int, int]
    boxes: list[tuple[float, float, float, float]]
    """Of its synset, x1 y1 x2 y2 in pixels, x2 - x1 the width."""

    others: int
    """Boxes of other synsets, and such as are empty."""


class Located(IndexedSource):
    """A `LocatedSource` of an index."""

    def __init__(self, *where: Any, **more: Any) -> None:
        super().__init__(*where, **more)
        self.sides: np.ndarray = self._arrays["sides"]

    def __reduce__(self) -> tuple[Any, ...]:
        return Located, (*self._where, self.fingerprint)

    def boxes(self, i: int) -> np.ndarray:
        """See `LocatedSource.boxes`."""
        start, stop = self._arrays["starts_of_boxes"][i : i + 2]
        return np.array(self._arrays["boxes"][start:stop])


def open_clsloc(location: str, cache: str | None = None, blacklist: str = "") -> Located:
    """Open `folder:list`. Images without a box are left out and counted; of other classes' boxes likewise.

    All annotations are read each time (544,546 files for train_loc).

    Args:
        location: such as /data/ILSVRC:train_loc or /data/ILSVRC:val; a local folder.
        cache: see `cache_directory`.
        blacklist: the devkit's file of images that are not judged, by their numbers in the list.

    Raises:
        UserError: no such folder or list, a missing image or annotation, or a damaged one; names the file.
    """
    folder, _, split = location.rpartition(":")
    root = Path(folder).expanduser()
    if not folder or not (root / "Annotations/CLS-LOC").is_dir():
        raise UserError(f"{location}: give folder:list, such as /data/ILSVRC:train_loc; {LAYOUT}")
    lists = root / "ImageSets/CLS-LOC"
    try:
        lines = [line.split() for line in (lists / f"{split}.txt").read_text().splitlines() if line.strip()]
    except OSError as error:
        there = ", ".join(sorted(path.stem for path in lists.glob("*.txt"))) or "none"
        raise UserError(f"{lists}/{split}.txt: {error.strerror}; lists there: {there}") from error
    part = split.partition("_")[0]
    numbers = [int(line[1]) if len(line) > 1 and line[1].isdigit() else k for k, line in enumerate(lines, 1)]
    names = [f"{part}/{line[0]}" for line in lines]
    findings = Findings()
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda pair: _read(root, *pair), zip(numbers, names, strict=True)))
    if others := [entry for entry in found if entry.others]:
        count = sum(entry.others for entry in others)
        findings.add("warning", "boxes that are empty or of another class", "left out", others[0].name, count)
    judged = _without(found, blacklist, findings)
    entries = [entry for entry in judged if entry.boxes]
    if len(entries) < len(judged):
        without = [entry.name for entry in judged if not entry.boxes]
        findings.add("warning", "images without a box of their class", "left out", without[0], len(without))
    if not entries:
        raise UserError(f"{location}: no image has a box")
    arrays = _tabulate(entries) | tell(findings)
    fingerprint = arrays["fingerprint"].tobytes().decode()
    path = cache_directory(cache) / f"clsloc-{fingerprint[:16]}.index"
    state = f"{FORMAT} {fingerprint}"
    if not is_fresh(path, state):
        store([path], state, arrays)
    data = str(root / "Data/CLS-LOC")
    return Located(path, data, data, data, places=[data])


def _read(root: Path, number: int, name: str) -> Entry:
    file = root / "Annotations/CLS-LOC" / f"{name}.xml"
    image = f"{name}.JPEG"
    try:
        size = (root / "Data/CLS-LOC" / image).stat().st_size
        annotation = annotation_of(parse(file.read_bytes())[0], str(file), lambda called: None)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; restore it, or take {name} from the list") from error
    except (NotText, ValueError, OverflowError) as error:
        raise UserError(f"{file}: {error}; restore the file") from error
    pairs = list(zip(annotation.classes, annotation.boxes, strict=True))
    folder, slash, _ = name.partition("/")[2].partition("/")
    synset = folder if slash else (pairs[0][0] if pairs else "")
    if not slash and len(set(annotation.classes)) > 1:
        raise UserError(f"{file}: has objects of {len(set(annotation.classes))} classes; an image of val has one")
    own = [(x1 - 1, y1 - 1, x2, y2) for named, (x1, y1, x2, y2) in pairs if named == synset]
    own = [box for box in own if box[2] > box[0] and box[3] > box[1]]
    return Entry(number, image, size, synset, annotation.size, own, len(pairs) - len(own))


def _without(entries: Sequence[Entry], blacklist: str, findings: Findings) -> list[Entry]:
    """Entries less those that a blacklist names."""
    if not blacklist:
        return list(entries)
    try:
        numbers = {int(word) for word in Path(blacklist).expanduser().read_text().split()}
    except (OSError, ValueError) as error:
        raise UserError(f"data.blacklist {blacklist}: not a file of numbers: {error}") from error
    kept = [entry for entry in entries if entry.number not in numbers]
    findings.add("note", "images on the blacklist", "not judged", blacklist, len(entries) - len(kept))
    return kept


def _tabulate(entries: Sequence[Entry]) -> dict[str, np.ndarray]:
    classes = sorted({entry.synset for entry in entries})
    place = {synset: k for k, synset in enumerate(classes)}
    boxes = np.array([box for entry in entries for box in entry.boxes], np.float64).reshape(-1, 4)
    sides = np.array([entry.sides for entry in entries], np.int64)
    names = [entry.name for entry in entries]
    arrays = tabulate("clsloc", names, [place[entry.synset] for entry in entries], [e.size for e in entries], classes)
    more = {"boxes": boxes, "starts_of_boxes": np.cumsum([0, *(len(e.boxes) for e in entries)]), "sides": sides}
    sha = hashlib.sha256(arrays["fingerprint"].tobytes())
    for array in more.values():
        sha.update(array.tobytes())
    return arrays | more | {"fingerprint": np.frombuffer(sha.hexdigest().encode(), np.uint8)}
