"""Scenes drawn from a seed: data for laptops, tests and first runs, with exact boxes and masks. Nothing is downloaded.

A class is a shape with a texture, so neither names it alone. Colours, background, scale, place, rotation, and the
texture's period, phase and direction say nothing about it. Plain shapes of every kind lie about as clutter.
"""

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import NamedTuple

import cv2
import numpy as np

from backbone.data.findings import Finding
from backbone.data.index import digest
from backbone.data.stream import mix

VERSION = 1  # of the drawing; another one is another data set
SHAPES = ("disc", "square", "triangle", "star", "ring", "cross")
TEXTURES = ("stripes", "dots")
CLASSES = tuple(f"{shape}-{texture}" for shape in SHAPES for texture in TEXTURES)

SIDE = (0.25, 0.8)  # diameter of a lone object's circumcircle, as a part of the image's side
SMALLEST = 0.14  # the same, of objects shrunk to fit
TRIES = 20
HIDDEN = 0.3  # at most this part of an object is hidden by later ones
PERIOD = (0.22, 0.34)  # of the texture, as a part of the object's diameter
FINEST = 4.0  # pixels: a shorter period could not be seen
CONTRAST = 60  # grey levels between a texture's darker and lighter colour, at least, in every channel
NOISE = (2.0, 8.0)  # standard deviation of the sensor noise, grey levels
SUBPIXEL = 4  # bits of fraction in coordinates given to OpenCV
QUANTILES = np.array([NormalDist().inv_cdf((byte + 0.5) / 256) for byte in range(256)])


class Scene(NamedTuple):
    """An image with its objects. K objects, side S."""

    image: np.ndarray  # uint8 [S, S, 3], RGB
    boxes: np.ndarray  # float32 [K, 4], x1 y1 x2 y2 in pixels, tight around the masks; x2 - x1 is the width
    labels: np.ndarray  # int64 [K]
    masks: np.ndarray  # uint8 [K, S, S], 1 where the object is seen


def _turn(num: int, radii: tuple[float, ...] = (1.0,)) -> np.ndarray:
    angles = np.arange(num) * (2 * math.pi / num)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * np.resize(radii, num)[:, None]


def _cross(arm: float) -> np.ndarray:
    end = math.sqrt(1 - arm * arm)
    quarter = np.array([[end, -arm], [end, arm], [arm, arm]])
    turns = [quarter @ np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return np.concatenate(turns)


# Outlines within the unit circle; a second one is a hole.
OUTLINES: tuple[tuple[np.ndarray, ...], ...] = (
    (_turn(40),),
    (_turn(4),),
    (_turn(3),),
    (_turn(10, (1.0, 0.45)),),
    (_turn(40), 0.5 * _turn(40)),
    (_cross(0.34),),
)


def labels_of(seed: int, indices: np.ndarray) -> np.ndarray:
    """The label of each scene's first object, int64 like `indices`. Every 12 scenes in a row hold every class once."""
    count = len(CLASSES)
    blocks, places = np.divmod(indices.astype(np.uint64), np.uint64(count))
    key = (blocks + np.uint64(mix(seed, 1))) * np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ (key >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return ((places * np.uint64(5) + (key >> np.uint64(33))) % np.uint64(count)).astype(np.int64)


def render(seed: int, index: int, size: int, objects: tuple[int, int] = (1, 1)) -> Scene:
    """Draw scene `index` of the data set `seed`, which depends on nothing but the arguments.

    Args:
        seed: any integer.
        index: from 0 up.
        size: side S of the image, pixels; 32 or more, or textures are lost.
        objects: least and most objects; later ones lie on earlier ones. Fewer come back only where there is no room.
    """
    rng = np.random.Generator(np.random.Philox(key=np.array([mix(seed), index], np.uint64)))
    # `random` and `bytes` are the plain output of the generator, which NumPy keeps; its distributions may change.
    draws = iter(rng.random, None)
    image = _background(draws, size)
    _clutter(draws, image)
    count = objects[0] + int(next(draws) * (objects[1] - objects[0] + 1))
    first = int(labels_of(seed, np.array([index]))[0])
    labels = [first] + [int(next(draws) * len(CLASSES)) for _ in range(count - 1)]
    masks = np.zeros((count, size, size), np.uint8)
    areas: list[int] = []
    placed: list[int] = []
    for label in labels:
        if _place(draws, image, label, masks, areas, count):
            placed.append(label)
    _noise(draws, rng, image)
    masks = masks[: len(placed)]
    boxes = np.array([_box(mask) for mask in masks], np.float32).reshape(-1, 4)
    return Scene(image, boxes, np.array(placed, np.int64), masks)


def _between(draws: Iterator[float], low: float, high: float) -> float:
    return low + next(draws) * (high - low)


def _colour(draws: Iterator[float]) -> tuple[float, float, float]:
    return next(draws) * 255, next(draws) * 255, next(draws) * 255


def _background(draws: Iterator[float], size: int) -> np.ndarray:
    """A few random colours, blended into one another: from one gradient to blotches."""
    side = 2 + int(next(draws) * 4)
    spread = _between(draws, 0.1, 0.5)
    middle = np.array(_colour(draws))
    grid = np.array([next(draws) for _ in range(side * side * 3)]).reshape(side, side, 3) * 255
    grid = middle + spread * (grid - middle)
    return cv2.resize(grid.astype(np.uint8), (size, size), interpolation=cv2.INTER_CUBIC)


def _points(outline: np.ndarray, x: float, y: float, radius: float, angle: float) -> np.ndarray:
    """An outline turned, scaled and moved; in OpenCV's fixed point."""
    cos, sin = math.cos(angle) * radius, math.sin(angle) * radius
    turned = outline @ np.array([[cos, sin], [-sin, cos]]) + (x, y)
    return np.round(turned * (1 << SUBPIXEL)).astype(np.int32)


def _clutter(draws: Iterator[float], image: np.ndarray) -> None:
    """Plain shapes of every kind, blobs and lines."""
    size = len(image)
    for _ in range(int(next(draws) * 3)):
        shape = OUTLINES[int(next(draws) * len(OUTLINES))]
        x, y, radius = next(draws) * size, next(draws) * size, _between(draws, 0.08, 0.2) * size
        angle = next(draws) * 2 * math.pi
        points = [_points(outline, x, y, radius, angle) for outline in shape]
        cv2.fillPoly(image, points, _colour(draws), cv2.LINE_AA, SUBPIXEL)
    for _ in range(int(next(draws) * 4)):
        centre = (int(next(draws) * size), int(next(draws) * size))
        axes = (1 + int(next(draws) * size / 16), 1 + int(next(draws) * size / 16))
        cv2.ellipse(image, centre, axes, next(draws) * 180, 0, 360, _colour(draws), -1, cv2.LINE_AA)
    for _ in range(int(next(draws) * 4)):
        start, end = ((int(next(draws) * size), int(next(draws) * size)) for _ in range(2))
        cv2.line(image, start, end, _colour(draws), 1 + int(next(draws) * size / 32), cv2.LINE_AA)


def _place(
    draws: Iterator[float], image: np.ndarray, label: int, masks: np.ndarray, areas: list[int], count: int
) -> bool:
    """Draw an object where it hides little of those before it, smaller after each try. False: there is no room."""
    size = len(image)
    side = _between(draws, *SIDE) / math.sqrt(count)
    angle = next(draws) * 2 * math.pi
    for _ in range(TRIES):
        radius = max(side, SMALLEST) * size / 2
        x, y = _between(draws, radius, size - radius), _between(draws, radius, size - radius)
        left, top = max(int(x - radius), 0), max(int(y - radius), 0)
        right, bottom = min(int(x + radius) + 2, size), min(int(y + radius) + 2, size)
        cover = _cover(OUTLINES[label // len(TEXTURES)], x - left, y - top, radius, angle, right - left, bottom - top)
        here = (slice(top, bottom), slice(left, right))
        mask = (cover > 127).astype(np.uint8)
        before = masks[: len(areas)]
        shown = [int(np.count_nonzero(one)) - int(np.count_nonzero(one[here] & mask)) for one in before]
        if all(seen >= (1 - HIDDEN) * area for seen, area in zip(shown, areas, strict=True)):
            before[(slice(None), *here)] &= 1 - mask
            masks[(len(areas), *here)] = mask
            areas.append(int(np.count_nonzero(mask)))
            _paint(draws, image[here], cover, TEXTURES[label % len(TEXTURES)], 2 * radius)
            return True
        side *= 0.92
    return False


def _cover(
    shape: tuple[np.ndarray, ...], x: float, y: float, radius: float, angle: float, width: int, height: int
) -> np.ndarray:
    """How much of each pixel the shape covers, 0 to 255, uint8 [height, width]; from twice the resolution."""
    double = np.zeros((2 * height, 2 * width), np.uint8)
    # Pixel centres are whole numbers to OpenCV, and halves here.
    points = [_points(outline, 2 * x - 0.5, 2 * y - 0.5, 2 * radius, angle) for outline in shape]
    cv2.fillPoly(double, points, (255,), cv2.LINE_8, SUBPIXEL)
    return cv2.resize(double, (width, height), interpolation=cv2.INTER_AREA)


def _paint(draws: Iterator[float], patch: np.ndarray, cover: np.ndarray, texture: str, diameter: float) -> None:
    """Put two colours in stripes or dots on a patch of the image, in place."""
    period = max(_between(draws, *PERIOD) * diameter, FINEST)
    turn, across, along = (next(draws) * 2 * math.pi for _ in range(3))
    span = (255 - CONTRAST) / 255
    one = np.array(_colour(draws), np.float32) * (span / 2)
    two = 255 - np.array(_colour(draws), np.float32) * (span / 2)
    if next(draws) < 0.5:
        one, two = two, one
    height, width = cover.shape
    step = 2 * math.pi / period
    x = np.arange(width, dtype=np.float32) * step
    y = np.arange(height, dtype=np.float32)[:, None] * step
    wave = np.cos(x * math.cos(turn) + y * math.sin(turn) + across)
    if texture == "dots":
        wave += np.cos(y * math.cos(turn) - x * math.sin(turn) + along) - 0.5
    edge = wave * (period / 4) + 0.5  # from one colour to the other within about a pixel
    blend = np.clip(edge, 0, 1)[..., None] * (two - one) + one
    weight = cover[..., None] * np.float32(1 / 255)
    patch[:] = patch + weight * (blend - patch) + 0.5


def _noise(draws: Iterator[float], rng: np.random.Generator, image: np.ndarray) -> None:
    """Add Gaussian noise, in place: uniform bytes sent through the inverse of its distribution."""
    noise = np.frombuffer(rng.bytes(image.size), np.uint8).reshape(image.shape)
    levels = np.round(QUANTILES * _between(draws, *NOISE))
    cv2.add(image, cv2.LUT(noise, levels.clip(0).astype(np.uint8)), image)
    cv2.subtract(image, cv2.LUT(noise, (-levels).clip(0).astype(np.uint8)), image)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    x, y, width, height = cv2.boundingRect(mask)
    return x, y, x + width, y + height


class SyntheticSource:
    """Single-object scenes as a `Source`; nothing is kept but the labels, which are computed."""

    def __init__(self, seed: int, num_images: int, size: int, split: str = "train") -> None:
        """Define a data set.

        Args:
            seed: any integer.
            num_images: N.
            size: side of the images, pixels.
            split: name of the split; different splits of one seed share no scene.
        """
        self._arguments = (seed, num_images, size, split)
        self._size = size
        self._seed = mix(seed, *split.encode())
        self.labels = labels_of(self._seed, np.arange(num_images))
        self.classes = CLASSES
        self.findings: list[Finding] = []
        self.places = frozenset[str]()
        self.fingerprint = digest("synthetic", VERSION, *self._arguments)

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple:
        return SyntheticSource, self._arguments

    def name(self, i: int) -> str:
        """What to give `render` to see it again."""
        return f"synthetic scene {i} of seed {self._seed}"

    def image(self, i: int) -> np.ndarray:
        """Image i, uint8 [S, S, 3], RGB."""
        return self.scene(i).image

    def scene(self, i: int) -> Scene:
        """Image i with its box and mask."""
        if not 0 <= i < len(self):
            raise IndexError(f"scene {i} of {len(self)}")
        return render(self._seed, i, self._size)
