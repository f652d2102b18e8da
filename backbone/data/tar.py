"""WebDataset tar shards, read at random: an index of their members is made once, nothing is unpacked."""

import io
import itertools
import json
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO

import fsspec
import numpy as np
from tqdm import tqdm

from backbone.data.findings import Findings
from backbone.data.formats import HEAD, some, what_is
from backbone.data.index import (
    Arrays,
    IndexedSource,
    digest,
    in_turn,
    is_fresh,
    pack,
    read_range,
    store,
    tabulate,
    tell,
)
from backbone.data.labels import check_names, numbered, within
from backbone.data.listing import THREADS, Listing, check_one_split, list_files, missing_files
from backbone.data.members import Image, Members, as_label, name_of
from backbone.data.splits import JUDGED, split_folders
from backbone.errors import UserError
from backbone.storage import filesystem

UNFINISHED = "preparing.json"  # beside shards that jobs/prepare.py has not all made
MANY = 4  # shards; more of them get a progress bar, on a terminal
DAMAGED = "{}: is cut off, damaged, or no uncompressed tar ({}); fetch it again"
UNLINKED = "pack it again with tar --dereference --hard-dereference"
RECORD = 1 << 20  # bytes of zeros that a tar may be padded by
SHORT, LONG = 1 << 10, 64 << 20  # bytes of a label, and of all else that is read at once
BUFFER = 16 << 10  # bytes of a remote read: a header, a label and the next header in one request


@dataclass
class Shard:
    """The samples of one shard in the order their images lie in it."""

    members: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # bytes
    sizes: list[int] = field(default_factory=list)  # bytes
    labels: list[int] = field(default_factory=list)
    suffixes: Counter[str] = field(default_factory=Counter)  # of what is not read
    findings: Findings = field(default_factory=Findings)


def open_webdataset(location: str, cache: str | None = None) -> IndexedSource:
    """Open shards of images, `key.jpg` (or another suffix that is read, or `.rgb.npy`), each with its label.

    That is text in `key.cls`, or in `key.json` as "label" or "cls". Which belong together, see `backbone.data.members`.
    Classes are the lines of `classes.txt` beside the shards; or else the members' directories, where each label has its
    own; or else the labels. The index is kept beside the shards, or where that cannot be, in the cache; it is rebuilt
    when a shard's name, size or time changes.

    Args:
        location: directory, glob or brace pattern, see `list_files`.
        cache: see `cache_directory`.

    Raises:
        UserError: no shards, or not all of them yet, or those of several splits; a shard is cut off, compressed or no
            tar; an image without label or a label without image; a label that is not an integer from 0 up, or out of
            range. Names `shard:member`.
    """
    listing = list_files(location, ".tar")
    check_one_split(location, listing)
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
        with in_turn(places[-1]):
            path = next((place for place in places if is_fresh(place, state)), None)
            path = path or store(places, state, _build(listing, lines))
    remarks = listing.remarks(".tar").join(missing_files(location, listing))
    return IndexedSource(path, listing.url, listing.root, listing.shown, remarks=remarks, places=listing.files)


def _class_lines(listing: Listing) -> list[str] | None:
    """The lines of classes.txt; None where there is none.

    Raises:
        UserError: it is no UTF-8, or has an empty line before its end, by which all that follow would move up.
    """
    fs, _ = filesystem(listing.url)
    path, where = f"{listing.root}/classes.txt", f"{listing.shown}/classes.txt"
    if not fs.exists(path):
        return None
    try:
        text = fs.cat_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror or error})") from error
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if "" in lines:
        raise UserError(f"{where}: line {lines.index('') + 1} is empty; give every label from 0 up a line")
    check_names(lines, where)
    return lines


def _build(listing: Listing, lines: list[str] | None) -> Arrays:
    def scan(number: int) -> Shard:
        shown = f"{listing.shown}/{listing.names[number]}"
        try:
            with open_tar(listing, number) as file:
                return scan_shard(file, shown)
        except OSError as error:
            raise UserError(f"{shown}: cannot be read ({error.strerror or error}); mend or remove it") from error

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
    findings = Findings()
    for shard in shards:
        findings.join(shard.findings)
    if not members:
        held = sum((shard.suffixes for shard in shards), Counter())
        there = some([f"{count} of {suffix}" for suffix, count in held.most_common()]) or "no files"
        raise UserError(
            f"{listing.shown}: no key.jpg with key.cls in {listing.names[0]} .. {listing.names[-1]}; they hold {there}"
        )
    for folder, splits in split_folders(map(posixpath.dirname, members)).items():
        held = ", ".join(sorted(itertools.chain.from_iterable(splits.values())))
        inside = f"their folder {folder} holds" if folder else "their folders are"
        raise UserError(
            f"{listing.shown}/{listing.names[0]} ..: {inside} the splits {held}, and {JUDGED}; pack each by itself"
        )
    names = [f"{name}:{one}" for name, shard in zip(listing.names, shards, strict=True) for one in shard.members]
    if lines is None:
        classes = _classes(members, labels, listing, names)
    else:
        classes = lines
        within(labels, classes, names.__getitem__, f"{listing.shown}/classes.txt:")
    for name, shard in zip(listing.names, shards, strict=True):
        if not shard.members:
            findings.add("warning", "shards without images", "written by mistake?", f"{listing.shown}/{name}")
    sizes = [size for shard in shards for size in shard.sizes]
    return (
        tabulate("webdataset", names, labels, sizes, classes)
        | tell(findings)
        | pack("files", listing.names)
        | {
            "file_ids": np.repeat(np.arange(len(shards), dtype=np.int32), [len(shard.members) for shard in shards]),
            "starts": np.concatenate([np.asarray(shard.starts, np.int64) for shard in shards]),
        }
    )


def _classes(members: list[str], labels: np.ndarray, listing: Listing, shown: list[str]) -> list[str]:
    """Directory names where directories and labels correspond one to one, or else the labels, 0 to the largest."""
    name_them = f"give each a line in {listing.shown}/classes.txt"
    names = numbered(labels, lambda i: f"{listing.shown}/{shown[i]}", name_them)
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
    found = Members(shown)
    try:
        for tar, member in members_of(file):
            name = name_of(member.name)
            if name.kind and (member.issym() or member.islnk()):
                raise UserError(f"{shown}:{member.name}: is a link, which is not followed in a tar; {UNLINKED}")
            if name.kind and member.isfile() and member.issparse():
                raise UserError(f"{shown}:{member.name}: is stored sparse; pack the tar without --sparse")
            if member.isfile() and name.kind == "image":
                found.add_image(Image(member.name, name, member.offset_data, member.size))
            elif member.isfile() and name.kind == "cls":
                text = _content(tar, member, shown, SHORT).decode("utf-8", "replace")
                found.add_label(member.name, name, as_label(text, f"{shown}:{member.name}"))
            elif member.isfile() and name.kind == "json" and (value := _json_label(tar, member, shown)) is not None:
                found.json[name.long_key] = (member.name, value)
            elif not member.isdir():
                found.add_other(member.name, name)
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        file.seek(0)
        raise UserError(damaged(shown, file.read(HEAD), error)) from error
    samples = found.samples()
    return Shard(
        [image.member for image, _ in samples],
        [image.start for image, _ in samples],
        [image.size for image, _ in samples],
        [label for _, label in samples],
        found.suffixes,
        found.findings,
    )


def damaged(shown: str, head: bytes, error: Exception) -> str:
    """What to say of a file that cannot be read as a tar."""
    return f"{shown}: {what_is(head)}" if what_is(head) and head[257:262] != b"ustar" else DAMAGED.format(shown, error)


def members_of(file: IO[bytes]) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members of a whole, uncompressed tar, without what a hostile one can do to Python's reader.

    Raises:
        tarfile.TarError, EOFError, ValueError, RecursionError: it is none, or is cut off or damaged.
    """
    bounded: Any = Bounded(file)
    with tarfile.open(fileobj=bounded, mode="r:") as tar:
        while (member := tar.next()) is not None:
            if member.size < 0 or tar.offset <= member.offset:  # it would go round in circles
                raise tarfile.ReadError(f"{member.name} has {member.size} bytes")
            vars(tar)["members"] = []  # it keeps all it has read
            yield tar, member
        # It takes the end of the file, and a damaged header, for the end of the archive.
        file.seek(tar.offset)
        end = file.read(RECORD)
        if len(end) < tarfile.BLOCKSIZE or any(end[: tarfile.BLOCKSIZE]):
            raise tarfile.ReadError("no end-of-archive block")
        if any(end) or (len(end) == RECORD and file.seek(0, io.SEEK_END) > tar.offset + RECORD):
            raise tarfile.ReadError(
                f"it ends at byte {tar.offset}, and more follows: of tars joined by cat only the first is seen"
            )


class Bounded:
    """A file of which no header can ask for much at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.seek, self.tell, self.seekable = file, file.seek, file.tell, file.seekable

    def read(self, size: int) -> bytes:
        """As `IO.read`; tarfile.ReadError where `size` is negative, which means all, or large."""
        if not 0 <= size <= LONG:
            raise tarfile.ReadError(f"a header asks for {size} bytes")
        return self._file.read(size)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, shown: str, most: int) -> bytes:
    if member.size > most:
        raise UserError(f"{shown}:{member.name}: has {member.size} bytes, too many for a label ({most})")
    file = tar.extractfile(member)
    return file.read() if file else b""


def _json_label(tar: tarfile.TarFile, member: tarfile.TarInfo, shown: str) -> Any:
    """What a JSON gives as label; None where it gives none, and where it is no JSON the error, for want of a .cls."""
    try:
        fields = json.loads(_content(tar, member, shown, LONG))
    except UserError as error:
        return error
    except (ValueError, RecursionError) as error:
        return UserError(f"{shown}:{member.name}: is no JSON ({error})")
    given = [fields[key] for key in ("label", "cls") if fields.get(key) is not None] if isinstance(fields, dict) else []
    whole = [value for value in given if type(value) is int]  # a label in words beside its number
    return next(iter(whole or given), None)


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
