"""The data doctor for labelled images: every fault of a data set at once, where training stops at the first."""

import hashlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from backbone.data.decode import decode
from backbone.data.findings import Diagnosis, Findings, image_sizes
from backbone.data.index import IndexedSource
from backbone.data.labels import class_findings
from backbone.data.prepare.pack import read_header
from backbone.data.prepare.prepare import open_images
from backbone.data.sources import Source, check_classes, check_splits, in_both
from backbone.errors import BadImage, UserError

TINY = 32  # pixels: images of a shorter side below are mostly blown up before a net sees them
IMBALANCE = 10  # times as many images in the largest class as in the smallest: worth a word
SOME = 64  # images a process takes at a time
FEW = 30  # classes; of more, the text lists none
DAMAGED = "put a good copy in its place; data.on_bad skip trains without it"
MENDED = "converted in reading; jobs/prepare.py does it once for all"
TWO_LABELS = "decide which label is right and remove the other: no net can learn or score both"
TWO_SPLITS = "remove one: what was trained on does not test anything"


@dataclass(frozen=True)
class Seen:
    """One image, looked at."""

    size: tuple[int, int] = (0, 0)  # height, width; upright
    pixels: bytes = b""  # hash
    oddities: tuple[str, ...] = ()
    bad: str = ""


@dataclass
class Split:
    """One split, looked at."""

    name: str  # train or val; "" where there is one
    source: Source
    seen: list[Seen] = field(default_factory=list)


def examine(kind: str, images: str, val: str = "", check_images: bool = True, cache: str = "") -> Diagnosis:
    """Look one split over, or two and what they share.

    Args:
        kind: imagefolder, webdataset, parquet or ilsvrc.
        images: see `open_source`.
        val: another split, likewise.
        check_images: decode every image, in a process for each core.
        cache: see `cache_directory`.

    Raises:
        UserError: the reader refuses a split.
    """
    findings = Findings()
    splits = [Split("train" if val else "", open_images(kind, images, cache or None))]
    if val:
        splits.append(Split("val", open_images(kind, val, cache or None)))
        try:
            check_splits(*(split.source for split in splits))
        except UserError as error:
            findings.add("error", "splits whose classes differ", "training refuses them", error)
        for place in in_both(*(split.source for split in splits)):
            findings.add("error", "files that both splits read", TWO_SPLITS, place)
    try:
        check_classes(splits[0].source)
    except UserError as error:
        findings.add("error", "one class alone", "training refuses it", error)
    for split in splits:
        _classes(findings, split)
        if check_images:
            split.seen = list(_look(split))
            _images(findings, split)
        else:
            remedy = "damaged, odd and repeated ones go unseen"
            findings.add("note", "images were not opened", remedy, count=len(split.source))
    if check_images:
        _repeats(findings, splits)
    subject = {"source": kind, "images": images, "val": val}
    return Diagnosis(subject, findings.sorted(), _statistics(splits))


def _prefix(split: Split) -> str:
    return f"{split.name}: " if split.name else ""


def _classes(findings: Findings, split: Split) -> None:
    findings.join(split.source.findings)
    findings.join(class_findings(split.source.labels, split.source.classes, _prefix(split)))
    counts = np.bincount(split.source.labels, minlength=len(split.source.classes))
    used = counts[counts > 0]
    if used.max() >= IMBALANCE * used.min():
        most, least = (
            split.source.classes[counts.argmax()],
            split.source.classes[int(np.flatnonzero(counts == used.min())[0])],
        )
        example = f"{_prefix(split)}{most} has {used.max()} images, {least} {used.min()}"
        remedy = "errors are averages over images, so that small classes hardly count; collect more of them"
        findings.add("warning", f"classes {IMBALANCE} times as large as others", remedy, example)


def _images(findings: Findings, split: Split) -> None:
    for i, seen in enumerate(split.seen):
        if seen.bad:
            findings.add("error", "images that are damaged", DAMAGED, seen.bad)
            continue
        for oddity in seen.oddities:
            findings.add("warning", f"images with {oddity}", MENDED, split.source.name(i))
        if min(seen.size) < TINY:
            example = f"{split.source.name(i)} is {seen.size[1]}x{seen.size[0]}"
            findings.add("warning", f"images below {TINY} pixels", "enlarged for training; look at them", example)


def _repeats(findings: Findings, splits: list[Split]) -> None:
    """The same pixels more than once, whatever the files are called or how they are compressed."""
    places: dict[bytes, list[tuple[Split, int]]] = {}
    for split in splits:
        for i, seen in enumerate(split.seen):
            if not seen.bad:
                places.setdefault(seen.pixels, []).append((split, i))
    for where in places.values():
        if len(where) == 1:
            continue
        example = " = ".join(split.source.name(i) for split, i in where)
        labels = {split.source.classes[split.source.labels[i]] for split, i in where}
        if len({split.name for split, _ in where}) > 1:
            findings.add("error", "the same image in both splits", TWO_SPLITS, example)
        if len(labels) > 1:
            findings.add(
                "error", "the same image under two labels", TWO_LABELS, f"{example} ({', '.join(sorted(labels))})"
            )
        elif len({split.name for split, _ in where}) == 1:
            findings.add("warning", "the same image twice in a class", "counts twice; remove one", example)


def _look(split: Split) -> Iterator[Seen]:
    numbers = range(len(split.source))
    processes = min(len(os.sched_getaffinity(0)), -(-len(numbers) // SOME))
    bar: dict[str, Any] = {"desc": split.name or "images", "total": len(numbers), "leave": False, "disable": None}
    if processes == 1:
        _start(split.source)
        yield from tqdm(map(_see, numbers), **bar)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(processes, context, _start, (split.source,)) as pool:
        yield from tqdm(pool.map(_see, numbers, chunksize=SOME), **bar)


_source: list[Source] = []  # of this process


def _start(source: Source) -> None:
    cv2.setNumThreads(0)
    _source[:] = [source]


def _see(i: int) -> Seen:
    source = _source[0]
    assert isinstance(source, IndexedSource)  # all that `open_images` opens are
    try:
        data = source.data(i)
        image = decode(data, source.name(i))
    except BadImage as error:
        return Seen(bad=str(error))
    header = read_header(data)
    sha = hashlib.blake2b(str(image.shape).encode(), digest_size=16)
    sha.update(np.ascontiguousarray(image).data)
    return Seen(image.shape[:2], sha.digest(), tuple(header.oddities) if header else ())


def _statistics(splits: list[Split]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for split in splits:
        name, source = _prefix(split).replace(":", ""), split.source
        counts = np.bincount(source.labels, minlength=len(source.classes))
        found[f"{name}images"] = len(source)
        found[f"{name}classes"] = len(source.classes)
        found[f"{name}images a class"] = {
            "fewest": int(counts.min()),
            "median": round(float(np.median(counts))),
            "most": int(counts.max()),
        }
        sizes = [seen.size for seen in split.seen if not seen.bad]
        found |= {name + key: value for key, value in image_sizes(sizes).items()}
        if len(source.classes) <= FEW:
            found[f"{name}images by class"] = dict(zip(source.classes, counts.tolist(), strict=True))
    return found
