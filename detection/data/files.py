"""Where files lie whose names were written elsewhere: with other separators, folders, case, Unicode form or suffix."""

import html
import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from backbone.data.findings import Findings
from backbone.data.formats import IMAGES, is_hidden
from backbone.data.listing import THREADS
from backbone.errors import StorageLost
from backbone.storage import filesystem

MOST = 1_000_000  # files that are looked through for those that are not where they should be

MISSING = "images whose file is missing"
SEVERAL = "images whose file name fits several files"
RESPELLED = "images whose file has another name than is written"
RESTORE = "restore the file, or take the image and its objects out of the annotations"
ELSEWHERE = "none of these names is below this folder: name the folder they lie in"
WHICH = "write the file's path below the folder of images"
FOUND = "read from the file found; correct the name where other tools are to find it"
UNREADABLE = (MISSING, SEVERAL)  # an image of these kinds is a bad image when it is read


class Files:
    """Files below one folder, found by names that are not quite theirs."""

    def __init__(self, paths: Iterable[str]) -> None:
        """`paths`: relative to the folder, with `/`."""
        self._by: dict[str, list[str]] = {}
        for path in paths:
            keys = {_key(path), _key(unquote(path))}
            keys |= set(map(_stem, keys))
            for name in keys | {f"*/{posixpath.basename(key)}" for key in keys}:
                self._by.setdefault(name, []).append(path)

    def find(self, name: str) -> list[str]:
        """The files that `name` may mean: none, one, or several where it does not say which.

        Its own leading folders may be missing on disk (`train/a.jpg` in the folder train, `C:\\data\\a.jpg`), or it
        may lack those that are there; case, Unicode form, suffix and blanks around it may differ, and either may be
        quoted as in a URL.
        The closest are given: a path that fits goes before a file name that fits, and that before a stem; one with the
        same blanks before one without.
        """
        tidy = _spellings(name.strip())
        blanks = [one for one in _spellings(name) if one not in tidy]  # files' names may have them, too
        for form in (_key, lambda one: _stem(_key(one))):
            without = {tail for spelling in tidy for tail in _tails(form(spelling))}
            for spelling in [*blanks, *tidy]:
                tails = [tail for tail in _tails(form(spelling)) if spelling in tidy or tail not in without]
                found = next((self._by[tail] for tail in tails if tail in self._by), [])
                if found:
                    exact = [one for one in found if _stem(_composed(spelling)).endswith(_stem(_composed(one)))]
                    return exact if len(exact) == 1 else found
        return []


def locate(root: str, names: Sequence[str], findings: Findings) -> tuple[list[str], np.ndarray]:
    """The files below a folder or URL that images are in, and which of them have none.

    A name that is a file's stays. Otherwise, and if one file fits, that one is taken, unless another image has it.
    Where a folder cannot be listed, names stay.

    Args:
        root: the folder.
        names: as written, N.
        findings: what is found under another name, is missing or fits several files is added to it.

    Returns:
        N names and bool [N].
    """
    fs, base = filesystem(root)
    base = base.rstrip("/")
    tidy = [posixpath.normpath(name) for name in names]
    try:
        there = present(fs, base, {posixpath.dirname(name) for name in tidy})
    except StorageLost:
        raise  # nothing can be read there either
    except (OSError, NotImplementedError):  # no right to list, or no listings: what is missing is named when read
        return list(names), np.zeros(len(names), bool)
    lost = np.array([name not in there for name in tidy], bool)
    if not lost.any():
        return tidy, lost
    files = Files(below(fs, base))
    found = {i: files.find(names[i]) for i in np.flatnonzero(lost).tolist()}
    written = {(names[i], files_[0]) for i, files_ in found.items() if len(files_) == 1}
    taken = Counter(file for _, file in written) + Counter(name for name in set(tidy) & there)
    for i, fitting in found.items():
        if len(fitting) == 1 and taken[fitting[0]] == 1:
            tidy[i], lost[i] = fitting[0], False
            findings.add("warning", RESPELLED, FOUND, f"{names[i]} is {fitting[0]}")
        elif fitting:
            which = ", ".join(fitting[:3]) if len(fitting) > 1 else f"{fitting[0]}, as another name does"
            findings.add("error", SEVERAL, WHICH, f"{names[i]} fits {which}")
        else:
            findings.add("error", MISSING, ELSEWHERE if not any(found.values()) and lost.all() else RESTORE, names[i])
    return [tidy[i] if not lost[i] else names[i] for i in range(len(names))], lost


def present(fs: fsspec.AbstractFileSystem, base: str, folders: Iterable[str]) -> set[str]:
    """What lies in these folders below `base` (not in folders of theirs), as paths below it; no dead links.

    Raises:
        OSError: one cannot be listed, though it is there.
    """
    listed = _local if isinstance(fs, LocalFileSystem) else _remote
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda folder: listed(fs, base, folder), folders)
        return {path for paths in found for path in paths}


def below(fs: fsspec.AbstractFileSystem, base: str, whole: bool = False) -> list[str]:
    """The files anywhere below `base`, as paths below it, but for hidden ones. Unless the `whole` is asked for, those
    beyond `MOST` are left out, and a folder that cannot be listed holds nothing.

    Raises:
        OSError: of the whole, a folder cannot be listed.
    """
    most = None if whole else MOST
    if not isinstance(fs, LocalFileSystem):
        paths = (path.removeprefix(base).lstrip("/") for path in fs.find(base))
        return [path for path in paths if not any(map(is_hidden, path.split("/")))][:most]
    found: list[str] = []
    seen: set[str] = set()
    pending = [""]
    while pending and (most is None or len(found) < most):
        folder = pending.pop()
        place = os.path.realpath(f"{base}/{folder}")
        if place in seen:  # a link to a folder above
            continue
        seen.add(place)
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if is_hidden(entry.name):
                        continue
                    path = f"{folder}/{entry.name}".lstrip("/")
                    try:
                        is_folder, is_file = entry.is_dir(), entry.is_file()
                    except OSError:  # a link in a circle
                        continue
                    if is_folder:
                        pending.append(path)
                    elif is_file:
                        found.append(path)
        except OSError:
            if whole:
                raise
            continue  # what cannot be looked into holds nothing to be found
    return found


def _local(fs: fsspec.AbstractFileSystem, base: str, folder: str) -> list[str]:
    try:
        with os.scandir(f"{base}/{folder}") as entries:
            return [f"{folder}/{entry.name}".lstrip("/") for entry in entries if entry.is_file() or entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remote(fs: fsspec.AbstractFileSystem, base: str, folder: str) -> list[str]:
    try:
        paths = fs.ls(f"{base}/{folder}".rstrip("/"), detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [f"{folder}/{posixpath.basename(path.rstrip('/'))}".lstrip("/") for path in paths]


def _spellings(name: str) -> list[str]:
    """What may be meant by a name, as it is first."""
    plain = html.unescape(name)
    return list(dict.fromkeys((name, unquote(name), _of_url(unquote(name)), plain, plain.replace("+", " "))))


def _tails(name: str) -> list[str]:
    """Keys of `Files` that fit a name: without more and more of its leading folders, last its file name anywhere."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return ["/".join(parts[k:]) for k in range(len(parts))] + [f"*/{part}" for part in parts[-1:]]


def _of_url(name: str) -> str:
    """The path in a URL, as in `https://host/a.jpg?signed=1` and Label Studio's `/data/local-files/?d=set/a.jpg`."""
    path, _, query = name.partition("?")
    return query[2:] if query.startswith("d=") else path


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", _composed(name).casefold())


def _stem(name: str) -> str:
    """Without the suffix of an image; other dots belong to the name."""
    stem, suffix = posixpath.splitext(name)
    return stem if suffix.lower() in IMAGES else name
