"""Compressed image bytes to pixels: PIL's, and where OpenCV gives the same faster, OpenCV's."""

import io
import warnings

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageFile

from backbone.data.formats import HEAD, what_is
from backbone.data.headers import (
    JPEG_RATIO,
    JPEG_START,
    Header,
    check_pixels,
    check_size,
    is_plain_png,
    jpeg_header,
    orientation,
)
from backbone.data.raw import MAGIC, decode_raw
from backbone.errors import BadImage

# What is wrong with a file is said by what is raised, and what both say of damaged EXIF is nothing.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# PIL reads others, some by programs that it starts (EPS by Ghostscript).
FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "PCX", "SGI", "SUN"),
    *("QOI", "HEIF"),
)
SEEN = ("is a JPEG", "is a PNG", "is a GIF", "is a TIFF", "is an AVIF", "is a WebP")  # of what `what_is` says
SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")  # PIL's modes
AS_STORED = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
FLAGS = {1: AS_STORED} | {
    shrink: AS_STORED | flag
    for shrink, flag in (
        (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
        (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
        (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
    )
}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class TooManyPixels(BadImage):
    """By its header an image has more than is ever read."""


def decode(data: bytes, name: str, shrink: int = 1) -> np.ndarray:
    """Decode JPEG, PNG, WebP, GIF, AVIF, TIFF, BMP or another of `FORMATS`, or raw pixels, to uint8 [H, W, 3], RGB.

    EXIF orientation is applied, grey and palettes are spread to RGB, alpha is dropped, CMYK converted as PIL does, and
    of 16 bits the upper 8 are kept. Of several frames the first is read.

    `shrink` 2, 4 or 8, for JPEGs alone, gives 1 / shrink of the sides, rounded up: libjpeg then computes fewer pixels
    of each 8x8 block, from its lowest frequencies.

    Raises:
        BadImage: empty, truncated, not an image, more pixels than `headers.PIXELS` or than so few bytes can hold, or
            float pixels. Names `name`.
    """
    if not data:
        raise BadImage(f"{name}: is empty")
    if data.startswith(MAGIC):
        return decode_raw(data, name)
    # Whatever is odd about a file is PIL's to judge, so that there is one judge.
    header = jpeg_header(data)
    if header is not None or is_plain_png(data):
        image = _decode_opencv(data, header, shrink)
        if image is not None:
            return image
    return _decode_pil(data, name)


def size_of(data: bytes, name: str, formats: tuple[str, ...] = FORMATS) -> tuple[int, int]:
    """Height and width that a file of one of `formats` says it has, as stored, before any pixel is decoded.

    Raises:
        TooManyPixels: so many that PIL sees an attack.
        BadImage: it is of no such format, or its header is damaged. Names `name`.
    """
    try:
        Image.init()
        with Image.open(io.BytesIO(data), formats=[one for one in formats if one in Image.OPEN]) as image:
            return image.height, image.width
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"{name}: {error}") from error
    except Exception as error:  # as in `_decode_pil`
        raise BadImage(f"{name}: {_said(error, data)}") from error


def _decode_opencv(data: bytes, header: Header | None, shrink: int) -> np.ndarray | None:
    """None where it cannot."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), FLAGS[shrink if header else 1])
    except cv2.error:
        return None
    if image is None or header is None:
        return image
    image = image if header.is_upright else turned(image, header.turn)
    return image if image.shape[:2] == (-(-header.height // shrink), -(-header.width // shrink)) else None


def turned(image: np.ndarray, turn: int) -> np.ndarray:
    """[H, W, C] as stored to upright, by EXIF's orientation 1 to 8."""
    if turn >= 5:
        image = image.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        image = image[::-1]
    if turn in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def decode_down_to(data: bytes, name: str, header: Header, bottom: int) -> np.ndarray:
    """The rows of an upright JPEG from its top to `bottom`, or more of them: uint8 [>= bottom, W, 3], bit for bit.

    No library decodes a part of a JPEG to numpy. But one coded row by row, told in its header to be lower, is decoded
    that far. An odd number of rows: where two share a row of colours, libjpeg smooths the second's from the row below,
    which the picture must still have.

    Raises:
        BadImage: as `decode`.
    """
    rows = bottom | 1
    lower = data
    if header.frame and rows < header.height:
        lower = b"".join((data[: header.frame + 5], rows.to_bytes(2), data[header.frame + 7 :]))
    try:
        return simplejpeg.decode_jpeg(lower, "RGB", strict=False)  # strict: it would mind the data it is not to read
    except ValueError:  # 12 bits, arithmetic coding, damage: others may read it, or say what is wrong
        return decode(data, name)


def _decode_pil(data: bytes, name: str) -> np.ndarray:
    try:
        check_size(data)
        Image.init()
        with Image.open(io.BytesIO(data), formats=[one for one in FORMATS if one in Image.OPEN]) as image:
            check_pixels(*image.size)
            _check_covered(image)
            if data.startswith(JPEG_START) and image.width * image.height > JPEG_RATIO * len(data):
                raise ValueError(
                    f"says it has {image.width}x{image.height} pixels, which {len(data)} bytes cannot hold"
                )
            return _pixels(image)
    except Exception as error:  # PIL's plugins raise anything on damaged files, SyntaxError and struct.error included
        raise BadImage(f"{name}: {_said(error, data)}") from error


def _said(error: Exception, data: bytes) -> str:
    """What is wrong with a file, of what PIL raised."""
    if not isinstance(error, Image.UnidentifiedImageError):
        return str(error) or type(error).__name__
    known = what_is(data[:HEAD])  # its message is the address of a buffer
    if known.startswith(SEEN):
        return f"{known.partition(';')[0]} whose header is damaged"
    return f"not an image: it {known or f'begins with {data[:12]!r}'}"


def _check_covered(image: ImageFile.ImageFile) -> None:
    """ValueError where strips of a TIFF are missing: PIL leaves those black."""
    parts = [tile[1] for tile in image.tile if tile[1]] if image.format == "TIFF" else []
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in parts)
    if parts and covered < image.width * image.height:
        raise ValueError(f"says it has {image.width}x{image.height} pixels, and holds {covered:,} of them")


def _pixels(image: Image.Image) -> np.ndarray:
    image.load()
    turn = TURNS.get(_orientation_of(image))
    upright = image if turn is None else image.transpose(turn)
    wide = image.mode in SIXTEEN or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if wide:  # convert("RGB") would clip these to 0..255
        return np.repeat((np.asarray(upright).astype(np.int32) >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode == "F" or image.mode.startswith("I"):
        raise ValueError(f"pixels of mode {image.mode} have no defined range; save as 8 or 16 bit")
    return np.array(upright.convert("RGB"))


def _orientation_of(image: Image.Image) -> int:
    try:
        return orientation(image.getexif())
    except Exception:  # as in `orientation`
        return 1
