"""Damaged images: mutants of images of every form, a function of (seed, number), and what is made of each."""

import io
import random
import struct
import zlib
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from backbone.data.decode import decode, decode_down_to
from backbone.data.headers import jpeg_header
from backbone.data.raw import encode_raw
from backbone.errors import BadImage

WIDTH, HEIGHT = 61, 47  # pixels; prime, so that no block, tile or byte divides them
PLUGINS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "PCX", "SGI", "QOI")
NUMBERS = (0, 1, 2, 3, 8, 16, 255, 32767, 32768, 60000, 65535, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1)
HEADER = 700  # bytes in which most of what is changed lies
SAMPLING = cv2.IMWRITE_JPEG_SAMPLING_FACTOR
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
ROWS = 9  # that a crop asks for


def originals() -> dict[str, bytes]:
    """An image in every form that is read, by its name."""
    rng = np.random.default_rng(0)
    grid = rng.integers(0, 256, (5, 6, 4), dtype=np.uint8)
    rgba = cv2.resize(grid, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    photo, alpha = Image.fromarray(np.ascontiguousarray(rgba[..., :3])), Image.fromarray(rgba, "RGBA")
    deep = Image.fromarray(rng.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16))
    grey, palette, bits = photo.convert("L"), photo.convert("P"), photo.convert("1")
    turned = Image.Exif()
    turned[0x112], turned[0x10E], turned[0x11A] = 6, "a description", 72.0
    found = {"raw": encode_raw(np.asarray(photo))}

    def add(name: str, image: Image.Image, kind: str, **options: Any) -> None:
        data = io.BytesIO()
        image.save(data, kind, **options)
        found[name] = data.getvalue()

    for name, sampling in (("444", 0), ("422", 1), ("420", 2)):
        add(f"jpeg {name}", photo, "JPEG", subsampling=sampling)
    add("jpeg grey", grey, "JPEG")
    add("jpeg progressive", photo, "JPEG", progressive=True)
    add("jpeg restarts", photo, "JPEG", restart_marker_blocks=3)
    add("jpeg turned", photo, "JPEG", exif=turned)
    add("jpeg cmyk", photo.convert("CMYK"), "JPEG")
    add("jpeg rgb", photo, "JPEG", keep_rgb=True)
    add("jpeg xmp", photo, "JPEG", xmp=XMP)
    add("mpo", photo, "MPO", save_all=True, append_images=[photo])
    add("png", photo, "PNG")
    add("png grey", grey, "PNG")
    add("png palette", palette, "PNG", transparency=3)
    add("png alpha", alpha, "PNG")
    add("png 16", deep, "PNG")
    add("png 1", bits, "PNG")
    add("png turned", photo, "PNG", exif=turned)
    add("png xmp", photo, "PNG", pnginfo=_text("XML:com.adobe.xmp", XMP.decode()))
    about = {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), "dpi": (72, 72)}
    add("png profile", photo, "PNG", pnginfo=_text("Title", "a title"), **about)
    add("png gamma", photo, "PNG", pnginfo=_chunk(b"gAMA", (1 << 18).to_bytes(4)))
    add("png grey alpha", alpha.convert("LA"), "PNG")
    add("webp", photo, "WEBP")
    add("webp frames", photo, "WEBP", save_all=True, append_images=[palette.convert("RGB")])
    add("webp lossless", alpha, "WEBP", lossless=True, exact=True)
    add("webp turned", photo, "WEBP", exif=turned)
    add("gif", photo, "GIF")
    add("gif frames", palette, "GIF", save_all=True, append_images=[grey, palette])
    add("bmp", photo, "BMP")
    add("bmp palette", palette, "BMP")
    add("bmp 1", bits, "BMP")
    for compression in (None, "tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        add(f"tiff {compression}", photo, "TIFF", compression=compression)
    add("tiff alpha", alpha, "TIFF")
    add("tiff 16", deep, "TIFF")
    add("tiff grey alpha", alpha.convert("LA"), "TIFF")
    add("tiff cmyk", photo.convert("CMYK"), "TIFF")
    add("tiff fax", bits, "TIFF", compression="group4")
    add("tiff turned", photo, "TIFF", exif=turned)
    add("ppm", photo, "PPM")
    add("pgm", grey, "PPM")
    add("pbm", bits, "PPM")
    add("pgm 16", deep.convert("I"), "PPM")
    wide = rng.integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    for name, suffix, image, options in (
        ("jpeg 440", ".jpg", rgba[..., :3], (SAMPLING, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440)),
        ("jpeg 411", ".jpg", rgba[..., :3], (SAMPLING, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411)),
        ("png colour 16", ".png", wide, ()),
        ("tiff colour 16", ".tif", wide, ()),
    ):
        found[name] = cv2.imencode(suffix, image, options)[1].tobytes()
    found["ppm text"] = b"P3 3 2 255\n" + b" ".join(b"%d" % value for value in range(18)) + b"\n"
    add("avif", photo, "AVIF")
    add("jp2", photo, "JPEG2000")
    add("j2k", grey, "JPEG2000", no_jp2=True)
    add("tga", alpha, "TGA", compression="tga_rle")
    add("pcx", photo, "PCX")
    add("sgi", photo, "SGI")
    add("qoi", photo, "QOI")
    return found


def _text(key: str, value: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_itxt(key, value) if key.startswith("XML") else info.add_text(key, value)
    return info


def _chunk(kind: bytes, data: bytes) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add(kind, data)
    return info


def mutant(forms: dict[str, bytes], seed: int, number: int) -> tuple[str, bytes]:
    """The form and the bytes of one mutant. Most of them are changed in their headers."""
    rng = random.Random(seed << 32 | number)
    name = list(forms)[number % len(forms)]
    data = bytearray(forms[name])
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _change(data, rng, forms)
    if name.startswith("png") and rng.random() < 0.7:  # what the checksums do not give away
        data = _with_checksums(data)
    return name, bytes(data)


def _change(data: bytearray, rng: random.Random, forms: dict[str, bytes]) -> None:
    at = rng.randrange(min(len(data), HEADER) if rng.random() < 0.8 else len(data)) if data else 0
    match rng.randrange(10):
        case 0 | 1 | 2:
            data[at : at + 1] = bytes([rng.randrange(256)])
        case 3:
            data[at : at + 1] = bytes([(data[at] if at < len(data) else 0) ^ 1 << rng.randrange(8)])
        case 4 | 5:
            order, size = rng.choice(("little", "big")), rng.choice((1, 2, 4))
            value = rng.choice(NUMBERS) & ((1 << 8 * size) - 1)
            data[at : at + size] = value.to_bytes(size, order)
        case 6:
            del data[at : at + rng.choice((1, 2, 8, 100, 10_000))]
        case 7:
            data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 100)))
        case 8:
            length = rng.choice((4, 20, 200))
            data[at:at] = data[(start := rng.randrange(len(data) or 1)) : start + length]
        case 9:
            other = rng.choice(list(forms.values()))
            data[at:] = other[rng.randrange(len(other)) :]


def _with_checksums(data: bytearray) -> bytearray:
    """A PNG whose chunks are sound, whatever they hold."""
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        if end > len(data):
            break
        data[end - 4 : end] = struct.pack(">I", zlib.crc32(data[at + 4 : end - 4]))
        at = end
    return data


def reference(data: bytes) -> np.ndarray | None:
    """What PIL alone makes of an image, uint8 [H, W, 3]; None where it does not read it."""
    try:
        with Image.open(io.BytesIO(data), formats=PLUGINS) as image:
            image.load()
            upright = _upright(image)
            if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
                high = np.asarray(upright).astype(np.int64) // 256
                return np.dstack([high] * 3).astype(np.uint8)
            if image.mode in ("I", "F"):
                return None
            return np.asarray(upright.convert("RGB"))
    except Exception:  # whatever PIL raises of a damaged image: it does not read it
        return None


def _upright(image: Image.Image) -> Image.Image:
    turns = [None, None, 0, 3, 1, 5, 4, 6, 2]  # by EXIF's orientation: PIL's numbers of transpositions
    try:
        turn = turns[image.getexif().get(0x112, 1)]
    except Exception:  # damaged EXIF says nothing of the pixels
        turn = None
    return image if turn is None else image.transpose(Image.Transpose(turn))


def verdict(name: str, data: bytes) -> str:
    """bad: reported as a bad image. same: decoded as by PIL. Anything else is a fault."""
    try:
        image = decode(data, "mutant")
    except BadImage as error:
        if not str(error).startswith("mutant: "):
            return f"the name is missing: {error}"
        image = None
    except BaseException as error:  # pyo3's panics are none of Exception
        return f"{type(error).__name__}: {error}"
    try:
        upper = _upper_rows(data)
    except BaseException as error:
        return f"upper rows: {type(error).__name__}: {error}"
    if image is None:
        return "bad"
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.flags.writeable:
        return f"is {image.dtype} {image.shape}"
    wanted = image if name == "raw" else reference(data)
    if wanted is None:
        return "decoded, but not by PIL"
    if wanted.shape != image.shape or (wanted != image).any():
        return f"differs from PIL: {image.shape}, {wanted.shape}"
    if upper is not None and (upper[:ROWS] != image[:ROWS]).any():
        return "upper rows differ from the whole"
    return "same"


def _upper_rows(data: bytes) -> np.ndarray | None:
    """What training reads of an upright JPEG; None of all else and of what is bad."""
    header = jpeg_header(data)
    if header is None or not header.is_upright:
        return None
    try:
        rows = decode_down_to(data, "mutant", header, min(ROWS, header.height))
        decode(data, "mutant", 4)
    except BadImage:
        return None
    if len(rows) < min(ROWS, header.height) or rows.shape[1] != header.width:
        raise ValueError(f"{rows.shape} of {header}")
    return rows
