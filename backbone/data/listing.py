"""The files a data set lies in: a file, a directory, a glob or a brace pattern, local or remote."""

import posixpath
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from backbone.data.index import cache_directory, digest
from backbone.errors import UserError
from backbone.storage import ARROW_SCHEMES, filesystem

FORMAT = 1  # of an index; a change makes old ones stale
THREADS = 16  # requests at a time; what they wait for is the disk or the network
GLOB = re.compile(r"[*?\[]")
STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True)
class Listing:
    """Sorted files under the deepest directory they have in common."""

    url: str  # what `filesystem` opens
    root: str  # path on that file system
    names: tuple[str, ...]  # relative to root
    sizes: tuple[int, ...]  # bytes
    stamps: tuple[str, ...]  # times of change, or tags of content

    @property
    def is_local(self) -> bool:
        return isinstance(filesystem(self.url)[0], LocalFileSystem)

    @property
    def shown(self) -> str:
        """The root as people write it."""
        return shown(self.url, self.root)

    @property
    def state(self) -> str:
        """SHA-256 over names, sizes and stamps, not over where the files lie: an index is valid for one state."""
        return digest(FORMAT, *zip(self.names, self.sizes, self.stamps, strict=True))

    def beside(self) -> Path:
        """Where the index of exactly these files lies among them."""
        return Path(self.root) / f"raybone-index-{digest(*self.names)[:12]}.npz"

    def cached(self, kind: str, cache: str | None) -> Path:
        """Where the index of exactly these files lies in the cache."""
        return cache_directory(cache) / f"{kind}-{digest(self.shown, *self.names)[:16]}.npz"


def shown(url: str, root: str) -> str:
    """A path on a file system as people write it: with its scheme where it is remote."""
    fs = filesystem(url)[0]
    return root if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(root)


def list_files(location: str, suffix: str) -> Listing:
    """Find files.

    Args:
        location: a file, a directory (all its files with `suffix`), a glob (`*.tar`) or a brace pattern
            (`train-{0000..1023}.tar`, `{a,b}.tar`), as a local path or URL.
        suffix: such as `.tar`.

    Raises:
        UserError: nothing is there, or one of the files that braces ask for is missing.
    """
    base, pattern = _split(location)
    fs, root = filesystem(base)
    root = root.rstrip("/")
    if pattern:
        paths: list[str] = []
        for one in expand_braces(pattern):
            path = f"{root}/{one}"
            found = fs.glob(path) if GLOB.search(one) else [path] if fs.exists(path) else []
            if not found:
                raise UserError(f"{location}: there is no {path}")
            paths += found
    elif fs.isdir(root):
        paths = [path for path in fs.ls(root, detail=False) if path.endswith(suffix)]
        if not paths:
            raise UserError(f"{location}: no *{suffix} in this directory")
    elif fs.exists(root):
        paths = [root]
    else:
        raise UserError(f"{location}: no such file or directory")
    paths = sorted(set(paths))
    with ThreadPoolExecutor(THREADS) as pool:
        infos = list(pool.map(fs.info, paths))
    top = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    return Listing(
        url=base,
        root=top,
        names=tuple(posixpath.relpath(path, top) for path in paths),
        sizes=tuple(info["size"] for info in infos),
        stamps=tuple(next((str(info[key]) for key in STAMPS if info.get(key)), "") for info in infos),
    )


def expand_braces(pattern: str) -> Iterator[str]:
    """`a{08..10}{x,y}` -> a08x, a08y, a09x, a09y, a10x, a10y, as a shell does."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span:
        width = len(span[1]) if span[1].startswith("0") else 0
        options = [f"{number:0{width}d}" for number in range(int(span[1]), int(span[2]) + 1)]
    else:
        options = match[1].split(",")
    for option in options:
        yield from expand_braces(pattern[: match.start()] + option + pattern[match.end() :])


def _split(location: str) -> tuple[str, str]:
    """Cut before the first component that is a pattern: `(what filesystem() opens, pattern or "")`."""
    scheme, mark, path = location.rpartition("://")
    query = ""
    if scheme in ARROW_SCHEMES:  # ?region=... and the like belong to the file system
        path, question, options = path.partition("?")
        query = question + options
    if not mark and Path(location).expanduser().exists():
        return location, ""
    parts = path.split("/")
    first = next((i for i, part in enumerate(parts) if GLOB.search(part) or "{" in part), len(parts))
    base = "/".join(parts[:first]) or ("" if mark else "/" if path.startswith("/") else ".")
    return scheme + mark + base + query, "/".join(parts[first:])
