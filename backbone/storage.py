"""Local paths and remote URLs as one file-system interface."""

from pathlib import Path

import fsspec
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem

from backbone.errors import UserError

# pyarrow (a dependency of Ray) speaks these itself, so that users need neither s3fs nor gcsfs.
ARROW_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs")


def filesystem(url: str | Path) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return `(file system, path on it)` for a local path or a URL such as `s3://bucket/key`, `memory://x`.

    Local paths come back absolute: Ray workers run in a directory of their own.

    Raises:
        UserError: the URL's scheme is unknown, or the package that reads it is not installed.
    """
    scheme = str(url).split("://")[0] if "://" in str(url) else ""
    try:
        if scheme in ARROW_SCHEMES:
            from pyarrow.fs import FileSystem

            fs, path = FileSystem.from_uri(str(url))
            return ArrowFSWrapper(fs), path
        return fsspec.core.url_to_fs(str(Path(url).expanduser()) if not scheme else str(url))
    except (ValueError, ImportError, OSError) as error:
        raise UserError(f"cannot open {url}: {error}") from error


def is_local(url: str | Path) -> bool:
    """True where `url` names a file on this machine."""
    return isinstance(filesystem(url)[0], LocalFileSystem)


def join(url: str | Path, *parts: str) -> str:
    """Append path components to a local path or URL, before the URL's query (`s3://b/k?region=...`) if it has one."""
    place, mark, query = str(url).partition("?") if "://" in str(url) else (str(url), "", "")
    return "/".join([place.rstrip("/"), *parts]) + mark + query


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
            with fs.open(join(path, name), "wb") as file:
                file.write(data)
    except OSError as error:
        raise UserError(f"cannot write {what} {url}: {error}") from error
