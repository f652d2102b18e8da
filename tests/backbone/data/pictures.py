"""Encoded pictures for the tests of decoding."""

import io

import cv2
import numpy as np
from PIL import Image


def encode(image: Image.Image, kind: str, **options) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def smooth(height: int = 48, width: int = 64, channels: int = 3) -> np.ndarray:
    grid = np.random.default_rng(0).integers(0, 256, (5, 6, channels), dtype=np.uint8)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, -1)


PHOTO = Image.fromarray(smooth())
NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (200, 200, 3), dtype=np.uint8))
LARGE = Image.fromarray(smooth(301, 406))


def changed(data: bytes, **fields: int) -> bytes:
    """A JPEG with other fields in its frame header."""
    places = {"bits": (4, 1), "height": (5, 2), "width": (7, 2), "components": (9, 1), "sampling": (11, 1)}
    at, damaged = data.index(b"\xff\xc0"), bytearray(data)
    for field, value in fields.items():
        place, size = places[field]
        damaged[at + place : at + place + size] = value.to_bytes(size)
    return bytes(damaged)
