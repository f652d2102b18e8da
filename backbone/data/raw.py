"""Pixels as they are, for storage faster than a JPEG decoder: a `.npy` file of uint8 [H, W, 3], RGB.

Any NumPy reads one. Its header has one length for every size of image, so a reader knows where the pixels begin and can
take the rows of a crop alone: `HEADER` bytes, then H * W * 3 bytes, row by row.
"""

import os
import re
from collections.abc import Callable

import numpy as np

from backbone.errors import BadImage

HEADER = 128  # bytes
MAGIC = b"\x93NUMPY"
FIELDS = rb"\{'descr': '\|u1', 'fortran_order': False, 'shape': \((\d+), (\d+), 3\), \} *\n"
LIKE = re.compile(rb"\x93NUMPY\x01\x00v\x00" + FIELDS)


def encode_raw(image: np.ndarray) -> bytes:
    """A `.npy` file of uint8 [H, W, 3]; the same bytes as `numpy.save` writes."""
    height, width, _ = image.shape
    fields = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({height}, {width}, 3), }}"
    head = MAGIC + b"\x01\x00v\x00" + fields.encode().ljust(HEADER - len(MAGIC) - 5) + b"\n"
    return head + np.ascontiguousarray(image).tobytes()


def raw_shape(data: bytes, name: str) -> tuple[int, int]:
    """(height, width) from the first `HEADER` bytes.

    Raises:
        BadImage: they are no such header. Names `name`.
    """
    match = LIKE.fullmatch(data[:HEADER])
    if match is None:
        raise BadImage(f"{name}: not a .npy of uint8 [H, W, 3] by jobs/prepare.py: it begins with {data[:64]!r}")
    return int(match[1]), int(match[2])


def decode_raw(data: bytes, name: str) -> np.ndarray:
    """uint8 [H, W, 3] of a whole file.

    Raises:
        BadImage: it is cut off or something else. Names `name`.
    """
    height, width = raw_shape(data, name)
    size = HEADER + height * width * 3
    if len(data) != size or size == HEADER:
        raise BadImage(f"{name}: has {len(data)} bytes, not the {size} of {width}x{height} pixels")
    return np.frombuffer(data, np.uint8, offset=HEADER).reshape(height, width, 3).copy()


def read_box(file: int, start: int, size: int, box: Callable[[int, int], tuple[int, int, int, int]]) -> np.ndarray:
    """A part of the image that a descriptor holds from byte `start` on, uint8 [height, width, 3]; reads its rows alone.

    `box` gives top, left, height and width, pixels, from the image's height and width.

    Raises:
        BadImage: there are other than `size` bytes of it, or something else. Names nothing.
        OSError: it cannot be read.
    """
    height, width = raw_shape(os.pread(file, HEADER, start), "")
    if size != HEADER + height * width * 3 or size == HEADER:
        raise BadImage(f": has {size} bytes, not those of {width}x{height} pixels")
    top, left, down, across = box(height, width)
    rows = np.empty((down, width, 3), np.uint8)
    if os.preadv(file, [rows.data], start + HEADER + top * width * 3) != rows.nbytes:
        raise BadImage(": is cut off")
    return rows[:, left : left + across]
