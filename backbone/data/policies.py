"""TrivialAugment, RandAugment, colour jitter and random erasing of uint8 planes, as torchvision does to PIL images.

Its recipes are published with PIL and bilinear interpolation, so PIL's pixels are the measure, to one grey level:
blends round down, and what a sheared or turned image does not reach is black, without a seam. PIL and torchvision's
tensors take over a millisecond for a turn of 224 pixels; OpenCV, and tables of 256 entries for what is done to each
value, take less than half of that at most. OpenCV 5 is that exact; 4 places pixels to 1/32, and noise is then up to 8
levels off.
"""

import functools
import math
import random
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import torch

from backbone.data.stream import mix

BINS = 31  # of magnitudes, of which RandAugment takes one
MAGNITUDE, OPERATIONS = 9, 2  # RandAugment's, as torchvision's references train
LEVELS = 10  # timm's magnitudes end here
INCREASING = (
    "AutoContrast Equalize Invert Rotate Posterize Solarize SolarizeAdd "
    "Color Contrast Brightness Sharpness ShearX ShearY TranslateX TranslateY"
).split()
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
DOWN = 0.499  # OpenCV rounds to the nearest: less this, down


class Operation(NamedTuple):
    """One of `EVERY`, with its magnitude as torchvision means it."""

    name: str
    magnitude: float


@functools.cache
def magnitudes(policy: str, size: int) -> dict[str, tuple[float, ...]]:
    """Name -> `BINS` magnitudes, or one of 0, of images of [size, size]; in torchvision's order.

    trivial: arXiv:2103.10158, table 1, wide, whose enhancing factors end at 0.01 and 1.99. rand: arXiv:1909.13719, as
    torchvision has it, with AutoAugment's ranges.
    """
    wide = policy == "trivial"
    shift = 32.0 if wide else 150 / 331 * size
    enhance = 0.99 if wide else 0.9
    lost = torch.arange(BINS) / ((BINS - 1) / (6 if wide else 4))
    ranges = {
        "Identity": None,
        "ShearX": torch.linspace(0, 0.99 if wide else 0.3, BINS),
        "ShearY": torch.linspace(0, 0.99 if wide else 0.3, BINS),
        "TranslateX": torch.linspace(0, shift, BINS),
        "TranslateY": torch.linspace(0, shift, BINS),
        "Rotate": torch.linspace(0, 135.0 if wide else 30.0, BINS),
        "Brightness": torch.linspace(0, enhance, BINS),
        "Color": torch.linspace(0, enhance, BINS),
        "Contrast": torch.linspace(0, enhance, BINS),
        "Sharpness": torch.linspace(0, enhance, BINS),
        "Posterize": (8 - lost).round(),
        "Solarize": torch.linspace(1, 0, BINS),
        "AutoContrast": None,
        "Equalize": None,
    }
    return {name: (0.0,) if values is None else tuple(values.tolist()) for name, values in ranges.items()}


def draw(policy: str, size: int, key: int, strength: int = MAGNITUDE) -> list[Operation]:
    """trivial: one operation and any magnitude of it; rand: two, which may be the same, of magnitude `strength`."""
    space = magnitudes(policy, size)
    names = tuple(space)
    drawn = []
    for number in range(1 if policy == "trivial" else OPERATIONS):
        rest, chosen = divmod(mix(key, number), len(names))
        rest, chosen_bin = divmod(rest, BINS)
        name = names[chosen]
        bins = space[name]
        magnitude = bins[0] if len(bins) == 1 else bins[chosen_bin if policy == "trivial" else strength]
        drawn.append(Operation(name, -magnitude if name in SIGNED and rest & 1 else magnitude))
    return drawn


def draw_increasing(strength: float, deviation: float, size: int, key: int) -> list[Operation]:
    """timm's `rand-m{strength}-mstd{deviation}-inc1`: two operations, which may be the same, each left out half of the
    time. timm fills what comes in with the mean colour and takes bilinear or bicubic by chance; here it is black, and
    bilinear."""
    draws = random.Random(key)
    drawn = []
    for name in draws.choices(INCREASING, k=OPERATIONS):
        if draws.random() > 0.5:
            continue
        level = min(max(draws.gauss(strength, deviation), 0), LEVELS) if deviation else strength
        drawn.append(Operation(name, increasing(name, level, size, draws.random() > 0.5)))
    return drawn


def increasing(name: str, level: float, size: int, negative: bool) -> float:
    """The magnitude that timm's level, 0 to 10, stands for, of images of [size, size]."""
    share = level / LEVELS
    match name:
        case "Rotate":
            magnitude = 30 * share
        case "ShearX" | "ShearY":
            magnitude = 0.3 * share
        case "TranslateX" | "TranslateY":
            magnitude = 0.45 * share * size
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            magnitude = 0.9 * share
        case "Posterize":
            return max(1, 4 - int(4 * share))  # at 10 timm asks PIL for no bits at all, which newer ones refuse
        case "Solarize":
            return (255.5 - min(256, int(256 * share))) / 255  # halfway: a threshold is a share of 255, rounded up
        case "SolarizeAdd":
            return min(128, int(110 * share))
        case _:
            return 0.0
    return -magnitude if negative else magnitude


def draw_jitter(strength: float, key: int) -> list[Operation]:
    """Brightness, contrast and saturation by factors from 1 - strength to 1 + strength, in any order."""
    draws = random.Random(key)
    drawn = [Operation(name, draws.uniform(-strength, strength)) for name in ("Brightness", "Contrast", "Color")]
    draws.shuffle(drawn)
    return drawn


def draw_erasing(probability: float, size: int, key: int) -> tuple[int, int, int, int] | None:
    """(top, left, height, width) of what is erased of [size, size], pixels (arXiv:1708.04896, torchvision's ranges)."""
    draws = random.Random(key)
    if draws.random() >= probability:
        return None
    for _ in range(10):
        area = size * size * draws.uniform(0.02, 0.33)
        aspect = math.exp(draws.uniform(math.log(0.3), math.log(3.3)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height < size and width < size:
            return draws.randint(0, size - height), draws.randint(0, size - width), height, width
    return None


def vary(planes: np.ndarray, operation: Operation) -> None:
    """Change uint8 [3, H, W], contiguous, in place."""
    assert planes.flags.c_contiguous, "reshape would copy, and nothing change"
    EVERY[operation.name](planes, operation.magnitude)


def _flat(planes: np.ndarray) -> np.ndarray:
    """[..., H, W] as one plane, the same memory."""
    return planes.reshape(-1, planes.shape[-1])


def _scale(planes: np.ndarray, factor: float, offset: float = 0.0) -> None:
    """Into factor * planes + offset, which is nowhere below 0; clipped and rounded down."""
    cv2.convertScaleAbs(_flat(planes), dst=_flat(planes), alpha=factor, beta=offset - DOWN)


def _mix(planes: np.ndarray, other: np.ndarray, factor: float, offset: float = 0.0) -> None:
    """Into factor * planes + (1 - factor) * other + offset, clipped and rounded down."""
    cv2.addWeighted(_flat(planes), factor, _flat(other), 1 - factor, offset - DOWN, dst=_flat(planes))


def _grey(planes: np.ndarray) -> np.ndarray:
    """uint8 [H, W]"""
    return cv2.cvtColor(cv2.merge(list(planes)), cv2.COLOR_RGB2GRAY)


def _shear_x(planes: np.ndarray, slope: float) -> None:
    _warp(planes, (1.0, slope, 0.0, 0.0, 1.0, 0.0))


def _shear_y(planes: np.ndarray, slope: float) -> None:
    _warp(planes, (1.0, 0.0, 0.0, slope, 1.0, 0.0))


def _rotate(planes: np.ndarray, degrees: float) -> None:
    height, width = planes.shape[1:]
    cos, sin = (round(part(-math.radians(degrees)), 15) for part in (math.cos, math.sin))  # as PIL
    x, y = width / 2, height / 2
    _warp(planes, (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y))


def _warp(planes: np.ndarray, matrix: tuple[float, float, float, float, float, float]) -> None:
    """Show at (x, y) what lies at (a x + b y + c, d x + e y + f), bilinear, black if that is outside; pixel centres
    are at halves. `matrix` is (a, b, c, d, e, f).
    """
    a, b, c, d, e, f = matrix
    height, width = planes.shape[1:]
    # Four channels: with three OpenCV takes twice as long. The frame: nearer to the edge than half a pixel PIL takes
    # the pixel at the edge.
    framed = cv2.copyMakeBorder(cv2.merge([*planes, planes[0]]), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    shifted = np.array([[a, b, c + (a + b) / 2 + 0.5], [d, e, f + (d + e) / 2 + 0.5]])
    moved = cv2.warpAffine(framed, shifted, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    cv2.split(moved, [*planes, np.empty_like(planes[0])])
    rows = np.arange(height) + 0.5
    first, last = _between(a, b * rows + c, width, width)
    other_first, other_last = _between(d, e * rows + f, width, height)
    first, last = np.maximum(first, other_first), np.minimum(last, other_last)
    column = np.arange(width, dtype=np.int16)  # numpy compares many of these at once
    planes *= ((column >= first[:, None]) & (column < last[:, None])).view(np.uint8)


def _between(slope: float, offsets: np.ndarray, width: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Where 0 <= slope * x + offset < side, for the centres x of `width` pixels: first column and the one after the
    last, int16, for each offset.
    """
    values = slope * (np.arange(width) + 0.5)
    if slope >= 0:
        first, last = np.searchsorted(values, -offsets), np.searchsorted(values, side - offsets)
    else:
        first = np.searchsorted(-values, offsets - side, "right")
        last = np.searchsorted(-values, offsets, "right")
    return first.astype(np.int16), last.astype(np.int16)


def _translate_x(planes: np.ndarray, pixels: float) -> None:
    """To the right; black comes in."""
    by = max(-planes.shape[2], min(planes.shape[2], int(pixels)))
    before = planes.copy()
    if by > 0:
        planes[:, :, by:], planes[:, :, :by] = before[:, :, :-by], 0
    elif by < 0:
        planes[:, :, :by], planes[:, :, by:] = before[:, :, -by:], 0


def _translate_y(planes: np.ndarray, pixels: float) -> None:
    """Down; black comes in."""
    by = max(-planes.shape[1], min(planes.shape[1], int(pixels)))
    before = planes.copy()
    if by > 0:
        planes[:, by:], planes[:, :by] = before[:, :-by], 0
    elif by < 0:
        planes[:, :by], planes[:, by:] = before[:, -by:], 0


def _brightness(planes: np.ndarray, more: float) -> None:
    _scale(planes, 1 + more)


def _contrast(planes: np.ndarray, more: float) -> None:
    """Mixed with the mean grey."""
    mean = int(cv2.mean(_grey(planes))[0] + 0.5)
    cv2.addWeighted(_flat(planes), 1 + more, _flat(planes), 0, -more * mean - DOWN, dst=_flat(planes))


def _colour(planes: np.ndarray, more: float) -> None:
    grey = _grey(planes)
    for plane in planes:
        _mix(plane, grey, 1 + more)


def _sharpness(planes: np.ndarray, more: float) -> None:
    """Mixed with PIL's SMOOTH, [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13, which leaves the outermost pixels alone."""
    if min(planes.shape[1:]) < 3:
        return
    before = planes.copy()
    _mix(
        planes, cv2.blur(_flat(planes), (3, 3)), 1 + more * 9 / 13
    )  # SMOOTH is 9 / 13 of the mean, 4 / 13 of the pixel
    for edge in np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]:
        planes[edge] = before[edge]


def _posterize(planes: np.ndarray, bits: float) -> None:
    np.bitwise_and(planes, 256 - (1 << (8 - int(bits))), out=planes)


def _solarize(planes: np.ndarray, share: float) -> None:
    """255 less what is not below the threshold."""
    flat = _flat(planes)
    _, above = cv2.threshold(flat, math.ceil(255.0 * share) - 1, 255, cv2.THRESH_BINARY)
    cv2.bitwise_xor(flat, above, dst=flat)


def _solarize_add(planes: np.ndarray, more: float) -> None:
    """Added to what is below 128."""
    values = np.arange(256)
    cv2.LUT(_flat(planes), np.where(values < 128, values + int(more), values).astype(np.uint8), dst=_flat(planes))


def _invert(planes: np.ndarray, _: float) -> None:
    np.subtract(255, planes, out=planes)


def _autocontrast(planes: np.ndarray, _: float) -> None:
    for plane in planes:
        least, most = int(plane.min()), int(plane.max())
        if least < most:
            scale = 255 / (most - least)
            _scale(plane, scale, -least * scale)


def _equalize(planes: np.ndarray, _: float) -> None:
    for plane in planes:
        counts = cv2.calcHist([plane], [0], None, [256], [0, 256]).reshape(-1).astype(np.int64)
        step = (plane.size - counts[plane.max()]) // 255
        if step:
            table = (step // 2 + np.cumsum(counts) - counts) // step
            cv2.LUT(plane, np.minimum(table, 255).astype(np.uint8), dst=plane)


VARY: dict[str, Callable[[np.ndarray, float], None]] = {
    "Identity": lambda planes, _: None,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Rotate": _rotate,
    "Brightness": _brightness,
    "Color": _colour,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
}
EVERY = {**VARY, "Invert": _invert, "SolarizeAdd": _solarize_add}  # with timm's
