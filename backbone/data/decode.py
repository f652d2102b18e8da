"""Compressed image bytes to pixels."""

import io

import cv2
import numpy as np
from PIL import Image, ImageOps

from backbone.data.raw import MAGIC, decode_raw
from backbone.errors import BadImage

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
TAIL = 64  # bytes in which a JPEG's end marker is looked for; writers may pad a little after it


def decode(data: bytes, name: str) -> np.ndarray:
    """Decode JPEG, PNG, BMP, WebP, TIFF or whatever else OpenCV or PIL reads, or raw pixels, to uint8 [H, W, 3], RGB.

    EXIF orientation is applied, grey and palettes are spread to RGB, alpha is dropped, CMYK converted as PIL does
    (within one grey level), and of 16 bits the upper 8 are kept.

    Raises:
        BadImage: empty, truncated, not an image, too many pixels, or float pixels. Names `name`.
    """
    if not data:
        raise BadImage(f"{name}: is empty")
    if data.startswith(MAGIC):
        return decode_raw(data, name)
    # Entropy-coded data cannot contain an end marker, so a JPEG without one near its end is cut off (or has a long
    # tail). OpenCV before 5 returns it half grey; PIL raises, and reads the long tail.
    complete = data[:3] != JPEG_START or JPEG_END in data[-TAIL:]
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if complete else None
    except cv2.error:  # more pixels than OpenCV's limit
        image = None
    return _decode_pil(data, name) if image is None else image


def _decode_pil(data: bytes, name: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode == "F" or image.mode.startswith("I"):  # convert("RGB") would clip these to 0..255
                raise ValueError(f"pixels of mode {image.mode} have no defined range; save as 8 or 16 bit")
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:  # PIL's plugins raise anything on damaged files, SyntaxError and struct.error included
        if isinstance(error, Image.UnidentifiedImageError):  # its message is the address of a buffer
            error = ValueError(f"not an image: it begins with {data[:12]!r}")
        raise BadImage(f"{name}: {error}") from error
