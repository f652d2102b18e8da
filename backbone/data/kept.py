"""Images of an object store that stay on a machine's disk once they have been read, within a bound.

An epoch reads each image once, in an order of its own, so that which ones are kept does not matter, and one that makes
room for another is a loss: the first ones of the data set are kept, as many as the bound holds, and never given up.
Which they are is a function of sizes alone; all processes of a machine share them and need not agree on anything.
"""

import errno
import os
import shutil
import uuid
import warnings
import zlib
from pathlib import Path

import numpy as np

BYTES, SUMS = "bytes", "sums.npy"
SHARE = 0.5  # of the room on the disk that is taken at most


class Kept:
    """The first images of a data set: one file of bytes, with holes where none has been read, and a CRC-32 of each."""

    def __init__(self, folder: Path, sizes: np.ndarray, most: float) -> None:
        """Open, or make.

        Args:
            folder: of this data set in this state, and of no other.
            sizes: int64 [N], bytes.
            most: bytes to be kept; less where the disk has not twice as many free.

        Raises:
            OSError: there is no room, or the folder cannot be written.
        """
        ends = np.cumsum(sizes)
        if not (folder / SUMS).exists():
            _make(folder, ends, most)
        self._sums = np.load(folder / SUMS, mmap_mode="r+", allow_pickle=False)
        self._starts, self._sizes, self._folder = ends - sizes, sizes, folder
        self._file = os.open(folder / BYTES, os.O_RDWR | os.O_CLOEXEC)

    def __len__(self) -> int:
        return len(self._sums)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def read(self, i: int) -> bytes | None:
        """The bytes of image i; None where they are not there, not as they were written, or cannot be read."""
        if i >= len(self) or not self._sums[i]:
            return None
        try:
            data = os.pread(self._file, int(self._sizes[i]), int(self._starts[i]))
        except OSError as error:  # the image is in the store, and no worse for it
            self._warn(error)
            return None
        return data if _sum(data) == self._sums[i] else None

    def write(self, i: int, data: bytes) -> None:
        """Keep image i, if it is one of those that are. On a disk that is full, or fails, it is not kept."""
        if i >= len(self) or len(data) != self._sizes[i]:
            return
        try:
            if os.pwrite(self._file, data, int(self._starts[i])) == len(data):
                self._sums[i] = _sum(data)  # last: what was written in part does not fit it
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                self._warn(error)

    def _warn(self, error: OSError) -> None:
        """Once a process: what only costs time must not be silent."""
        what = f"{self._folder}: {error.strerror or error}; images are read from their URL instead"
        warnings.warn(what, RuntimeWarning, stacklevel=2)


def _make(folder: Path, ends: np.ndarray, most: float) -> None:
    """Written aside and renamed: processes may race, and the first one's stays."""
    stem = folder.name.rpartition("-")[0]
    for old in folder.parent.glob(f"{stem}-*.kept"):  # of another state, or another bound
        shutil.rmtree(old, ignore_errors=True)
    bound = min(most, SHARE * shutil.disk_usage(folder.parent).free)
    count = int(np.searchsorted(ends, bound, side="right"))
    aside = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
    aside.mkdir()
    try:
        np.save(aside / SUMS, np.zeros(count, np.uint32), allow_pickle=False)
        with (aside / BYTES).open("wb") as file:
            file.truncate(int(ends[count - 1]) if count else 0)
        aside.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sum(data: bytes) -> int:
    return zlib.crc32(data) or 1  # 0 says that there is none
