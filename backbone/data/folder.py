"""Image folders: one directory a class."""

import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from backbone.data.findings import Findings
from backbone.data.formats import HEAD, image_suffixes, is_hidden, is_image, is_other_image, some, suffix_of, what_is
from backbone.data.index import IndexedSource, cache_directory, is_fresh, store, tabulate
from backbone.data.labels import check_names
from backbone.data.listing import THREADS, shown, unreadable
from backbone.data.splits import JUDGED, split_folders, typed
from backbone.errors import UserError
from backbone.storage import filesystem

NUMBER = re.compile("[0-9]{1,9}")
MEND = "mend or remove it"
ABOVE = "they would be read for ever; remove them"
INSIDE = (
    "images in folders inside of class folders",
    "read as of the class above",
)
NUMBERS = "classes that are numbers, in the order of text", "name them 00, 01, ... to have labels in their order"
CLASSLESS = "they have no class; move each into the folder of its class"


@dataclass
class Found:
    """What lies below one class folder."""

    images: list[tuple[str, str, int]] = field(default_factory=list)  # (directory below the class, file name, bytes)
    suffixes: Counter[str] = field(default_factory=Counter)  # of what is not read
    findings: Findings = field(default_factory=Findings)

    def passed(self, name: str, where: str) -> None:
        """A file that is not read."""
        if is_hidden(name):
            self.findings.add("note", "hidden files and folders", "other programs' notes, by their names", where)
            return
        self.suffixes[suffix_of(name) or "no suffix"] += 1
        if is_other_image(name):
            remedy = "convert them to JPEG or PNG; no reader of theirs is at hand"
            self.findings.add("warning", "images in formats that are not read", remedy, where)
        else:
            self.findings.add("note", "files that are no images by their names", "not read", where)


def open_imagefolder(location: str, cache: str | None = None) -> IndexedSource:
    """Open `<location>/<class>/**/*.jpg`: classes are the sorted folder names, images in torchvision's order.

    Images are what `decode` reads, by their suffixes; all else is counted among the source's findings. Names that begin
    with a dot are passed over, unlike in torchvision: they are other programs' notes. A link that leads nowhere is an
    image that cannot be read. The directory is listed each time; the result is kept in the cache so that loader
    processes can share it.

    Raises:
        UserError: no such directory, no class folders, a class without images, or the folder holds the splits.
    """
    fs, root = filesystem(location)
    root = root.rstrip("/")
    if not fs.isdir(root):
        raise UserError(f"{location}: {_instead(fs, root)}; looked for {root}/<class>/*.jpg")
    local = isinstance(fs, LocalFileSystem)
    beside, folders = Found(), []
    # Not a bucket's mark of the folder itself.
    try:
        listed = [info for info in fs.ls(root, detail=True) if info["name"].rstrip("/") != root]
    except PermissionError as error:
        raise UserError(unreadable(error, root)) from error
    for info in sorted(listed, key=lambda one: one["name"]):
        name = posixpath.basename(info["name"].rstrip("/"))
        # A link to a directory is one: subsets of ImageNet are often made so.
        is_folder = info["type"] == "directory" or (local and fs.isdir(info["name"]))
        if is_folder and not is_hidden(name) and local and _is_link_above(info["name"]):
            beside.findings.add("warning", "links to a folder above", ABOVE, f"{root}/{name}")
        elif is_folder and not is_hidden(name):
            folders.append(name)
        elif local and not suffix_of(name) and _is_dead(info["name"]):  # a class that vanishes renumbers all others
            raise UserError(f"{root}/{name}: is a link that leads nowhere, where a class folder would be; {MEND}")
        elif is_image(name) and not is_folder:
            beside.findings.add("warning", "images beside the class folders", CLASSLESS, f"{root}/{name}")
            beside.suffixes[suffix_of(name)] += 1
        elif local and _is_dead(info["name"]):
            beside.findings.add("warning", "links that lead nowhere", MEND, f"{root}/{name}")
        else:
            beside.passed(name, f"{root}/{name}")
    classes = sorted(folders)
    if not classes:
        raise UserError(f"{location}: no class folders; looked for {root}/<class>/*.jpg{_held(beside.suffixes)}")
    _check_splits(location, root, classes, [])
    if local:
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(_walk, (f"{root}/{name}" for name in classes)))
    else:
        found = _find(fs, root, classes)
    _check_splits(location, root, classes, found)
    _check_empty(location, classes, found)
    check_names(classes, location)
    arrays = tabulate(
        "imagefolder",
        names=(
            "/".join(filter(None, (c, *image[:2])))
            for c, one in zip(classes, found, strict=True)
            for image in one.images
        ),
        labels=np.repeat(np.arange(len(classes)), [len(one.images) for one in found]),
        sizes=[image[2] for image in chain.from_iterable(one.images for one in found)],
        classes=classes,
    )
    fingerprint = arrays["fingerprint"].tobytes().decode()
    path = cache_directory(cache) / f"imagefolder-{fingerprint[:16]}.index"
    if not is_fresh(path, fingerprint):
        store([path], fingerprint, arrays)
    remarks = Findings()
    for one in (beside, *found):
        remarks.join(one.findings)
    for name, one in zip(classes, found, strict=True):
        for directory, count in Counter(image[0] for image in one.images if image[0]).items():
            remarks.add("note", *INSIDE, f"{root}/{name}/{directory}", count)
    if all(map(NUMBER.fullmatch, classes)) and classes != sorted(classes, key=int):
        label = next(i for i, name in enumerate(sorted(classes, key=int)) if name != classes[i])
        remarks.add("warning", *NUMBERS, f"label {label} is {classes[label]}", len(classes))
    here = shown(location, root)
    return IndexedSource(path, location, root, here, remarks=remarks, places=[here])


def _instead(fs: fsspec.AbstractFileSystem, root: str) -> str:
    """What is there, where there is no directory."""
    if not fs.isfile(root):
        return "no such directory"
    with fs.open(root, "rb") as file:
        return what_is(file.read(HEAD)) or "is a file"


def _held(suffixes: Counter[str]) -> str:
    """What is there instead, to end a message."""
    if not suffixes:
        return ""
    there = some([f"{count} of {suffix}" for suffix, count in suffixes.most_common()])
    kinds = {".tar": "webdataset", ".parquet": "parquet"}
    other = next((f"; tars and Parquet are read by --data.source {kinds[s]}" for s in kinds if s in suffixes), "")
    return f"; there are {there}{other}"


def _check_splits(location: str, root: str, classes: list[str], found: Sequence[Found]) -> None:
    """Check that no folder holds several splits, neither the first nor one of its classes."""
    paths = set(classes)
    for name, one in zip(classes, found, strict=bool(found)):
        paths.update(f"{name}/{directory}" for directory in {image[0] for image in one.images})
    for path, splits in split_folders(paths).items():
        held = ", ".join(sorted(chain.from_iterable(splits.values())))
        folder = f"{shown(location, root)}/{path}".rstrip("/")
        places = {split: f"{folder}/{one[0]}" for split, one in splits.items()}
        if path and len(classes) > 1:
            name = path.partition("/")[0]
            raise UserError(
                f"{folder}: holds the splits {held}, and {JUDGED}. If {name} is a class, make a folder of classes for "
                f"each split, such as {shown(location, root)}/train/{name}; if not: {typed(places)}"
            )
        raise UserError(f"{folder}: holds the splits {held}, not classes. {typed(places)}")


def _check_empty(location: str, classes: list[str], found: Sequence[Found]) -> None:
    empty = [name for name, one in zip(classes, found, strict=True) if not one.images]
    if empty:
        there: Counter[str] = Counter()
        for one in found:
            if not one.images:
                there += one.suffixes
        first, *others = image_suffixes()
        looked = f"looked for *{first} and {len(others)} other suffixes"
        remedy = "convert, fill or remove" if there else "fill or remove"
        raise UserError(f"{location}: no images in {some(empty, 10)}; {looked}{_held(there)}; {remedy} them")


def _walk(top: str) -> Found:
    """The images below a local directory, links followed, directory by directory in sorted order."""
    found = Found()
    try:
        # With the real folders above: a link to one of them would be read for ever.
        pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", (_identity(top),))]
        while pending:
            below, above = pending.pop()
            with os.scandir(f"{top}/{below}") as entries:
                for entry in sorted(entries, key=lambda one: one.name):
                    where = f"{top}/{below}/{entry.name}".replace("//", "/")
                    if is_hidden(entry.name):
                        found.passed(entry.name, where)
                    elif _is_folder(entry):
                        if entry.is_symlink() and (_leads_above(where) or _identity(where) in above):
                            found.findings.add("warning", "links to a folder above", ABOVE, where)
                        else:
                            pending.append((f"{below}/{entry.name}".lstrip("/"), (*above, _identity(where))))
                    elif not is_image(entry.name):
                        if entry.is_symlink() and _is_dead(where):
                            found.findings.add("warning", "links that lead nowhere", MEND, where)
                        else:
                            found.passed(entry.name, where)
                    elif (size := _size(entry)) is None:
                        found.findings.add("warning", "names of images that are no files", "not read", where)
                    else:
                        if size < 0:
                            found.findings.add("warning", "links that lead nowhere", MEND, where)
                        found.images.append((below, entry.name, max(size, 0)))
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; mend or remove it") from error
    found.images.sort()
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _is_dead(path: str) -> bool:
    return Path(path).is_symlink() and not Path(path).exists()


def _identity(path: str) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_dev, status.st_ino


def _is_link_above(path: str) -> bool:
    return Path(path).is_symlink() and _leads_above(path)


def _leads_above(link: str) -> bool:
    return Path(link).parent.resolve().is_relative_to(Path(link).resolve())


def _size(entry: os.DirEntry[str]) -> int | None:
    """Bytes of a file, -1 of a link that leads nowhere, None of a pipe or device, which would be waited for."""
    try:
        status = entry.stat()
    except OSError:
        if entry.is_symlink():
            return -1
        raise
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _find(fs: fsspec.AbstractFileSystem, root: str, classes: Iterable[str]) -> list[Found]:
    """The same on a remote file system, in one request where it can."""
    found = {name: Found() for name in classes}
    for path, info in fs.find(root, detail=True).items():
        top, *below = path.removeprefix(root).lstrip("/").split("/")
        if top not in found or not below or not below[-1]:  # the last: a bucket's mark of a folder
            continue
        hidden = next((i for i, part in enumerate(below) if is_hidden(part)), None)
        if hidden is not None:
            found[top].passed(below[hidden], "/".join([root, top, *below[: hidden + 1]]))
        elif is_image(below[-1]):
            found[top].images.append(("/".join(below[:-1]), below[-1], info["size"]))
        else:
            found[top].passed(below[-1], path)
    for one in found.values():
        one.images.sort()
    return list(found.values())
