"""Intervals of shares. Imports nothing slow."""

import math

Z = 1.959964
"""97.5 % of a normal distribution lies below."""


def wilson(error: float, images: float) -> tuple[float, float]:
    """95 % interval of an error rate, percent, seen on so many images (Wilson, 1927).

    A share of right answers so simple as p +- 1.96 sqrt(p (1 - p) / n) would have no width at 0 and 100 %.
    """
    p, n = error / 100, images
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def paired(more: int, less: int, images: int) -> tuple[float, float, float]:
    """By how many points an error rate differs, percent, between two ways to judge the same images, and its 95 %
    interval (Agresti and Min, 2005, who add half an image to each of the four cells).

    Args:
        more: images that are wrong the second way alone.
        less: images that are wrong the first way alone.
        images: how many there are.
    """
    n, b, c = images + 2, more + 0.5, less + 0.5
    centre, half = (b - c) / n, Z * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return 100 * (more - less) / images, 100 * max(-1.0, centre - half), 100 * min(1.0, centre + half)
