"""The files a data set lies in: a file, a directory, a glob or a brace pattern, local or remote."""

import errno
import itertools
import posixpath
import re
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from backbone.data.findings import Findings
from backbone.data.formats import is_hidden, some
from backbone.data.index import cache_directory, digest
from backbone.data.series import generations, lacking
from backbone.data.splits import JUDGED, OTHERS, by_split, pattern_for, splits_among, typed, words_in
from backbone.errors import UserError
from backbone.storage import QUERIED, filesystem

FORMAT = 2  # of an index; a change makes old ones stale
MANY_FOLDERS = 50  # that are looked into, for a message
THREADS = 16  # requests at a time; what they wait for is the disk or the network
GLOB = re.compile(r"[*?\[]")
MOST_BRACES = 1_000_000  # names a brace pattern may stand for
OWN = re.compile(r"raybone-index-.*|.*\.tar\.json|classes\.txt|(index|report|preparing)\.json")  # ours, beside shards
LACKING = "files of a series that are not there", "fetch them, or rename the others: their images are missing"
GENERATIONS = "series of files of one name", "all are read; if one is of an older version, remove its files"
STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True)
class Listing:
    """Sorted files under the deepest directory they have in common."""

    url: str  # what `filesystem` opens
    root: str  # path on that file system
    names: tuple[str, ...]  # relative to root
    sizes: tuple[int, ...]  # bytes
    stamps: tuple[str, ...]  # times of change, or tags of content
    passed: tuple[str, ...] = ()  # other files that lie in the directory, or match the glob, relative to root

    @property
    def is_local(self) -> bool:
        return isinstance(filesystem(self.url)[0], LocalFileSystem)

    @property
    def shown(self) -> str:
        """The root as people write it."""
        return shown(self.url, self.root)

    @property
    def files(self) -> list[str]:
        """All of them as people write them."""
        root = self.shown
        return [f"{root}/{name}" for name in self.names]

    @property
    def state(self) -> str:
        """SHA-256 over names, sizes and stamps, not over where the files lie: an index is valid for one state."""
        return digest(FORMAT, *zip(self.names, self.sizes, self.stamps, strict=True))

    def remarks(self, suffix: str) -> Findings:
        """What was found and is not read, where `suffix` is."""
        findings = Findings()
        for name in self.passed:
            at, last = f"{self.shown}/{name}", posixpath.basename(name.rstrip("/"))
            if is_hidden(last):
                findings.add("note", "hidden files that are not read", "other programs' notes, by their names", at)
            elif name.endswith("/"):
                findings.add("note", "folders that are not looked into", "name one to read it instead", at)
            elif f"{suffix}." in last.lower():
                remedy = f"unpack them: only files that end in {suffix} are read"
                findings.add("warning", f"packed {suffix} files that are not read", remedy, at)
            else:
                findings.add("note", f"files other than {suffix}, not read", f"only {suffix} files are", at)
        return findings

    def beside(self) -> Path:
        """Where the index of exactly these files lies among them."""
        return Path(self.root) / f"raybone-index-{digest(*self.names)[:12]}.index"

    def cached(self, kind: str, cache: str | None) -> Path:
        """Where the index of exactly these files lies in the cache."""
        return cache_directory(cache) / f"{kind}-{digest(self.shown, *self.names)[:16]}.index"


def shown(url: str, root: str) -> str:
    """A path on a file system as people write it: with its scheme where it is remote."""
    fs = filesystem(url)[0]
    return root if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(root)


def list_files(location: str, suffix: str) -> Listing:
    """Find files.

    Args:
        location: a file, a directory (all its files with `suffix`), a glob (`*.tar`) or a brace pattern
            (`train-{0000..1023}.tar`, `{a,b}.tar`), as a local path or URL.
        suffix: such as `.tar`, in upper case as well.

    Raises:
        UserError: nothing is there, one of the files that braces ask for is missing, or a folder may not be listed.
    """
    try:
        return _list_files(location, suffix)
    except PermissionError as error:
        raise UserError(unreadable(error, location)) from error


def _list_files(location: str, suffix: str) -> Listing:
    base, pattern = _split(location)
    fs, root = filesystem(base)
    root = root.rstrip("/")
    passed: list[str] = []
    if pattern:
        paths: list[str] = []
        for one in braces(pattern, location):
            path = f"{root}/{one}"
            found = _glob(fs, path, suffix, passed) if GLOB.search(one) else [path] if fs.exists(path) else []
            if not found:
                raise UserError(f"{location}: there is no {path}{_joined(location)}")
            paths += found
    elif fs.isdir(root):
        paths = _in_directory(fs, root, suffix, passed)
        if not paths:
            raise UserError(f"{location}: no *{suffix} in this directory{_elsewhere(fs, base, root, suffix)}")
    elif fs.exists(root):
        paths = [root]
    else:
        raise UserError(f"{location}: no such file or directory{_joined(location)}")
    paths = sorted(set(paths))
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            infos = list(pool.map(fs.info, paths))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        raise UserError(f"{location}: {error.filename or error} is a link that leads nowhere; mend it") from error
    top = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    return Listing(
        url=base,
        root=top,
        names=tuple(posixpath.relpath(path, top) for path in paths),
        sizes=tuple(info["size"] for info in infos),
        stamps=tuple(next((str(info[key]) for key in STAMPS if info.get(key)), "") for info in infos),
        passed=tuple(sorted(posixpath.relpath(path, top) + "/" * path.endswith("/") for path in passed)),
    )


def _in_directory(fs: fsspec.AbstractFileSystem, root: str, suffix: str, passed: list[str]) -> list[str]:
    paths = []
    for info in fs.ls(root, detail=True):
        if info["name"].rstrip("/") == root:  # a bucket's mark of the folder itself
            continue
        name = posixpath.basename(info["name"])
        if name.lower().endswith(suffix) and not is_hidden(name) and info["type"] != "directory":
            paths.append(info["name"])
        elif not OWN.fullmatch(name):
            passed.append(info["name"] + "/" * (info["type"] == "directory"))
    return paths


def _glob(fs: fsspec.AbstractFileSystem, path: str, suffix: str, passed: list[str]) -> list[str]:
    """What a glob matches and ends in `suffix`; all files where none does: people call things as they like."""
    found = {name: info for name, info in fs.glob(path, detail=True).items() if info["type"] != "directory"}
    right = [name for name in found if name.lower().endswith(suffix)]
    if right:
        passed += [name for name in found if name not in set(right) and not OWN.fullmatch(posixpath.basename(name))]
    return right or list(found)


def _elsewhere(fs: fsspec.AbstractFileSystem, url: str, root: str, suffix: str) -> str:
    """Where else such files are, to end a message: in folders of the directory, which are not looked into."""
    folders: dict[str, int] = {}
    others: dict[str, int] = {}
    for info in fs.ls(root, detail=True):
        name = posixpath.basename(info["name"])
        if info["type"] != "directory":
            kind = "".join(Path(name).suffixes[-2:] if f"{suffix}." in name else Path(name).suffixes[-1:])
            others[kind or "no suffix"] = others.get(kind or "no suffix", 0) + 1
        elif len(folders) < MANY_FOLDERS:
            folders[name] = len(_in_directory(fs, info["name"], suffix, []))
    empty = [name for name, count in folders.items() if not count and not is_hidden(name)]
    folders = {name: count for name, count in folders.items() if count}
    if folders:
        counts = ", ".join(f"{name} ({count})" for name, count in sorted(folders.items()))
        places = {split: f"{shown(url, root)}/{names[0]}" for split, names in splits_among(folders).items()}
        how = typed(places) if places else f"Name one: --data.train {shlex.quote(f'{shown(url, root)}/{min(folders)}')}"
        return f", but in its folders {counts}. {how}"
    there = some([f"{count} of {kind}" for kind, count in sorted(others.items(), key=lambda one: -one[1])])
    below = f"the folders {some(sorted(empty))}, and no *{suffix} in them: name one further down" if empty else ""
    return f"; it holds {' and '.join(filter(None, (there, below))) or 'no files'}"


def missing_files(location: str, listing: Listing) -> Findings:
    """Files that lack of numbered series. Who names files one by one, in braces, means those."""
    findings = Findings()
    if "{" not in pattern_of(location):
        for name, count in lacking(listing.names):
            findings.add("warning", *LACKING, f"{listing.shown}/{name}", count)
        for first in generations(listing.names):
            findings.add("warning", *GENERATIONS, " and ".join(f"{listing.shown}/{name}" for name in first), len(first))
    return findings


def _joined(location: str) -> str:
    """How to name several places at once, to end a message, where they were joined as elsewhere."""
    for mark in ("::", ","):
        places = [place.strip() for place in location.split(mark)]
        start = posixpath.commonprefix(places).rpartition("/")[0] + "/"
        if (
            len(places) > 1
            and all("/" in place for place in places)
            and not start.endswith(("://", "//"))
            and start != "/"
        ):
            named = f"{start}{{{','.join(place.removeprefix(start) for place in places)}}}"
            return f"; several places are named by braces: {shlex.quote(named)}"
    return ""


def check_one_split(location: str, listing: Listing) -> None:
    """Check that a directory or glob does not take in what is to be judged by.

    Raises:
        UserError: its files are of several splits by their names, which `location` itself does not name, as braces can.
    """
    found = by_split(listing.names)
    if not found or found.keys() <= {OTHERS, *words_in(pattern_of(location))}:
        return
    counts = ", ".join(f"{split} ({len(names)} file{'s' * (len(names) > 1)})" for split, names in sorted(found.items()))
    places = {}
    for split, names in found.items():
        one = pattern_for(names, [name for name in listing.names if name not in set(names)])
        places[split] = one and f"{listing.shown}/{one}"
    raise UserError(f"{location}: its files are of several splits by their names: {counts}; {JUDGED}. {typed(places)}")


def braces(pattern: str, location: str) -> list[str]:
    """`expand_braces`, bounded.

    Raises:
        UserError: it stands for nothing, such as {5..3}, or for more names than any data set has files.
    """
    names = list(itertools.islice(expand_braces(pattern), MOST_BRACES + 1))
    if not names:
        raise UserError(f"{location}: its braces stand for nothing; count upwards, such as {{0..3}}")
    if len(names) > MOST_BRACES:
        raise UserError(f"{location}: its braces stand for more than {MOST_BRACES} files; give a glob, such as *")
    return names


def expand_braces(pattern: str) -> Iterator[str]:
    """`a{08..10}{x,y}` -> a08x, a08y, a09x, a09y, a10x, a10y, as a shell does; {0..8..4} and {a..c}, too."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    span = re.fullmatch(r"(\d+)\.\.(\d+)(?:\.\.([1-9]\d*))?", match[1])
    letters = re.fullmatch(r"([a-z])\.\.([a-z])|([A-Z])\.\.([A-Z])", match[1])
    if span:
        width = len(span[1]) if span[1].startswith("0") else 0
        numbers = range(int(span[1]), int(span[2]) + 1, int(span[3] or 1))
        options: Any = (f"{number:0{width}d}" for number in numbers)
    elif letters:
        first, last = filter(None, letters.groups())
        options = map(chr, range(ord(first), ord(last) + 1))
    else:
        options = match[1].split(",")
    for option in options:
        yield from expand_braces(pattern[: match.start()] + option + pattern[match.end() :])


def pattern_of(location: str) -> str:
    """The part of a location that is a glob or has braces; "" where there is none."""
    return _split(location)[1]


def _is_there(location: str) -> bool:
    try:
        return Path(location).expanduser().exists()
    except (OSError, RuntimeError):  # braces may be longer than a name can be; no rights; nobody's home
        return False


def unreadable(error: OSError, path: str) -> str:
    """What to say of a folder that may not be listed."""
    return (
        f"{error.filename or path}: {error.strerror}; chmod -R u+rX {shlex.quote(path)} by its owner, or name another"
    )


def _split(location: str) -> tuple[str, str]:
    """Cut before the first component that is a pattern: `(what filesystem() opens, pattern or "")`."""
    scheme, mark, path = location.rpartition("://")
    query = ""
    if scheme in QUERIED:  # ?region=... and the like belong to the file system
        path, question, options = path.partition("?")
        query = question + options
    if not mark and _is_there(location):
        return location, ""
    parts = path.split("/")
    first = next((i for i, part in enumerate(parts) if GLOB.search(part) or "{" in part), len(parts))
    base = "/".join(parts[:first]) or ("" if mark else "/" if path.startswith("/") else ".")
    return scheme + mark + base + query, "/".join(parts[first:])
