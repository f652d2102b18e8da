"""Decoding, against PIL."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from backbone.data.decode import decode
from backbone.errors import BadImage


def encode(image: Image.Image, kind: str, **options) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def smooth(height: int = 48, width: int = 64, channels: int = 3) -> np.ndarray:
    grid = np.random.default_rng(0).integers(0, 256, (5, 6, channels), dtype=np.uint8)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, -1)


PHOTO = Image.fromarray(smooth())
NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (200, 200, 3), dtype=np.uint8))


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
    for kind in ("PNG", "WEBP"):
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
        (b"<html><body>404 Not Found</body></html>", "not an image: it begins with b'<html>"),
        (b"\0" * 1000, "not an image"),
        (encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "mode F"),
        (b"P6 0 0 255\n", ""),
        (b"P6 65536 65536 255\n" + b"x" * 100, ""),
    ],
    ids=["empty", "html", "zeros", "float", "zero-size", "bomb"],
)
def test_no_image_is_a_named_error(data, reason):
    with pytest.raises(BadImage, match=r"^shard\.tar:dir/x\.jpg: ") as error:
        decode(data, "shard.tar:dir/x.jpg")
    assert reason in str(error.value)
