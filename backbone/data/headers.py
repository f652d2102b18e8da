"""What image files say of themselves, read before anything is allocated for their pixels."""

import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
PNG_START = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x112  # EXIF's tag
XMP_ORIENTATION = b"tiff:Orientation"
TAIL = 64  # bytes in which a JPEG's end marker is looked for; writers may pad a little after it
SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), 0xC2  # markers of frames
SKIPPED = (0xC4, 0xCC, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE)  # markers of segments that say nothing of the size
PLAIN = frozenset(SKIPPED) - {0xE1}  # and that never turn the image
SCAN, END, APP1 = 0xDA, 0xD9, 0xE1
RESTARTS = range(0xD0, 0xD8)  # markers in coded data, where a 0xFF that is none is followed by 0

PIXELS = 178_956_970  # an image may have: where PIL sees an attack, too; 540 MB as RGB
SCANS = 500  # of a progressive JPEG, each of which passes over all pixels; libjpeg-turbo's own tests stop there
# A coded byte of a JPEG stands for 512 pixels at most (a bit for a block of 64), of a PNG for 1032 bytes (deflate).
JPEG_RATIO, PNG_RATIO = 1024, 1032
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# Chunks that do not change which pixels OpenCV and PIL read.
PNG_PLAIN = (b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"pHYs", b"tIME", b"bKGD", b"hIST", b"sBIT")


class Header(NamedTuple):
    """What is known of a JPEG before it is decoded. The size is that of the upright image, pixels."""

    height: int
    width: int
    is_upright: bool
    frame: int
    """Where in the file the frame header begins that says the size; 0 if the image is not coded row by row."""
    turn: int
    """EXIF's orientation, 1 to 8; 1 is upright."""


def jpeg_header(data: bytes) -> Header | None:
    """Of a sound grey or YCbCr JPEG with a beginning and an end; None for all else, which is for PIL to judge."""
    if not data.startswith(JPEG_START) or JPEG_END not in data[-TAIL:]:
        return None
    at, exif, frame = 2, b"", 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, end = data[at + 1], at + 2 + (data[at + 2] << 8 | data[at + 3])
        if marker == 0xFF:  # padding
            at += 1
            continue
        if end < at + 4 or end > len(data):
            return None
        if marker in PLAIN:
            at = end
            continue
        if marker == SCAN:
            if not frame or not _ends_well(data, end, data[frame + 1] == PROGRESSIVE):
                return None
            return _header(data, frame, orientation(exif) if exif else 1)
        if marker in SEQUENTIAL or marker == PROGRESSIVE:
            if frame or end < at + 10 + 3 * data[at + 9]:
                return None
            frame = at
        elif marker == APP1 and data.startswith(b"Exif\0\0", at + 4):
            if exif:
                return None
            exif = data[at + 4 : end]
        elif marker != APP1 or data.find(XMP_ORIENTATION, at, end) > 0:
            return None
        at = end
    return None


def _ends_well(data: bytes, at: int, progressive: bool) -> bool:
    """Whether no marker but those that belong there stands between the coded data that begin here and the end.

    OpenCV does not look for the end: it takes a marker in the midst for it and calls the rest grey.
    """
    coded = np.frombuffer(data, np.uint8, offset=at)
    if len(coded) < 2:  # a damaged length: the end marker lies within the segment before
        return False
    # Most often the first marker is the end: to look for that alone takes a third of the time of listing all.
    starts = coded[:-1] == 0xFF
    starts &= coded[1:] != 0
    first = int(starts.argmax())
    if starts[first] and coded[first + 1] == END:
        return True
    places = np.flatnonzero(coded[:-1] == 0xFF)
    after = coded[places + 1]
    is_marker = (after != 0) & (after != 0xFF) & ((after < RESTARTS[0]) | (after > RESTARTS[-1]))
    end = 0  # of the last segment: what looks like markers in it is none
    for place, marker in zip(places[is_marker].tolist(), after[is_marker].tolist(), strict=True):
        if place < end:
            continue
        if marker == END or not progressive or marker not in (SCAN, *SKIPPED):
            return marker == END
        end = place + 2 + int.from_bytes(coded[place + 2 : place + 4].tobytes())
    return False


def _header(data: bytes, at: int, turn: int) -> Header | None:
    bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
    samplings = data[at + 11 : at + 10 + 3 * components : 3]
    if bits != 8 or components not in (1, 3) or not 0 < height * width <= min(PIXELS, JPEG_RATIO * len(data)):
        return None
    if not all(1 <= sampling >> 4 <= 4 and 1 <= sampling & 15 <= 4 for sampling in samplings):
        return None
    if data[at + 1] == PROGRESSIVE and data.count(b"\xff\xda") > SCANS:
        return None
    if turn >= 5:
        height, width = width, height
    return Header(height, width, turn == 1, at if data[at + 1] in SEQUENTIAL else 0, turn)


def orientation(exif: Image.Exif | bytes) -> int:
    """1 to 8, of an EXIF block, or one that was read; 1, which is upright, where it is broken or says nothing else."""
    try:
        if isinstance(exif, bytes):
            block, exif = exif, Image.Exif()
            exif.load(block)
        turn = exif.get(ORIENTATION, 1)
    except Exception:  # PIL's parser raises anything; a broken block says nothing of the pixels
        return 1
    return turn if turn in range(1, 9) else 1


def is_plain_png(data: bytes) -> bool:
    """Whether a PNG is sound by the checksums of its chunks, is not animated, and nothing turns it."""
    if not data.startswith(PNG_START) or data[12:16] != b"IHDR" or len(data) < 33:
        return False
    width, height = png_size(data)
    if not 0 < height * width <= PIXELS:
        return False
    at, last, view = 8, b"", memoryview(data)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data) or zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            return False
        if kind == b"IEND":
            return last == b"IDAT"
        first = kind == b"IHDR" and at == 8
        textual = kind == b"tEXt" and not data.startswith(b"Raw profile", at + 8)
        if kind == b"iCCP" and data[at + 8 : end - 4].partition(b"\0")[2][:1] != b"\0":
            return False  # a profile compressed in some other way is an error to PIL
        if not (first or textual or kind == b"IDAT" or kind in PNG_PLAIN) or (last == b"IDAT" and kind in b"PLTEtRNS"):
            return False
        at, last = end, kind
    return False


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG; (0, 0) where so few bytes cannot hold them."""
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    row = 1 + -(-width * bits * PNG_CHANNELS.get(colour, 0) // 8)
    return (width, height) if row * height <= PNG_RATIO * len(data) else (0, 0)


def check_size(data: bytes) -> None:
    """Bound what PIL would allocate for pixels, as it opens a file or in many passes.

    Raises:
        ValueError: the file says that it has more pixels than it can have, or than `PIXELS`.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30:
        size = _webp_size(data)
    elif data.startswith(PNG_START) and len(data) >= 33:
        size = png_size(data)
        if not all(size):
            raise ValueError(f"says it has more pixels than {len(data)} bytes can hold, or none")
    else:
        if data.startswith(JPEG_START) and data.count(b"\xff\xda") > SCANS:
            raise ValueError(f"has more than {SCANS} scans")
        return
    check_pixels(*size)


def check_pixels(width: int, height: int) -> None:
    """ValueError for more than `PIXELS`."""
    if width * height > PIXELS:
        raise ValueError(f"says it has {width}x{height} pixels; more than {PIXELS:,} are not read")


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":  # of the canvas
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF
