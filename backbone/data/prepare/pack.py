"""One image as it goes into a shard: verified by decoding, reduced, encoded. Pure functions."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from backbone.data.decode import decode
from backbone.data.raw import MAGIC, encode_raw

EXIF_ORIENTATION = 0x112
KEPT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # formats whose bytes may stay -> suffix
PLAIN = ("RGB", "L")  # modes whose bytes may stay


@dataclass(frozen=True)
class Header:
    """What an image file says about itself."""

    format: str
    mode: str
    orientation: int  # EXIF; 1 is upright
    width: int  # as stored
    height: int

    @property
    def oddities(self) -> list[str]:
        """What must be converted when pixels are read."""
        found = []
        if self.mode == "CMYK":
            found.append("CMYK colours")
        if self.orientation != 1:
            found.append("an EXIF orientation")
        if self.mode.startswith("I"):
            found.append("16 bits a channel")
        if self.mode in ("P", "PA", "RGBA", "LA", "La", "RGBa", "1"):
            found.append("a palette or transparency")
        return found


@dataclass(frozen=True)
class Packed:
    """An image in its last form."""

    data: bytes
    suffix: str
    changes: tuple[str, ...]  # what was done to it, in words


def read_header(data: bytes) -> Header | None:
    """The header of an image that `decode` reads; None where PIL knows none, as for raw pixels."""
    if data.startswith(MAGIC):
        return None
    try:
        with Image.open(io.BytesIO(data)) as image:
            turn = image.getexif().get(EXIF_ORIENTATION, 1)
            turn = turn if turn in range(1, 9) else 1  # others mean nothing, and readers pass over them
            return Header(image.format or "", image.mode, turn, *image.size)
    except Exception:  # damaged EXIF raises anything; the pixels are what counts, and decode judges them
        return None


def pack(data: bytes, name: str, format: str, shorter_side: int, quality: int) -> Packed:
    """Bring a stored image into the form of a shard.

    Args:
        data: the file.
        name: for errors.
        format: jpeg or raw.
        shorter_side: see `reduce`.
        quality: of a JPEG, where one has to be made.

    Raises:
        BadImage: it cannot be decoded.
    """
    image = decode(data, name)
    header = read_header(data)
    small = reduce(image, shorter_side)
    changes = list(header.oddities) if header else []
    if small is not image:
        changes.append("reduced")
    if format == "jpeg" and header and not changes and header.mode in PLAIN and header.format in KEPT:
        return Packed(data, KEPT[header.format], ("bytes kept",))
    return encode(small, format, quality, changes)


def encode(image: np.ndarray, format: str, quality: int, changes: Sequence[str] = ()) -> Packed:
    """uint8 [H, W, 3] as JPEG (4:2:0, as PIL does by default) or raw pixels."""
    if format == "raw":
        return Packed(encode_raw(image), "rgb.npy", tuple(changes))
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=quality)
    return Packed(out.getvalue(), "jpg", tuple(changes))


def reduce(image: np.ndarray, shorter_side: int) -> np.ndarray:
    """uint8 [H, W, 3] with this shorter side, or the image itself where it is as small already, or for 0.

    Filter and rounding are those of `augment.evaluation_view`: what is evaluated from raw shards of the size that
    evaluation resizes to is evaluated on the same pixels as from the originals.
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    if not 0 < shorter_side < shorter:
        return image
    size = (shorter_side * width // shorter, shorter_side * height // shorter)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
