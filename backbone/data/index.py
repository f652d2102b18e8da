"""What a data set holds, as a folder of flat `.npy` arrays, memory-mapped by every process of a machine.

A million Python strings cost a hundred megabytes in every loader process and are copied by reference counting after a
fork; here names are one buffer of bytes with offsets, and a pickled source is a path.
"""

import errno
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import fsspec
import numpy as np
import numpy.typing as npt
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem
from tqdm import tqdm

from backbone.data.ahead import Ahead
from backbone.data.decode import decode
from backbone.data.findings import Finding, Findings, from_json, to_json
from backbone.data.kept import Kept
from backbone.errors import BadImage, StorageError, UserError, printable
from backbone.storage import filesystem

CHOOSE = "choose another directory by the option cache or the variable XDG_CACHE_HOME"
MAX_OPEN = 256  # shards a process keeps open; beyond that each read opens its own (soft limits are often 1024)
SAY_AFTER_S = 10.0  # that another process makes an index, and again as long after
LONGEST_TURN_S = 3600.0  # to wait for one that makes no progress

Arrays = dict[str, np.ndarray]


def pack(key: str, strings: Iterable[str]) -> Arrays:
    """Strings as `{key}` uint8 [bytes] and `{key}_offsets` int64 [N + 1]."""
    encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(one) for one in encoded], out=offsets[1:])
    return {key: np.frombuffer(b"".join(encoded), np.uint8), f"{key}_offsets": offsets}


def unpack(arrays: Arrays, key: str, i: int) -> str:
    """String `i` of those packed under `key`."""
    start, stop = arrays[f"{key}_offsets"][i : i + 2]
    return arrays[key][start:stop].tobytes().decode("utf-8", "surrogateescape")


def unpack_all(arrays: Arrays, key: str) -> tuple[str, ...]:
    """All strings packed under `key`."""
    return tuple(unpack(arrays, key, i) for i in range(len(arrays[f"{key}_offsets"]) - 1))


def tabulate(
    kind: str, names: Iterable[str], labels: npt.ArrayLike, sizes: npt.ArrayLike, classes: Sequence[str]
) -> Arrays:
    """The arrays every data set has: names, labels int64 [N], sizes (bytes) int64 [N], classes, fingerprint.

    The fingerprint is the SHA-256 over all the others and `kind`. Names are relative, so that it does not depend on
    where the data set lies.
    """
    arrays = pack("names", names) | pack("classes", classes)
    arrays |= {"labels": np.asarray(labels, np.int64), "sizes": np.asarray(sizes, np.int64)}
    sha = hashlib.sha256(kind.encode())
    for key in sorted(arrays):
        sha.update(f"\n{key} {arrays[key].nbytes}\n".encode())
        sha.update(arrays[key].tobytes())
    return arrays | {"fingerprint": _text(sha.hexdigest())}


def tell(findings: Findings) -> Arrays:
    """What a reader has to say of a data set, as an array of its index; no part of the fingerprint."""
    return {"findings": np.frombuffer(to_json(findings.sorted()), np.uint8)}


def _text(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def digest(*parts: object) -> str:
    """SHA-256 of values, as hex."""
    return hashlib.sha256("\n".join(map(str, parts)).encode("utf-8", "surrogateescape")).hexdigest()


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a folder of `.npy` files. Written aside and renamed: processes may race, and the last one's stays."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        aside.mkdir()
        for key, array in arrays.items():
            np.save(aside / f"{key}.npy", array, allow_pickle=False)
        while True:
            try:
                aside.rename(path)
                return
            except OSError as error:  # a folder takes the place of an empty one only
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            with suppress(FileNotFoundError):  # another process was faster
                path.rename(aside.with_suffix(".old"))
    finally:
        for left in (aside, aside.with_suffix(".old")):
            shutil.rmtree(left, ignore_errors=True)


def map_arrays(path: Path) -> Arrays:
    """The arrays of a folder by `write_arrays`, read-only, memory-mapped.

    Raises:
        OSError, ValueError, EOFError: it is not there or damaged.
    """
    found = {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in path.iterdir()}
    return {key: np.asarray(array) for key, array in found.items()}


def is_fresh(path: Path, state: str) -> bool:
    """True where `path` is a whole index of files in this state (see `Listing.state`)."""
    try:
        arrays = map_arrays(path)
        return arrays.pop("state").tobytes() == _state(state, arrays).tobytes()
    except (OSError, ValueError, EOFError, KeyError):
        return False


def _state(state: str, arrays: Arrays) -> np.ndarray:
    """With the arrays' names: what tidies up a disk takes single files."""
    return _text(" ".join([state, *sorted(arrays)]))


def store(candidates: Sequence[Path], state: str, arrays: Arrays) -> Path:
    """Write an index to the first of `candidates` that can be written, and return that one.

    Raises:
        UserError: none can.
    """
    reasons = []
    for path in candidates:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.parent.stat().st_mode & 0o222:  # root, as in most containers, could write all the same
                raise PermissionError(errno.EACCES, "marked read-only")
            write_arrays(path, arrays | {"state": _state(state, arrays)})
            return path
        except OSError as error:
            reasons.append(f"{path.parent} ({error.strerror or error})")
    raise UserError(f"cannot write the index of the data set to {' or '.join(reasons)}; {CHOOSE}")


@contextmanager
def in_turn(path: Path) -> Generator[None]:
    """Within, other processes of this machine wait that would make the index at `path`: one makes it, the rest find it.

    Eight workers of a node would else each parse COCO's annotations at the same time. Where no lock can be had (a cache
    that cannot be written, a filesystem without locks) nobody waits; and nobody for ever. Two that make one index do no
    harm, as it is written aside.
    """
    with ExitStack() as held:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            wait_for_turn(held.enter_context(path.with_suffix(".lock").open("a+")), path)
        yield


def wait_for_turn(lock: TextIO, path: Path, progress: Callable[[], Any] = lambda: None) -> bool:
    """Wait until this process holds `lock`, which closing releases, as does its holder's end. Returns whether it does.

    `lock` is opened to append and read; it says who holds it. Not for ever: whose `progress` has not changed for
    `LONGEST_TURN_S` is stuck.

    Raises:
        OSError: the file system has no locks.
    """
    began = moved = time.monotonic()
    say_at, made = SAY_AFTER_S, progress()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.truncate(0)
            print(f"process {os.getpid()} on {platform.node()}", file=lock, flush=True)
            return True
        except BlockingIOError:
            now = time.monotonic()
        if (latest := progress()) != made:
            made, moved = latest, now
        if now - moved >= LONGEST_TURN_S:
            return False
        if now - began >= say_at:
            text = f"waiting for another process of this machine to make {path}, for {now - began:.0f} s until now"
            tqdm.write(text, file=sys.stderr)
            say_at = 2 * (now - began)
        time.sleep(min(0.01 + (now - began) / 10, 1.0))


def cache_directory(cache: str | None) -> Path:
    """`cache`, or else `$XDG_CACHE_HOME/raybone`, or else `~/.cache/raybone`. Not made here.

    Raises:
        UserError: `cache` is a URL.
    """
    if cache and "://" in cache:
        raise UserError(f"cache {cache}: is memory-mapped, so it must be a local directory")
    return Path(cache or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/raybone").expanduser().absolute()


@functools.lru_cache(maxsize=8)
def _filesystem(url: str, process: int) -> fsspec.AbstractFileSystem:
    return filesystem(url)[0]  # clients of object stores do not survive a fork, hence one a process


def read_range(fs: fsspec.AbstractFileSystem, path: str, start: int, stop: int) -> bytes:
    """Bytes start..stop of a remote file in one request."""
    seekable = {"seekable": True} if isinstance(fs, ArrowFSWrapper) else {}  # else it fails on a start of 0
    return fs.cat_file(path, start, stop, **seekable)


def read_file(path: str, size: int) -> bytes:
    """A local file that should have `size` bytes: in a third of the time that `Path.read_bytes` takes."""
    file = os.open(path, os.O_RDONLY)
    try:
        data = os.read(file, size + 1)
    finally:
        os.close(file)
    return data if len(data) == size else Path(path).read_bytes()


class IndexedSource:
    """Images named by an index: whole files, or ranges of bytes of a few files (shards).

    Where the index has `files`, image i is the `sizes[i]` bytes from `starts[i]` of file number `file_ids[i]`;
    where it has not, image i is the file called as it is. Pickled as paths, for processes of the same machine.
    Reading is safe in threads and after a fork.
    """

    def __init__(
        self,
        index: Path,
        url: str,
        root: str,
        shown: str,
        fingerprint: str = "",
        remarks: Findings | None = None,
        places: Sequence[str] = (),
        keep: float = 0.0,
    ) -> None:
        """Open.

        Args:
            index: the folder of arrays.
            url: what `filesystem` opens to read images.
            root: the directory on that file system under which files lie.
            shown: what people find before a name.
            fingerprint: if given, what the index must hold.
            remarks: what the reader has to say beside what the index holds (see `tell`); not pickled.
            places: the files that were read, or the directory whose files are; not pickled.
            keep: bytes of what is read by URL that stay on this machine's disk beside the index, see `Kept`.

        Raises:
            UserError: the index holds another fingerprint.
        """
        self._arrays = map_arrays(index)
        self.labels: np.ndarray = self._arrays["labels"]
        self.sizes: np.ndarray = self._arrays["sizes"]  # bytes
        self.classes = tuple(map(printable, unpack_all(self._arrays, "classes")))
        self.fingerprint = self._arrays["fingerprint"].tobytes().decode()
        if fingerprint not in ("", self.fingerprint):
            raise UserError(f"{shown} changed while it was in use ({index} was rewritten); start again")
        told = self._arrays.get("findings", np.zeros(0, np.uint8)).tobytes()
        self.findings: list[Finding] = Findings().join(from_json(told or b"[]")).join(remarks or []).sorted()
        self.places = frozenset(places)
        self._where = (index, url, root, shown)
        self._local = isinstance(_filesystem(url, os.getpid()), LocalFileSystem)
        self._open: dict[int, BinaryIO] = {}  # by number
        self._ahead = Ahead()
        self._keep, self._kept = 0.0, None
        if keep:
            self.keep(keep)

    def keep(self, most: float) -> None:
        """Keep up to `most` bytes of what is read by URL on this machine's disk, beside the index.

        Raises:
            UserError: the cache cannot be written.
        """
        if self._local or not most:
            return
        index = self._where[0]
        state = digest(self._arrays["state"].tobytes(), self.fingerprint, most)
        self._keep, folder = most, index.with_name(f"{index.stem}-{state[:16]}.kept")
        try:
            self._kept = Kept(folder, self._arrays["sizes"], most)
        except OSError as error:
            raise UserError(f"cannot keep images in {folder} ({error.strerror or error}); {CHOOSE}") from error

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple:
        return IndexedSource, (*self._where, self.fingerprint, None, (), self._keep)

    def __del__(self) -> None:
        for file in getattr(self, "_open", {}).values():
            file.close()

    def name(self, i: int) -> str:
        """`directory/class/file.jpg`, `directory/shard.tar:member` or `directory/file.parquet:row 17`."""
        return printable(f"{self._where[3]}/{self._relative(i)}")

    def image(self, i: int) -> np.ndarray:
        """Image i, uint8 [H, W, 3], RGB.

        Raises:
            BadImage: it cannot be read or decoded. Names it.
        """
        return decode(self.data(i), self.name(i))

    def data(self, i: int) -> bytes:
        """Image i as it is stored.

        Raises:
            BadImage: it cannot be read, then its cause is an OSError, or is shorter than it was. Names it.
            StorageError: the store of objects that it lies in fails.
        """
        try:
            data = self._read(i)
        except StorageError:
            raise  # no property of the image: with on_bad skip another would be trained on in its place
        except OSError as error:
            if self._local and "files" not in self._arrays and Path(self._where[2], self._relative(i)).is_symlink():
                raise BadImage(f"{self.name(i)}: is a link that leads nowhere") from None  # no fault of the storage's
            raise BadImage(f"{self.name(i)}: {error.strerror or error}") from error
        if len(data) != self._arrays["sizes"][i]:
            raise BadImage(f"{self.name(i)}: has {len(data)} bytes, not the {self._arrays['sizes'][i]} it had")
        return data

    def _relative(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        return unpack(self._arrays, "names", i)

    def ahead(self, ids: Iterable[int]) -> None:
        """Begin to read these images, which are going to be asked for in this order, where they lie at a URL."""
        if not self._local:
            self._ahead.begin(ids, self._fetch)

    def _read(self, i: int) -> bytes:
        return self._from_place(i) if self._local else self._ahead.take(i, self._fetch)

    def _fetch(self, i: int) -> bytes:
        """Image i of a URL, from this machine's disk if it has been kept there."""
        data = self._kept.read(i) if self._kept else None
        if data is None:
            data = self._from_place(i)
            if self._kept:
                self._kept.write(i, data)
        return data

    def _from_place(self, i: int) -> bytes:
        _, url, root, _ = self._where
        if "files" not in self._arrays:
            path = f"{root}/{self._relative(i)}"
            if not self._local:
                return _filesystem(url, os.getpid()).cat_file(path)
            return read_file(path, int(self._arrays["sizes"][i]))
        number, start, size = (int(self._arrays[key][i]) for key in ("file_ids", "starts", "sizes"))
        file = self._open.get(number)
        if file is not None:
            return os.pread(file.fileno(), size, start)  # a position of its own: threads and forks share the file
        path = f"{root}/{unpack(self._arrays, 'files', number)}"
        if not self._local:
            return read_range(_filesystem(url, os.getpid()), path, start, start + size)
        if len(self._open) < MAX_OPEN:
            file = self._open.setdefault(number, Path(path).open("rb", buffering=0))  # noqa: SIM115
            return os.pread(file.fileno(), size, start)
        with Path(path).open("rb", buffering=0) as passing:
            return os.pread(passing.fileno(), size, start)

    def place(self, i: int, suffix: bytes) -> tuple[int, int] | None:
        """Where image i is read: a descriptor of its file, and its first byte there.

        None where it has to be asked for by `data`: its name ends otherwise, or it is in no shard on this machine that
        is open already, or not whole there.
        """
        file = self._open.get(int(self._arrays["file_ids"][i])) if self._open else None
        end = int(self._arrays["names_offsets"][i + 1])
        if file is None or self._arrays["names"][end - len(suffix) : end].tobytes() != suffix:
            return None
        start = int(self._arrays["starts"][i])
        return (file.fileno(), start) if os.fstat(file.fileno()).st_size >= start + self.sizes[i] else None
