"""Decoding, against PIL."""

import contextlib
import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from backbone.data.decode import decode, decode_down_to
from backbone.data.headers import jpeg_header
from backbone.errors import BadImage
from tests.backbone.data.pictures import LARGE, NOISE, PHOTO, encode, smooth


def expect(data: bytes, within: int = 0) -> np.ndarray:
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    image = decode(data, "x")
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert image.shape == wanted.shape
    assert np.abs(image.astype(int) - wanted).max() <= within
    return image


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF"])
def test_formats_agree_with_pil(kind):
    expect(encode(PHOTO, kind), within=1)


def test_channel_order_is_rgb():
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    assert (decode(encode(Image.fromarray(red), "PNG"), "x") == red).all()


def test_cmyk_jpeg_has_pils_colours():
    data = encode(PHOTO.convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    image = expect(data, within=2)
    assert np.abs(image.astype(int) - smooth()).mean() < 8  # and not inverted: they are the photo's


def test_grey_and_bilevel():
    for kind in ("JPEG", "PNG"):
        image = expect(encode(PHOTO.convert("L"), kind))
        assert (image[..., 0] == image[..., 2]).all()
    expect(encode(PHOTO.convert("1"), "PNG"))


def test_16_bit_keeps_the_high_byte():
    values = np.random.default_rng(2).integers(0, 65536, (48, 64), dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        image = decode(encode(Image.fromarray(values), kind), "x")
        assert (image == (values >> 8)[..., None]).all()


def test_palette_with_transparency_and_alpha():
    expect(encode(PHOTO.convert("P"), "PNG"))
    expect(encode(PHOTO.convert("P"), "PNG", transparency=3))
    alpha = Image.fromarray(smooth(channels=4), "RGBA")
    for kind in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        assert (expect(encode(alpha, kind, **options)) == smooth(channels=4)[..., :3]).all()  # dropped, not blended


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    image = expect(encode(PHOTO, "JPEG", exif=exif, quality=95))
    assert image.shape == ((64, 48, 3) if orientation >= 5 else (48, 64, 3))


def test_pil_reads_what_opencv_does_not():
    data = encode(PHOTO.convert("RGB"), "TGA")
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is None
    assert (decode(data, "x") == smooth()).all()


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_truncated_images_are_bad(kind, kept):
    data = encode(NOISE, kind)
    with pytest.raises(BadImage, match=r"^a/b\.img: "):
        decode(data[: int(len(data) * kept)], "a/b.img")


def test_jpeg_without_its_last_byte_is_bad_even_if_opencv_forgives(monkeypatch):
    """OpenCV before 5 fills the missing part with grey and returns it."""
    data = encode(NOISE, "JPEG")
    monkeypatch.setattr("backbone.data.decode.cv2.imdecode", lambda *_: np.full((200, 200, 3), 128, np.uint8))
    for lost in (1, 2, 1000, len(data) // 2):
        with pytest.raises(BadImage, match="truncated"):
            decode(data[:-lost], "x")


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 50, b"\0" * 5000, b"\r\nappended by a camera" * 100])
def test_jpeg_with_a_tail_is_read(tail):
    data = encode(PHOTO, "JPEG")
    assert (decode(data + tail, "x") == decode(data, "x")).all()


def test_thumbnail_does_not_hide_truncation():
    """The thumbnail in the EXIF block has an end marker of its own."""
    exif = Image.Exif()
    exif[0x010E] = "thumb " + "\xff\xd9" * 10
    data = encode(NOISE, "JPEG", exif=exif.tobytes() + encode(PHOTO, "JPEG"))
    decode(data, "x")
    with pytest.raises(BadImage, match="truncated"):
        decode(data[: len(data) // 2], "x")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (
            b"<html><body>404 Not Found</body></html>",
            "not an image: it is a web page, such as a login or an error; fetch",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "not an image: it is a Git LFS pointer and not the file itself",
        ),
        (b"\0\0\0\x18ftypheic" + b"\0" * 90, "not an image: it is a HEIF image (.heic), which is not read; convert it"),
        (b"\0" * 1000, "not an image: it begins with zeros"),
        (bytes(range(99, 200)), "not an image: it begins with b'cdefg"),
        (b"\x89PNG\r\n\x1a\nrubbish", "is a PNG whose header is damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image: it is text"),  # Ghostscript's business
        (encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "mode F"),
        (b"P6 0 0 255\n", ""),
        (b"P6 65536 65536 255\n" + b"x" * 100, ""),
    ],
    ids=["empty", "html", "lfs", "heic", "zeros", "rubbish", "png", "eps", "float", "zero-size", "bomb"],
)
def test_no_image_is_a_named_error(data, reason):
    with pytest.raises(BadImage, match=r"^shard\.tar:dir/x\.jpg: ") as error:
        decode(data, "shard.tar:dir/x.jpg")
    assert reason in str(error.value)


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_shrunk_jpegs_are_pils_draft(shrink: int, mode: str):
    """Both ask libjpeg for the same scale; and it is the average of the pixels it stands for, to two grey levels."""
    data = encode(LARGE.convert(mode), "JPEG", quality=95)
    image = decode(data, "x", shrink)
    with Image.open(io.BytesIO(data)) as draft:
        draft.draft(mode, (406 // shrink, 301 // shrink))
        assert np.abs(image.astype(int) - np.asarray(draft.convert("RGB"))).max() <= 1
    assert image.shape == (-(-301 // shrink), -(-406 // shrink), 3)
    down, across = 301 // shrink, 406 // shrink
    whole = decode(data, "x")[: down * shrink, : across * shrink].reshape(down, shrink, across, shrink, 3).mean((1, 3))
    assert np.abs(image[:down, :across] - whole).mean() < 2


def test_strips_that_a_tiff_lacks_are_not_read_as_black():
    data = bytearray(encode(PHOTO, "TIFF"))
    first = int.from_bytes(data[4:8], "little")
    for entry in range(first + 2, first + 2 + 12 * int.from_bytes(data[first : first + 2], "little"), 12):
        if int.from_bytes(data[entry : entry + 2], "little") == 257:  # height
            data[entry + 2 : entry + 12] = b"\4\0\1\0\0\0" + (4_800).to_bytes(4, "little")
        if int.from_bytes(data[entry : entry + 2], "little") == 278:  # rows of a strip, of which there is one
            data[entry + 2 : entry + 12] = b"\4\0\1\0\0\0" + (48).to_bytes(4, "little")
    with Image.open(io.BytesIO(data)) as image:
        assert not np.asarray(image)[48:].any()
    with pytest.raises(BadImage, match="says it has 64x4800 pixels, and holds 3,072 of them"):
        decode(bytes(data), "x")


def test_orientation_of_xmp_alone_is_applied_as_by_pil():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for kind in ("JPEG", "WEBP"):
        data = encode(PHOTO, kind, xmp=xmp, **({"lossless": True} if kind == "WEBP" else {}))
        assert expect(data).shape == (64, 48, 3)
        assert jpeg_header(data) is None


def test_colours_times_alpha_are_divided_again():
    colours, alpha = np.array([100, 50, 20]), 128
    pixels = np.full((8, 8, 4), [*(colours * alpha // 255), alpha], np.uint8)
    data = bytearray(encode(Image.fromarray(pixels, "RGBA"), "TIFF"))
    first = int.from_bytes(data[4:8], "little")
    for entry in range(first + 2, first + 2 + 12 * int.from_bytes(data[first : first + 2], "little"), 12):
        if int.from_bytes(data[entry : entry + 2], "little") == 338:  # extra samples
            data[entry + 8] = 1  # alpha, by which colours were multiplied
    assert np.abs(expect(bytes(data)) - colours).max() <= 2


def test_16_bits_of_every_format_keep_the_high_byte():
    values = np.random.default_rng(4).integers(0, 65536, (48, 64), dtype=np.uint16)
    colours = np.random.default_rng(5).integers(0, 65536, (48, 64, 3), dtype=np.uint16)
    pgm = b"P5 64 48 65535\n" + values.astype(">u2").tobytes()
    assert (decode(pgm, "x") == (values >> 8)[..., None]).all()
    for suffix in (".png", ".tif"):
        data = cv2.imencode(suffix, colours[..., ::-1])[1].tobytes()
        assert (decode(data, "x") == colours >> 8).all()


def test_decoding_says_nothing_but_what_it_raises(capfd):
    exif = Image.Exif()
    exif[0x10E] = "x" * 50
    block = exif.tobytes()
    for data in (encode(NOISE, "PNG")[:-50], encode(PHOTO, "JPEG", exif=block[:40]), encode(PHOTO, "TIFF")[:-50]):
        with contextlib.suppress(BadImage):
            decode(data, "x")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 7}, {"optimize": True}])
@pytest.mark.parametrize("sampling", [0, 1, 2, "L"], ids=["444", "422", "420", "grey"])
def test_upper_rows_are_those_of_the_whole(options: dict, sampling: int | str, capfd):
    """Bit for bit, for any bottom, without a word of libjpeg's about data it did not read."""
    image, how = (LARGE.convert("L"), {}) if sampling == "L" else (LARGE, {"subsampling": sampling})
    data = encode(image, "JPEG", quality=90, **how, **options)
    whole, header = decode(data, "x"), jpeg_header(data)
    assert header
    for bottom in (1, 8, 100, 160, 283, 284, 285, 300, 301):
        part = decode_down_to(data, "x", header, bottom)
        assert len(part) <= bottom + 1 or "progressive" in options
        assert len(part) >= bottom
        assert (part[:bottom] == whole[:bottom]).all()
    assert capfd.readouterr() == ("", "")


def test_unusual_sampling_and_rgb_jpegs():
    """Chroma with half the rows alone (4:4:0), and JPEGs that store RGB."""
    tall = cv2.imencode(
        ".jpg", smooth(301, 406), [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440]
    )
    for data in (tall[1].tobytes(), encode(LARGE, "JPEG", keep_rgb=True, quality=90)):
        header = jpeg_header(data)
        assert header
        assert (decode_down_to(data, "x", header, 77)[:77] == decode(data, "x")[:77]).all()


@pytest.mark.parametrize("kept", [0.3, 0.99])
def test_truncated_jpegs_are_bad_at_every_scale(kept: float):
    data = encode(NOISE, "JPEG")
    with pytest.raises(BadImage, match=r"^x: .*truncated"):
        decode(data[: int(len(data) * kept)], "x", 4)
