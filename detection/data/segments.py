"""Segmentations of many objects as flat buffers: polygons, and pycocotools' compressed run lengths."""

from itertools import chain, pairwise
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle

from backbone.data.index import Arrays
from detection.data.patches import Patch


def flatten(polygons: list[list[list[float]]], counts: list[bytes]) -> Arrays:
    """Segmentations of A objects: lists of polygons (x, y, x, y, ...), or compressed run lengths, or neither.

    `points` float64 and `points_offsets` int64 [polygons + 1]; `polygons_offsets` int64 [A + 1]; `counts` uint8 and
    `counts_offsets` int64 [A + 1].
    """
    rings = [ring for one in polygons for ring in one]
    lengths = [len(ring) for ring in rings]
    return {
        "points": np.fromiter(chain.from_iterable(rings), np.float64, sum(lengths)),
        "points_offsets": np.cumsum([0, *lengths], dtype=np.int64),
        "polygons_offsets": np.cumsum([0, *map(len, polygons)], dtype=np.int64),
        "counts": np.frombuffer(b"".join(counts), np.uint8),
        "counts_offsets": np.cumsum([0, *map(len, counts)], dtype=np.int64),
    }


def has_mask(arrays: Arrays) -> np.ndarray:
    """Which objects have a segmentation, bool [A]."""
    return (np.diff(arrays["polygons_offsets"]) > 0) | (np.diff(arrays["counts_offsets"]) > 0)


def encode(arrays: Arrays, j: int, height: int, width: int) -> dict[str, Any] | None:
    """Object j's segmentation as pycocotools' compressed run lengths; None where it has none."""
    start, stop = arrays["counts_offsets"][j : j + 2]
    if stop > start:
        return {"size": [height, width], "counts": arrays["counts"][start:stop].tobytes()}
    rings = polygons_of(arrays, j)
    return rle.merge(rle.frPyObjects(rings, height, width)) if rings else None


def run_totals(arrays: Arrays) -> np.ndarray:
    """How many pixels the run lengths of each object cover, int64 [A]; it must be the image's, or pycocotools gives
    whatever lay in memory.
    """
    characters = arrays["counts"]
    offsets = arrays["counts_offsets"]
    values, starts = _numbers(characters, offsets)
    runs = np.diff(starts)
    owner = np.repeat(np.arange(len(runs)), runs)
    place = np.arange(len(owner)) - starts[:-1][owner]
    # A run is counted in itself and in every second one after it that is a difference.
    times = np.where(place == 0, 1, (runs[owner] - 1 - place) // 2 + 1)
    return np.bincount(owner, values * times, minlength=len(runs)).astype(np.int64)


def _numbers(characters: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers in strings of compressed run lengths, int64 [R], and where each string's begin, int64 [A + 1].

    A run is a number of 5-bit digits, the lowest first, bit 5 set on all but the last, bit 4 of the last its sign; from
    the fourth on it is the difference to the run before the last (pycocotools' maskApi.c, rleToString).

    Args:
        characters: of A strings, one after the other, uint8.
        offsets: where each begins, and the end, int64 [A + 1].
    """
    characters = characters.astype(np.int64) - 48
    last = (characters & 0x20) == 0
    last[offsets[1:][np.diff(offsets) > 0] - 1] = True  # a string that breaks off must not run into the next
    ends = np.flatnonzero(last)
    begins = np.concatenate([[0], ends + 1])[:-1]
    digit = np.minimum(np.arange(len(characters)) - np.repeat(begins, ends + 1 - begins), 11)  # 12 would be 60 bits
    values = np.concatenate([[0], np.cumsum((characters & 0x1F) << (5 * digit))])
    values = values[ends + 1] - values[begins]
    values -= np.where(characters[ends] & 0x10, np.int64(1) << (5 * (digit[ends] + 1)), 0)
    return values, begins.searchsorted(offsets)


def patches(encoded: list[dict[str, Any]], height: int) -> list[Patch]:
    """Masks of one image, of `height` pixels, from compressed run lengths, which must be as long as the image.

    Run lengths go column by column, so only the columns that a mask is in are drawn.
    """
    if not encoded:
        return []
    counts = [one["counts"] for one in encoded]
    offsets = np.cumsum([0, *map(len, counts)])
    values, starts = _numbers(np.frombuffer(b"".join(counts), np.uint8), offsets)
    found = []
    for (x, y, w, h), (a, b) in zip(_boxes(encoded).astype(int).tolist(), pairwise(starts.tolist()), strict=True):
        runs = values[a:b].copy()
        runs[1::2] = runs[1::2].cumsum()
        runs[2::2] = runs[2::2].cumsum()
        ends = (runs.cumsum() - x * height).clip(0, w * height)
        ends[1:] -= ends[:-1].copy()
        columns = np.repeat(np.arange(len(ends), dtype=np.uint8) & 1, ends).reshape(w, height)
        found.append(Patch(np.ascontiguousarray(columns[:, y : y + h].T), y, x))
    return found


def _boxes(encoded: list[dict[str, Any]]) -> np.ndarray:
    """A box around what each mask shows, x y width height, float64 [A, 4]; zeros where it shows nothing.

    pycocotools' is around runs of no pixels, too, and from one that comes first it counts below 0.
    """
    boxes = np.asarray(rle.toBbox(encoded), np.float64).reshape(-1, 4)
    sides = np.array([one["size"][::-1] for one in encoded])
    odd = (boxes[:, :2] + boxes[:, 2:] > sides).any(1) | (np.asarray(rle.area(encoded)) == 0)
    for i in np.flatnonzero(odd):
        boxes[i] = cv2.boundingRect(rle.decode(encoded[i]))
    return boxes


def polygons_of(arrays: Arrays, j: int) -> list[list[float]]:
    """Object j's polygons."""
    first, last = arrays["polygons_offsets"][j : j + 2]
    offsets = arrays["points_offsets"][first : last + 1]
    return [arrays["points"][a:b].tolist() for a, b in pairwise(offsets)]


def outlines(arrays: Arrays, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Area, float64 [A], and extent x1 y1 x2 y2, float64 [A, 4], of each object's mask, without drawing it.

    Polygons' areas by the shoelace formula, overlaps counted twice. Without a mask 0 and NaN.
    """
    num = len(arrays["polygons_offsets"]) - 1
    areas, extents = np.zeros(num), np.full((num, 4), np.nan)
    points, offsets = arrays["points"].reshape(-1, 2), arrays["points_offsets"] // 2
    if len(points):
        after = np.arange(1, len(points) + 1)
        after[offsets[1:] - 1] = offsets[:-1]
        x, y = points.T
        with np.errstate(invalid="ignore", over="ignore"):
            twice = np.abs(np.add.reduceat(x * y[after] - y * x[after], offsets[:-1]))
        rings = np.diff(arrays["polygons_offsets"])
        there, first = rings > 0, arrays["polygons_offsets"][:-1][rings > 0]
        areas = np.bincount(np.repeat(np.arange(num), rings), twice / 2, num)
        for place, reduce in ((slice(0, 2), np.minimum), (slice(2, 4), np.maximum)):
            extents[there, place] = reduce.reduceat(reduce.reduceat(points, offsets[:-1]), first)
    encoded = np.flatnonzero(np.diff(arrays["counts_offsets"])).tolist()
    if encoded:
        masks: list[Any] = [encode(arrays, j, *map(int, sizes[j])) for j in encoded]
        areas[encoded] = rle.area(masks)
        boxes = _boxes(masks)
        extents[encoded] = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    return areas, extents
