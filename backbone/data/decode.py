"""Compressed image bytes to pixels."""

import io
import struct
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from backbone.data.raw import MAGIC, decode_raw
from backbone.errors import BadImage

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
ORIENTATION = 0x112  # EXIF's tag
TAIL = 64  # bytes in which a JPEG's end marker is looked for; writers may pad a little after it
SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), 0xC2  # markers of frames

FLAGS = {1: cv2.IMREAD_COLOR_RGB} | {
    shrink: cv2.IMREAD_COLOR_RGB | flag
    for shrink, flag in (
        (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
        (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
        (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
    )
}


def decode(data: bytes, name: str, shrink: int = 1) -> np.ndarray:
    """Decode JPEG, PNG, BMP, WebP, TIFF or whatever else OpenCV or PIL reads, or raw pixels, into uint8 [H, W, 3], RGB.

    EXIF orientation is applied, grey and palettes are spread to RGB, alpha is dropped, CMYK converted as PIL does
    (within one grey level), and of 16 bits the upper 8 are kept.

    `shrink` 2, 4 or 8, for JPEGs alone, gives 1 / shrink of the sides, rounded up: libjpeg then computes fewer pixels
    of each 8x8 block, from its lowest frequencies.

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
        image = cv2.imdecode(np.frombuffer(data, np.uint8), FLAGS[shrink]) if complete else None
    except cv2.error:  # more pixels than OpenCV's limit
        image = None
    return _decode_pil(data, name) if image is None else image


class Header(NamedTuple):
    """What is known of a JPEG before it is decoded. The size is that of the upright image, pixels."""

    height: int
    width: int
    is_upright: bool
    frame: int
    """Where in the file the frame header begins that says the size; 0 if the image is not coded row by row."""
    block: int
    """Rows that are coded together, pixels."""


def jpeg_header(data: bytes) -> Header | None:
    """Of a grey or YCbCr JPEG with a beginning and an end; None for all else."""
    if not data.startswith(JPEG_START) or JPEG_END not in data[-TAIL:]:
        return None
    at, orientation = 2, 1
    while at + 19 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker in SEQUENTIAL or marker == PROGRESSIVE:
            height, width, components = *struct.unpack_from(">HH", data, at + 5), data[at + 9]
            if not height or not width or components not in (1, 3):
                return None
            if orientation >= 5:
                height, width = width, height
            vertical = max(sampling & 15 for sampling in data[at + 11 : at + 10 + 3 * components : 3])
            return Header(height, width, orientation == 1, at if marker in SEQUENTIAL else 0, 8 * vertical)
        if marker == 0xE1 and data.startswith(b"Exif\0\0", at + 4):
            orientation = _orientation(data[at + 4 : at + 2 + length])
        at += 1 if marker == 0xFF else 2 + length
    return None


def _orientation(block: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(block)
        turn = exif.get(ORIENTATION, 1)
    except Exception:  # a broken block turns nothing: so OpenCV reads it
        return 1
    return turn if turn in range(1, 9) else 1


def decode_down_to(data: bytes, name: str, header: Header, bottom: int) -> np.ndarray:
    """The rows of an upright JPEG from its top to `bottom`, or more of them: uint8 [>= bottom, W, 3], bit for bit.

    No library decodes a part of a JPEG to numpy. But one coded row by row, told in its header to be lower, is decoded
    that far; the block rows after the last asked for are its neighbours, from which libjpeg smooths colours.

    Raises:
        BadImage: as `decode`.
    """
    rows = (-(-bottom // header.block) + 1) * header.block
    lower = data
    if header.frame and rows < header.height:
        lower = b"".join((data[: header.frame + 5], rows.to_bytes(2), data[header.frame + 7 :]))
    try:
        return simplejpeg.decode_jpeg(lower, "RGB", strict=False)  # strict: it would mind the data it is not to read
    except ValueError:  # 12 bits, arithmetic coding, damage: others may read it, or say what is wrong
        return decode(data, name)


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
