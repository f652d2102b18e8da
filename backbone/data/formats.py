"""Which files are images, by their names, and what a file is that is not what it should be, by its first bytes."""

import functools
from collections.abc import Sequence
from pathlib import PurePosixPath

from PIL import features

# What `backbone.data.decode` reads.
IMAGES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".avif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".tga"),
)
OPTIONAL = {".avif": "avif", ".jp2": "jpg_2000", ".j2k": "jpg_2000", ".jpx": "jpg_2000"}  # suffix -> feature of Pillow
# What nobody here reads.
OTHER_IMAGES = (
    *(".heic", ".heif", ".hif", ".jxl", ".svg", ".psd", ".exr", ".hdr", ".pfm", ".dcm", ".ico", ".eps", ".pdf"),
    *(".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".xcf"),
)
# Folders of other programs' notes, beside all whose names begin with a dot.
NOTES = ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
HEAD = 512  # bytes that `what_is` looks at

LFS = b"version https://git-lfs.github.com/spec/"
FETCH = "fetch it again"
WRONG = "remove it, or put the right file in its place"
STARTS = (
    (LFS, "is a Git LFS pointer and not the file itself; run git lfs pull in its repository"),
    (b"\x1f\x8b", "is compressed by gzip; unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "is compressed by Zstandard; unpack it with unzstd"),
    (b"\xfd7zXZ\0", "is compressed by xz; unpack it with unxz"),
    (b"BZh", "is compressed by bzip2; unpack it with bunzip2"),
    (b"PK\x03\x04", "is a zip archive; unpack it with unzip"),
    (b"PAR1", "is a Parquet file; name it with source parquet"),
    (b"PARE", "is an encrypted Parquet file; write it without encryption"),
    (b"ARROW1", "is an Arrow file; write Parquet from it, such as by datasets.Dataset.to_parquet"),
    (b"\xff\xff\xff\xff", "is an Arrow stream; write Parquet from it, such as by datasets.Dataset.to_parquet"),
    (b"\x89HDF", f"is an HDF5 file, which is not read; {WRONG}"),
    (b"\x80\x02", f"is a pickle, which is never read; {WRONG}"),
    (b"\x93NUMPY", f"is a NumPy array; {WRONG}"),
    (b"\xff\xd8\xff", f"is a JPEG; {WRONG}"),
    (b"\x89PNG", f"is a PNG; {WRONG}"),
    (b"GIF8", f"is a GIF; {WRONG}"),
    (b"II*\0", f"is a TIFF; {WRONG}"),
    (b"MM\0*", f"is a TIFF; {WRONG}"),
)
HEIF = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


@functools.cache
def image_suffixes() -> tuple[str, ...]:
    """Those of `IMAGES` that the Pillow at hand reads; only some builds know AVIF and JPEG 2000."""
    lacking = {feature for feature in set(OPTIONAL.values()) if not features.check(feature)}
    return tuple(suffix for suffix in IMAGES if OPTIONAL.get(suffix) not in lacking)


def suffix_of(name: str) -> str:
    """Lower case, with the dot; "" for none."""
    return PurePosixPath(name).suffix.lower()


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is other programs' business."""
    return name.startswith(".") or name in NOTES


def is_image(name: str) -> bool:
    """Whether a file of this name is read as an image."""
    return not name.startswith(".") and suffix_of(name) in image_suffixes()


def is_other_image(name: str) -> bool:
    """Whether a file of this name holds an image that is not read."""
    return suffix_of(name) in (*OTHER_IMAGES, *IMAGES) and not is_image(name)


def what_is(head: bytes) -> str:
    """What a file with these first bytes is and what to do, to follow its name in a message; "" if it is not known."""
    if not head:
        return f"is empty; {FETCH}"
    for start, what in STARTS:
        if head.startswith(start):
            return what
    if head[257:262] == b"ustar":
        return "is a tar; name it with source webdataset"
    if head[4:8] == b"ftyp" and head[8:12] in HEIF:
        return "is a HEIF image (.heic), which is not read; convert it to JPEG"
    if head[4:8] == b"ftyp" and head[8:11] == b"avi":
        return f"is an AVIF image; {WRONG}"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return f"is a WebP image; {WRONG}"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return f"is a web page, such as a login or an error; {FETCH}"
    if text.startswith(b"<"):
        return f"is XML or HTML; {FETCH}"
    if text[:1] in (b"{", b"["):
        return f"is JSON; {WRONG}"
    if not head.strip(b"\0"):
        return f"begins with zeros, as after a broken copy; {FETCH}"
    if b"\n" in head and all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return f"is text, such as CSV; {WRONG}"
    return ""


def some(names: Sequence[str], most: int = 5) -> str:
    """The first of these names, and how many more."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
