"""What headers say of an image, and images whose headers lie."""

import contextlib
import resource
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from backbone.data.decode import decode, decode_down_to
from backbone.data.headers import jpeg_header
from backbone.errors import BadImage
from tests.backbone.data.pictures import LARGE, NOISE, PHOTO, changed, encode


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
def test_header_says_the_upright_size(orientation: int):
    exif = Image.Exif()
    exif[0x112] = orientation
    data = encode(LARGE, "JPEG", exif=exif)
    height, width = decode(data, "x").shape[:2]
    header = jpeg_header(data)
    assert header
    assert header[:3] == (height, width, orientation == 1)
    assert decode(data, "x", 2).shape == (-(-height // 2), -(-width // 2), 3)


def test_only_grey_and_colour_jpegs_have_a_header():
    for mode in ("RGB", "L"):
        header = jpeg_header(encode(LARGE.convert(mode), "JPEG"))
        assert header
        assert header[:3] == (301, 406, True)
    whole = encode(LARGE, "JPEG")
    for data in (encode(LARGE.convert("CMYK"), "JPEG"), encode(LARGE, "PNG"), whole[:-100], b"", b"\xff\xd8\xff\xd9"):
        assert jpeg_header(data) is None


@pytest.mark.parametrize("sampling", [0x00, 0x10, 0x01, 0x55, 0xFF])
def test_impossible_sampling_is_a_bad_image(sampling: int):
    data = changed(encode(PHOTO, "JPEG"), sampling=sampling)
    assert jpeg_header(data) is None
    with pytest.raises(BadImage, match=r"^x: "):
        decode(data, "x")


def claims(kind: str) -> bytes:
    """An image of a few bytes whose header says 60000x60000 pixels."""
    side = 60_000
    match kind:
        case "JPEG":
            return changed(encode(PHOTO, "JPEG"), height=side, width=side)
        case "PNG":
            data = bytearray(encode(PHOTO, "PNG"))
            data[16:24] = side.to_bytes(4) * 2
            data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
        case "GIF":
            data = bytearray(encode(PHOTO, "GIF"))
            data[6:10] = side.to_bytes(2, "little") * 2
        case "BMP":
            data = bytearray(encode(PHOTO, "BMP"))
            data[18:26] = side.to_bytes(4, "little") * 2
        case "TIFF":
            data = bytearray(encode(PHOTO, "TIFF"))
            first = int.from_bytes(data[4:8], "little")
            for entry in range(first + 2, first + 2 + 12 * int.from_bytes(data[first : first + 2], "little"), 12):
                if int.from_bytes(data[entry : entry + 2], "little") in (256, 257):  # width, height
                    data[entry + 2 : entry + 12] = b"\4\0\1\0\0\0" + side.to_bytes(4, "little")
        case "PPM":
            return b"P6 60000 60000 255\n" + bytes(1000)
        case "WEBP":
            data = bytearray(encode(PHOTO, "WEBP", exif=Image.Exif().tobytes() + b"x"))
            data[24:30] = (side - 1).to_bytes(3, "little") * 2
        case _:
            raise KeyError(kind)
    return bytes(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP"])
def test_headers_that_claim_billions_of_pixels_are_bad_before_anything_is_allocated(kind: str):
    data = claims(kind)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for size in (1, 2):
        with pytest.raises(BadImage, match=r"^x: .*(pixels|60000x60000)"):
            decode(data, "x", size)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # kB; the pixels are 10 GB


def test_headers_that_claim_more_than_the_bytes_can_hold_are_bad():
    data = encode(PHOTO, "JPEG")
    for height, width in ((12_000, 12_000), (65_500, 2_000)):
        with pytest.raises(BadImage, match=f"says it has {width}x{height} pixels, which {len(data)} bytes cannot hold"):
            decode(changed(data, height=height, width=width), "x")
    flat = encode(Image.new("L", (3000, 3000)), "JPEG", quality=1, optimize=True)  # as few bytes as there can be
    assert decode(flat, "x").shape == (3000, 3000, 3)
    for image in (Image.new("1", (5000, 5000)), Image.new("RGB", (3000, 3000))):
        assert decode(encode(image, "PNG", compress_level=9), "x").shape[0] == image.height


def test_segments_that_are_longer_than_the_file_are_no_header():
    data = bytearray(encode(PHOTO, "JPEG"))
    at = data.index(b"\xff\xda")
    data[at + 2 : at + 4] = b"\xff\xff"
    assert jpeg_header(bytes(data)) is None
    with pytest.raises(BadImage):
        decode(bytes(data), "x")


@pytest.mark.parametrize("beyond", [0, 1])
def test_segments_that_take_in_the_end_are_no_header(beyond: int):
    data = bytearray(encode(PHOTO, "JPEG"))
    at = data.index(b"\xff\xda")
    data[at + 2 : at + 4] = (len(data) - at - 2 - beyond).to_bytes(2)
    assert jpeg_header(bytes(data)) is None
    with pytest.raises(BadImage):
        decode(bytes(data), "x")


def test_markers_in_the_midst_of_coded_data_are_damage():
    """OpenCV reads grey from there on; PIL does not read such an image."""
    data = encode(NOISE, "JPEG")
    middle = len(data) // 2
    damaged = data[:middle] + b"\xff\xac" + data[middle + 2 :]
    assert cv2.imdecode(np.frombuffer(damaged, np.uint8), cv2.IMREAD_COLOR) is not None
    assert jpeg_header(damaged) is None
    with pytest.raises(BadImage, match="broken data stream"):
        decode(damaged, "x")


def test_broken_headers_are_no_headers():
    """Whatever byte is damaged, a header is either none or has a size; nothing is raised."""
    data = bytearray(encode(PHOTO, "JPEG", exif=Image.Exif().tobytes()))
    draw = np.random.default_rng(3)
    for _ in range(3000):
        damaged = bytearray(data)
        damaged[draw.integers(2, 620)] = draw.integers(256)
        header = jpeg_header(bytes(damaged))
        assert header is None or header.height > 0 < header.width
        if header:
            with contextlib.suppress(BadImage):
                assert decode_down_to(bytes(damaged), "x", header, 8).shape[0] >= 8


def test_exif_with_no_or_a_wrong_orientation_turns_nothing():
    for orientation in (None, 0, 9):
        exif = Image.Exif()
        exif[0x010E] = "a description"
        if orientation is not None:
            exif[0x112] = orientation
        data = encode(LARGE, "JPEG", exif=exif)
        header = jpeg_header(data)
        assert header
        assert header[:3] == (301, 406, True)
        assert decode(data, "x").shape == (301, 406, 3)
    broken = encode(LARGE, "JPEG", exif=b"Exif\0\0II*\0\xff\xff")
    header = jpeg_header(broken)
    assert header
    assert header.is_upright
