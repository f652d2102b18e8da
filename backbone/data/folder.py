"""Image folders: one directory a class."""

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from backbone.data.index import IndexedSource, cache_directory, is_fresh, store, tabulate
from backbone.data.listing import THREADS, shown
from backbone.errors import UserError
from backbone.storage import filesystem

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's

Found = list[tuple[str, str, int]]  # (directory relative to the class, file name, bytes)


def open_imagefolder(location: str, cache: str | None = None) -> IndexedSource:
    """Open `<location>/<class>/**/*.jpg`: classes are the sorted folder names, images in torchvision's order.

    Names that begin with a dot are passed over, unlike in torchvision: they are other programs' notes. The directory is
    listed each time; the result is kept in the cache so that loader processes can share it.

    Raises:
        UserError: no such directory, no class folders, a class without images, or the folder holds the splits.
    """
    fs, root = filesystem(location)
    root = root.rstrip("/")
    if not fs.isdir(root):
        raise UserError(f"{location}: no such directory; looked for {root}/<class>/*.jpg")
    local = isinstance(fs, LocalFileSystem)
    folders = {
        Path(info["name"]).name
        for info in fs.ls(root, detail=True)
        # A link to a directory is one: subsets of ImageNet are often made so.
        if info["type"] == "directory" or (local and fs.isdir(info["name"]))
    }
    classes = sorted(name for name in folders if not name.startswith("."))
    if not classes:
        raise UserError(f"{location}: no class folders; looked for {root}/<class>/*.jpg")
    if "train" in classes and {"val", "valid", "validation", "test"} & set(classes):
        raise UserError(f"{location}: holds the splits {', '.join(classes)}, not classes; give one, {root}/train")
    if local:
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(_walk, (f"{root}/{name}" for name in classes)))
    else:
        found = _find(fs, root, classes)
    empty = [name for name, images in zip(classes, found, strict=True) if not images]
    if empty:
        raise UserError(
            f"{location}: no images in {', '.join(empty)}; looked for *{', *'.join(SUFFIXES)}; remove or fill"
        )
    arrays = tabulate(
        "imagefolder",
        names=(
            "/".join(filter(None, (c, *image[:2])))
            for c, images in zip(classes, found, strict=True)
            for image in images
        ),
        labels=np.repeat(np.arange(len(classes)), [len(images) for images in found]),
        sizes=[image[2] for image in chain.from_iterable(found)],
        classes=classes,
    )
    fingerprint = arrays["fingerprint"].tobytes().decode()
    path = cache_directory(cache) / f"imagefolder-{fingerprint[:16]}.npz"
    if not is_fresh(path, fingerprint):
        store([path], fingerprint, arrays)
    return IndexedSource(path, location, root, shown(location, root))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _walk(top: str) -> Found:
    """The images below a local directory, links followed, directory by directory in sorted order."""
    found: Found = []
    pending = [""]
    try:
        while pending:
            below = pending.pop()
            with os.scandir(f"{top}/{below}") as entries:
                for entry in entries:
                    if entry.is_dir() and not entry.name.startswith("."):
                        pending.append(f"{below}/{entry.name}".lstrip("/"))
                    elif _is_image(entry.name):
                        found.append((below, entry.name, entry.stat().st_size))
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; mend or remove it") from error
    return sorted(found)


def _find(fs: fsspec.AbstractFileSystem, root: str, classes: list[str]) -> list[Found]:
    """The same on a remote file system, in one request where it can."""
    found: dict[str, Found] = {name: [] for name in classes}
    for path, info in fs.find(root, detail=True).items():
        top, *below = path.removeprefix(root).lstrip("/").split("/")
        if top in found and below and _is_image(below[-1]) and not any(part.startswith(".") for part in below):
            found[top].append(("/".join(below[:-1]), below[-1], info["size"]))
    return [sorted(images) for images in found.values()]
