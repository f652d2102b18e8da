"""What becomes of one image, against PIL, NumPy and the views of training."""

import io

import numpy as np
import pytest
from PIL import Image

from backbone.data.augment import evaluation_view
from backbone.data.decode import decode
from backbone.data.prepare.pack import encode, pack, read_header, reduce
from backbone.data.raw import HEADER, decode_raw, encode_raw, raw_shape
from backbone.errors import BadImage
from tests.backbone.data.pictures import PHOTO, smooth
from tests.backbone.data.pictures import encode as stored


@pytest.mark.parametrize("shape", [(1, 1, 3), (256, 341, 3), (3, 70000, 3), (123456, 1, 3)])
def test_raw_is_what_numpy_saves(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    file = io.BytesIO()
    np.save(file, image)
    data = encode_raw(image)
    assert data == file.getvalue()
    assert raw_shape(data[:HEADER], "x") == shape[:2]
    assert data[HEADER:] == image.tobytes()
    read = decode(data, "x")
    assert (read == image).all()
    assert read.flags.writeable


def test_raw_that_is_none_is_bad():
    image = np.zeros((4, 5, 3), np.uint8)
    for data in (encode_raw(image)[:-1], encode_raw(image) + b"x", encode_raw(image)[:50], encode_raw(image[:0])):
        with pytest.raises(BadImage, match=r"^a/b: "):
            decode(data, "a/b")
    for other in (image.astype(np.float32), image[..., :2], image[0], np.asfortranarray(smooth())):
        file = io.BytesIO()
        np.save(file, other)
        with pytest.raises(BadImage, match=r"a/b: not a \.npy of uint8 \[H, W, 3\]"):
            decode_raw(file.getvalue(), "a/b")


@pytest.mark.parametrize(("height", "width"), [(400, 500), (500, 333), (257, 256), (300, 300)])
def test_reduced_images_are_evaluated_on_the_same_pixels(height, width):
    image = smooth(height, width)
    small = reduce(image, 256)
    assert min(small.shape[:2]) == 256
    assert (evaluation_view(small, 224, 0.875) == evaluation_view(image, 224, 0.875)).all()


def test_nothing_is_enlarged():
    image = smooth(48, 64)
    for shorter_side in (0, 48, 49, 1000):
        assert reduce(image, shorter_side) is image
    assert reduce(image, 47).shape == (47, 62, 3)  # 62.67, rounded as evaluation_view does


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_bytes_that_need_no_change_are_kept(kind, suffix, mode):
    data = stored(PHOTO.convert(mode), kind)
    packed = pack(data, "x", "jpeg", 48, 90)
    assert packed.data is data
    assert packed.suffix == suffix
    assert packed.changes == ("bytes kept",)


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x112] = 6
    return stored(PHOTO, "JPEG", exif=exif, quality=95)


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        (stored(PHOTO.convert("CMYK"), "JPEG"), ["CMYK colours"]),
        (_turned(), ["an EXIF orientation"]),
        (stored(PHOTO.convert("P"), "PNG"), ["a palette or transparency"]),
        (stored(PHOTO.convert("RGBA"), "PNG"), ["a palette or transparency"]),
        (stored(Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64)), "PNG"), ["16 bits a channel"]),
        (stored(PHOTO, "BMP"), []),
        (stored(PHOTO, "TIFF"), []),
    ],
    ids=["cmyk", "exif", "palette", "alpha", "16bit", "bmp", "tiff"],
)
def test_others_become_upright_rgb_jpegs(data, changes):
    packed = pack(data, "x", "jpeg", 0, 95)
    assert (packed.suffix, list(packed.changes)) == ("jpg", changes)
    header = read_header(packed.data)
    assert header
    assert (header.format, header.mode, header.orientation) == ("JPEG", "RGB", 1)
    wanted = decode(data, "x")
    assert (header.height, header.width) == wanted.shape[:2]
    assert packed.data == stored(Image.fromarray(wanted), "JPEG", quality=95)
    raw = pack(data, "x", "raw", 0, 90)
    assert (raw.suffix, list(raw.changes)) == ("rgb.npy", changes)
    assert (np.load(io.BytesIO(raw.data)) == wanted).all()


def test_reduced_jpegs_have_the_quality_asked_for():
    image = smooth(200, 300)
    data = stored(Image.fromarray(image), "JPEG", quality=95)
    for quality in (50, 95):
        packed = pack(data, "x", "jpeg", 100, quality)
        assert packed.changes == ("reduced",)
        expected = io.BytesIO()
        Image.fromarray(reduce(decode(data, "x"), 100)).save(expected, "JPEG", quality=quality)
        assert packed.data == expected.getvalue()


def test_raw_packed_again_stays_raw():
    packed = encode(smooth(), "raw", 90)
    again = pack(packed.data, "x", "raw", 0, 90)
    assert again == packed


def test_damaged_images_are_named():
    data = stored(PHOTO, "JPEG")
    with pytest.raises(BadImage, match=r"^a/b\.jpg: "):
        pack(data[: len(data) // 2], "a/b.jpg", "raw", 0, 90)


def test_meaningless_orientations_are_upright():
    exif = Image.Exif()
    exif[0x112] = 0
    header = read_header(stored(PHOTO, "JPEG", exif=exif))
    assert header
    assert header.oddities == []
