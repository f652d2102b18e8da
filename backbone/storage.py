"""Local paths and remote URLs as one file-system interface."""

import errno
import functools
import os
import shutil
import tempfile
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem

from backbone.errors import StorageError, UserError
from backbone.extras import how_to_install

# pyarrow (a dependency of Ray) speaks these itself.
ARROW_SCHEMES = ("abfs", "abfss", "hdfs")
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Schemes whose package is an extra of ours."""

QUERIED = ("s3", "s3a", *ARROW_SCHEMES)
"""Schemes whose URLs may say more after a `?`."""


def filesystem(url: str | Path) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return `(file system, path on it)` for a local path or a URL such as `s3://bucket/key`, `memory://x`.

    Local paths come back absolute: Ray workers run in a directory of their own.

    Raises:
        UserError: the URL's scheme is unknown, or the package that reads it is not installed.
    """
    scheme = str(url).split("://")[0] if "://" in str(url) else ""
    try:
        if scheme in ("s3", "s3a"):
            place, _, query = str(url).partition("://")[2].partition("?")
            return _s3(query, os.getpid()), place.rstrip("/")
        if scheme in EXTRAS:
            return fsspec.core.url_to_fs(str(url), use_listings_cache=False)
        if scheme in ARROW_SCHEMES:
            from pyarrow.fs import FileSystem

            fs, path = FileSystem.from_uri(str(url))
            return ArrowFSWrapper(fs), path
        if not scheme:  # fsspec would take a `::` in it for a chain of file systems, and drop what follows
            return (fs := LocalFileSystem()), str(fs._strip_protocol(str(Path(url).expanduser())))
        return fsspec.core.url_to_fs(str(url))
    except StorageError:
        raise
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        if isinstance(error, ImportError) and scheme in EXTRAS:
            extra = EXTRAS[scheme]
            raise UserError(
                f"cannot open {url}: {scheme}:// needs a package that is not installed ({error}); "
                f"{how_to_install(extra)}, on every node"
            ) from error
        raise UserError(f"cannot open {url}: {error}") from error


@functools.lru_cache(maxsize=8)
def _s3(query: str, process: int) -> fsspec.AbstractFileSystem:
    """One client a process, for all its threads: they take long to make, and do not survive a fork."""
    from backbone.s3 import open_s3

    return open_s3(query)


def is_local(url: str | Path) -> bool:
    """True where `url` names a file on this machine."""
    return isinstance(filesystem(url)[0], LocalFileSystem)


def absolute(url: str) -> str:
    """A local path as every process of this machine understands it: Ray workers run in a directory of their own."""
    return str(Path(url).expanduser().absolute()) if is_local(url) else url


def check_kept(place: str, field: str) -> None:
    """UserError where a relative place would lie in a submitted job's copy of the working directory."""
    relative = "://" not in place and not Path(place).expanduser().is_absolute()
    if relative and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        raise UserError(
            f"{field} {place!r} is relative, and a submitted job runs in a copy of the working directory that is "
            f"thrown away; give an absolute path that all nodes see, or a URL: --{field} /shared/{Path(place).name}"
        )


def for_ray(url: str) -> dict[str, Any]:
    """A place for Ray, through our own file system: of a URL Ray would make pyarrow's, with a mind of its own."""
    if is_local(url):
        return {"storage_path": url}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = filesystem(url)
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}


def join(url: str | Path, *parts: str) -> str:
    """Append path components to a local path or URL, before the URL's query (`s3://b/k?region=...`) if it has one."""
    place, mark, query = str(url).partition("?") if "://" in str(url) else (str(url), "", "")
    return "/".join([place.rstrip("/"), *parts]) + mark + query


def names_in(url: str | Path) -> set[str]:
    """What lies in a folder; nothing where there is none, as on object stores, which have no empty ones."""
    fs, path = filesystem(url)
    try:
        return {name.rstrip("/").rpartition("/")[2] for name in fs.ls(path, detail=False)}
    except FileNotFoundError:
        return set()


def write_folder(url: str | Path, files: dict[str, bytes], what: str) -> None:
    """Write files into a folder, in their order; the last one marks a complete folder, and is removed first.

    Raises:
        UserError: the place cannot be written; calls it `what`.
    """
    fs, path = filesystem(url)
    try:
        fs.makedirs(path, exist_ok=True)
        mark = join(path, list(files)[-1])
        if fs.exists(mark):
            fs.rm(mark)
        for name, data in files.items():
            replace_file(join(url, name), data)  # whole or not at all: a mark that is cut off would be taken for one
    except StorageError:
        raise
    except OSError as error:
        raise UserError(f"cannot write {what} {url}: {error}") from error


def replace_file(url: str | Path, data: bytes) -> None:
    """Write a file anew: whoever reads it, or comes after a writer that was killed, finds the old one or the new."""
    fs, path = filesystem(url)
    if not is_local(url):
        fs.pipe_file(path, data)
        return
    aside = Path(f"{path}.{uuid.uuid4().hex}.tmp")
    try:
        aside.write_bytes(data)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def writing(output: str, name: str, stays: str) -> Generator[BinaryIO]:
    """A new file that appears under its name when it is complete and on the disk, or not at all.

    Raises:
        UserError: see `trouble`, which is told what `stays`.
    """
    fs, path = filesystem(output)
    local = is_local(output)
    folder = Path(path) if local else Path(tempfile.gettempdir())
    aside = folder / f"{name}.{uuid.uuid4().hex}.tmp"
    try:
        with aside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if local:
            aside.replace(folder / name)
        else:
            fs.put_file(str(aside), join(path, name))
    except StorageError:
        raise
    except OSError as error:
        raise UserError(trouble(error, output, stays)) from error
    finally:
        aside.unlink(missing_ok=True)


def trouble(error: OSError, output: str, stays: str) -> str:
    """What to say of an output that cannot be written, where what is called `stays` is safe."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        path = filesystem(output)[1]
        free = f", {shutil.disk_usage(path).free / 1e6:.0f} MB free" if is_local(output) else ""
        return f"{output}: is full{free}; make room and run the same again: {stays} stay, the others follow"
    return f"{output}: cannot be written ({error.strerror or error}); {stays} stay valid. Name another: --output FOLDER"
