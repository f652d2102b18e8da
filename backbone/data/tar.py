"""WebDataset tar shards, read at random: an index of their members is made once, nothing is unpacked."""

import io
import json
import posixpath
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO

import fsspec
import numpy as np
from tqdm import tqdm

from backbone.data.index import Arrays, IndexedSource, digest, is_fresh, pack, read_range, store, tabulate
from backbone.data.listing import THREADS, Listing, list_files
from backbone.errors import UserError
from backbone.storage import filesystem

IMAGES = ("jpg", "jpeg", "png", "webp", "rgb.npy")  # the last as in backbone.data.raw
UNFINISHED = "preparing.json"  # beside shards that jobs/prepare.py has not all made
MANY = 4  # shards; more of them get a progress bar, on a terminal
DAMAGED = "{}: is cut off, damaged, or no uncompressed tar ({}); fetch it again"
BUFFER = 16 << 10  # bytes of a remote read: a header, a label and the next header in one request


@dataclass
class Shard:
    """The images of one shard in the order they lie in it."""

    members: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # bytes
    sizes: list[int] = field(default_factory=list)  # bytes
    labels: list[int] = field(default_factory=list)


def open_webdataset(location: str, cache: str | None = None) -> IndexedSource:
    """Open shards of images, `key.jpg|jpeg|png|webp|rgb.npy`, each with its label.

    That is text in `key.cls`, or in `key.json` as "label" or "cls". Classes are the lines of `classes.txt` beside the
    shards; or else the members' directories, where each label has its own; or else the labels. The index is kept beside
    the shards, or where that cannot be, in the cache; it is rebuilt when a shard's name, size or time changes.

    Args:
        location: directory, glob or brace pattern, see `list_files`.
        cache: see `cache_directory`.

    Raises:
        UserError: no shards, or not all of them yet; a shard is cut off, compressed or no tar; an image without label
            or a label without image; a label that is not an integer from 0 up. Names `shard:member`.
    """
    listing = list_files(location, ".tar")
    if filesystem(listing.url)[0].exists(f"{listing.root}/{UNFINISHED}"):
        raise UserError(
            f"{listing.shown}: is not finished; run jobs/prepare.py again as before, or remove {UNFINISHED} to use the "
            "shards that are there"
        )
    places = [listing.cached("webdataset", cache)]
    if listing.is_local:
        places.insert(0, listing.beside())
    lines = _class_lines(listing)
    state = listing.state if lines is None else digest(listing.state, *lines)
    path = next((place for place in places if is_fresh(place, state)), None)
    if path is None:
        path = store(places, state, _build(listing, lines))
    return IndexedSource(path, listing.url, listing.root, listing.shown)


def _class_lines(listing: Listing) -> list[str] | None:
    fs, _ = filesystem(listing.url)
    path = f"{listing.root}/classes.txt"
    if not fs.exists(path):
        return None
    return [line.strip() for line in fs.cat_file(path).decode().splitlines() if line.strip()]


def _build(listing: Listing, lines: list[str] | None) -> Arrays:
    def scan(number: int) -> Shard:
        with open_tar(listing, number) as file:
            return scan_shard(file, f"{listing.shown}/{listing.names[number]}")

    with ThreadPoolExecutor(THREADS) as pool:
        bar = tqdm(
            pool.map(scan, range(len(listing.names))),
            desc="indexing shards",
            total=len(listing.names),
            disable=None if len(listing.names) > MANY else True,  # None: not where stderr is no terminal
        )
        shards = list(bar)
    members = [member for shard in shards for member in shard.members]
    labels = np.concatenate([np.asarray(shard.labels, np.int64) for shard in shards])
    if not members:
        raise UserError(f"{listing.shown}: no key.jpg with key.cls in {listing.names[0]} .. {listing.names[-1]}")
    names = (f"{name}:{one}" for name, shard in zip(listing.names, shards, strict=True) for one in shard.members)
    classes = _classes(members, labels) if lines is None else lines
    if labels.max() >= len(classes):
        raise UserError(
            f"{listing.shown}/classes.txt: has {len(classes)} classes, but {list(names)[labels.argmax()]} has label "
            f"{labels.max()}; give every label from 0 up a line"
        )
    sizes = [size for shard in shards for size in shard.sizes]
    return (
        tabulate("webdataset", names, labels, sizes, classes)
        | pack("files", listing.names)
        | {
            "file_ids": np.repeat(np.arange(len(shards), dtype=np.int32), [len(shard.members) for shard in shards]),
            "starts": np.concatenate([np.asarray(shard.starts, np.int64) for shard in shards]),
        }
    )


def _classes(members: list[str], labels: np.ndarray) -> list[str]:
    """Directory names where directories and labels correspond one to one, or else the labels, 0 to the largest."""
    names = [str(label) for label in range(int(labels.max()) + 1)]
    pairs = {
        (posixpath.basename(posixpath.dirname(member)), int(label))
        for member, label in zip(members, labels, strict=True)
    }
    directories = {directory for directory, _ in pairs}
    if "" in directories or not len(pairs) == len(directories) == len({label for _, label in pairs}):
        return names
    for directory, label in pairs:  # a label that this split lacks keeps its number as its name
        names[label] = directory
    return names


def open_tar(listing: Listing, number: int) -> BinaryIO:
    """A file of a listing, to be read here and there."""
    path = f"{listing.root}/{listing.names[number]}"
    if listing.is_local:
        return Path(path).open("rb")
    return io.BufferedReader(Ranges(filesystem(listing.url)[0], path, listing.sizes[number]), BUFFER)


def scan_shard(file: BinaryIO, shown: str) -> Shard:
    """Read the headers of one tar, skipping over the images.

    Raises:
        UserError: see `open_webdataset`.
    """
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                key, suffix = _split_key(member.name)
                if not key or not member.isfile():
                    continue
                where = f"{shown}:{member.name}"
                if suffix in IMAGES:
                    if key in images:
                        raise UserError(f"{where}: {images[key][0]} is an image of the same key; keep one")
                    images[key] = (member.name, member.offset_data, member.size)
                elif suffix == "cls":
                    labels[key] = _label(_content(tar, member).decode("utf-8", "replace"), where)
                elif suffix == "json" and key not in labels:
                    label = _json_label(_content(tar, member), where)
                    if label is not None:
                        labels[key] = label
            check_end(file, tar)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(DAMAGED.format(shown, error)) from error
    for key in images.keys() ^ labels.keys():
        raise UserError(
            f"{shown}:{images[key][0]}: has no label; add {key}.cls, or {key}.json with label or cls"
            if key in images
            else f"{shown}:{key}: has a label but no image; add {key}.jpg or remove the label"
        )
    found = Shard()
    for key, (name, start, size) in images.items():
        found.members.append(name)
        found.starts.append(start)
        found.sizes.append(size)
        found.labels.append(labels[key])
    return found


def check_end(file: IO[bytes], tar: tarfile.TarFile) -> None:
    """tarfile.ReadError if a tar whose members have all been read is not whole.

    tarfile takes the end of the file, and a damaged header, for the end of the archive.
    """
    file.seek(tar.offset)
    if len(end := file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE or any(end):
        raise tarfile.ReadError("no end-of-archive block")


def _split_key(member: str) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the first dot of the file name. Key "" for names that begin with one."""
    directory, name = posixpath.split(member.removeprefix("./"))
    stem, _, suffix = name.partition(".")
    return (posixpath.join(directory, stem) if stem else ""), suffix.lower()


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


def _json_label(data: bytes, where: str) -> int | None:
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise UserError(f"{where}: is no JSON ({error})") from error
    if not isinstance(fields, dict):
        return None
    label = fields.get("label", fields.get("cls"))
    return None if label is None else _label(label, where)


def _label(value: Any, where: str) -> int:
    try:
        label = int(value) if isinstance(value, str) else value
    except ValueError:
        label = None
    if type(label) is not int or label < 0:  # a bool is an int to isinstance
        raise UserError(f"{where}: the label {value!r} is not an integer from 0 up")
    return label


class Ranges(io.RawIOBase):
    """A remote file as one request a read: fsspec's own files read ahead by megabytes, which headers do not need."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, size: int) -> None:
        self._fs, self._path, self._size, self._position = fs, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._size)
        data = read_range(self._fs, self._path, self._position, stop) if self._position < stop else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
