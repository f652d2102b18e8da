"""Masks as they travel: of each the part that shows something, and where it lies; a plane is made of it at last.

An object of COCO covers a small part of its image. What is done with masks, cutting, mirroring, resizing, covering, is
done with that part alone, and gives the pixels that it would give of the whole plane.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np

from detection.data.contract import Objects


class Patch(NamedTuple):
    """A mask's pixels within a rectangle of its image, outside of which it is 0."""

    pixels: np.ndarray  # uint8 [h, w], 0 or 1; h or w may be 0
    top: int
    left: int

    def plane(self, height: int, width: int) -> np.ndarray:
        """The mask of an image of this size, uint8 [height, width]."""
        plane = np.zeros((height, width), np.uint8)
        h, w = self.pixels.shape
        plane[self.top : self.top + h, self.left : self.left + w] = self.pixels
        return plane

    def around(self) -> np.ndarray:
        """The smallest box that holds every pixel that is not 0, there being one, float32 [4]."""
        x, y, width, height = cv2.boundingRect(self.pixels)
        left, top = self.left + x, self.top + y
        return np.array([left, top, left + width, top + height], np.float32)

    def cut(self, window: tuple[int, int, int, int]) -> "Patch":
        """What a window (left, top, right, bottom) of the image shows, from the window's corner."""
        left, top, right, bottom = window
        h, w = self.pixels.shape
        y0, y1 = max(top - self.top, 0), max(min(bottom - self.top, h), 0)
        x0, x1 = max(left - self.left, 0), max(min(right - self.left, w), 0)
        return Patch(self.pixels[y0:y1, x0:x1], max(self.top - top, 0), max(self.left - left, 0))

    def mirrored(self, width: int) -> "Patch":
        """In the mirror image of an image of this width."""
        return Patch(self.pixels[:, ::-1], self.top, width - self.left - self.pixels.shape[1])

    def resized(self, size: tuple[int, int], target: tuple[int, int]) -> "Patch":
        """As the image is from `size` to `target`, (height, width) each: OpenCV's INTER_NEAREST_EXACT of the plane."""
        if size == target:
            return self
        rows, columns = nearest(size[0], target[0]), nearest(size[1], target[1])
        h, w = self.pixels.shape
        y0, y1 = rows.searchsorted((self.top, self.top + h)).tolist()
        x0, x1 = columns.searchsorted((self.left, self.left + w)).tolist()
        pixels = self.pixels.take(columns[x0:x1] - self.left, 1).take(rows[y0:y1] - self.top, 0)
        return Patch(pixels, y0, x0)


@lru_cache(maxsize=1024)
def nearest(source: int, target: int) -> np.ndarray:
    """Which of `source` pixels in a row each of `target` pixels shows, ascending, int64 [target]; OpenCV's own word."""
    places = np.arange(source, dtype=np.float32)[None]  # exact far beyond any side
    return cv2.resize(places, (target, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0].astype(np.int64)


def patch_of(mask: np.ndarray) -> Patch:
    """A mask, uint8 [H, W], without what is 0 around it."""
    x, y, width, height = cv2.boundingRect(mask)
    return Patch(mask[y : y + height, x : x + width], y, x)


def patched(source: Any, i: int) -> tuple[Objects, list[Patch]]:
    """The objects of image i of a `DetectionSource`, without masks, and these as patches.

    A source that has them in another form than planes gives both by a `patched` of its own.
    """
    if hasattr(source, "patched"):
        return source.patched(i)
    objects = source.objects(i, masks=True)
    return objects._replace(masks=[]), [patch_of(mask) for mask in objects.masks]
