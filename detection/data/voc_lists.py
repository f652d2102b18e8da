"""The lists of Pascal VOC, and the files that they mean."""

import re
import shlex
from collections.abc import Iterable
from pathlib import PurePath, PurePosixPath

from backbone.data.findings import Findings
from backbone.data.formats import image_suffixes, is_image
from backbone.errors import UserError
from backbone.storage import filesystem
from detection.data.annotated import read, shown
from detection.data.files import Files, below, present
from detection.data.voc_xml import SAVE, NotText, text_of

LISTS, ANNOTATIONS, IMAGES = "ImageSets/Main", "Annotations", "JPEGImages"
MAP_LISTS, MAPS = "ImageSets/Segmentation", "SegmentationClass"
SECOND = re.compile(r"(\S+)\s+(-?\d+|\S*[./\\]\S*)")  # a line of two columns: with a label, or the annotation's file
HOLDS = f"a folder of Pascal VOC holds {LISTS}, {ANNOTATIONS} and {IMAGES}: move or link yours to these names"
ENTRIES = "entries of the list that are written otherwise than their annotations", "read so; write names without suffix"


def list_images(location: str, lists: str = LISTS) -> tuple[tuple[str, ...], list[int], list[str]]:
    """The folders of a location, and for every listed image the number of its folder and its entry.

    `lists`: where below a folder its lists lie.

    Raises:
        UserError: not `folder:split`, no such folder or list, an empty one, or one of the lists of a single class.
    """
    folders, parts, entries = [], [], []
    for part in location.split(","):
        folder, _, split = part.strip().rpartition(":")
        if not folder or not split or "/" in split:
            whole = part.strip().rstrip("/:")
            split = to_train_on(whole, lists) if whole and "://" not in whole else ""
            like = f"{whole}:{split}" if split else "VOC2007:trainval"
            raise UserError(f"{part}: Pascal VOC is given as folder:split, such as {like}")
        listed = _list(folder, split, lists)
        if folder not in folders:
            folders.append(folder)
        parts += [folders.index(folder)] * len(listed)
        entries += listed
    return tuple(folders), parts, entries


def to_train_on(folder: str, lists: str = LISTS) -> str:
    """The list of a folder that one trains on, by its name; empty where there are no lists."""
    fs, root = filesystem(folder)
    found = fs.ls(f"{root}/{lists}", detail=False) if fs.isdir(f"{root}/{lists}") else []
    names = sorted(PurePath(path).stem for path in found)
    return next((name for name in ("trainval", "train", *names) if name in names), "")


def _list(folder: str, split: str, lists: str) -> list[str]:
    name = f"{lists}/{split}.txt"
    where = shown(folder, name)
    try:
        text = text_of(read(folder, name))[0].replace("\ufeff", "")  # one more begins each list that was joined on
    except OSError as error:
        raise UserError(f"{where}: {error.strerror or error}; {_lists(folder, lists, split)}") from error
    except NotText as error:
        raise UserError(f"{where}: not a list of names: {error}") from error
    if "\0" in text:
        raise UserError(f"{where}: not a list of names: UTF-16 without its mark, or no text; {SAVE}")
    entries = [line.strip() for line in text.splitlines() if line.strip()]
    if not entries:
        raise UserError(f"{where}: lists no images")
    if all(line.split()[-1] in ("1", "-1", "0") and len(line.split()) == 2 for line in entries):
        fs, root = filesystem(folder)
        if any(fs.exists(f"{root}/{ANNOTATIONS}/{entry}.xml") for entry in entries[:5]):
            return entries  # names such as "photo 1"
        whole = split.rpartition("_")[2]
        if whole != split and fs.exists(f"{root}/{lists}/{whole}.txt"):
            remedy = f"give the list of all images, such as {whole}"
        else:
            columns, names = f"{lists}/{split}.txt", f"{lists}/all_{split}.txt"
            awk = f"awk '{{print $1}}' {columns} > {names}"
            remedy = f"make a list of names alone: (cd {shlex.quote(folder)} && {awk})"
        raise UserError(f"{where}: says for one class which images show it (1, -1, 0); {remedy}")
    return entries


def _lists(folder: str, lists: str, split: str) -> str:
    fs, root = filesystem(folder)
    if not fs.isdir(f"{root}/{lists}"):
        needs = f"a folder of Pascal VOC holds {lists}, {ANNOTATIONS if lists == LISTS else MAPS} and {IMAGES}"
        if lists != LISTS or "://" in folder:
            return needs
        for path in sorted(fs.ls(root, detail=False)) if fs.isdir(root) else ():
            if fs.isdir(f"{path}/{lists}"):
                return f"{needs}; one such lies below: {folder.rstrip('/')}/{PurePath(path).name}:{split}"
        if not fs.isdir(f"{root}/{ANNOTATIONS}"):
            return f"{needs}; a folder of Roboflow's is read in its COCO export, --data.source coco"
        return (
            f"{needs}; lists of four in five to train on, and of the others, are made by: (cd {shlex.quote(folder)} && "
            f"mkdir -p {lists} && ls {ANNOTATIONS} | sed 's/\\.xml$//' | "
            f'awk \'{{ print > ("{lists}/" (NR % 5 ? "train" : "val") ".txt") }}\')'
        )
    names = sorted(PurePath(path).stem for path in fs.ls(f"{root}/{lists}", detail=False))
    return f"there are {', '.join([name for name in names if '_' not in name] or names[:10])}"


class Folder:
    """The annotations and images of one folder, by the names that lists and annotations have for them."""

    def __init__(self, folder: str, entries: list[str], is_one_of_several: bool = False) -> None:
        """Look for what is listed, first where it should be, and further only if something is not there.

        Args:
            folder: as in a location.
            entries: of its lists.
            is_one_of_several: findings say which.

        Raises:
            UserError: there are no images.
        """
        self.folder, self._named = folder, is_one_of_several
        self.images = image_files(folder)
        fs, root = filesystem(folder)
        places = {str(PurePosixPath(entry).parent) for entry in entries}
        there = present(fs, f"{root}/{ANNOTATIONS}", {"" if place == "." else place for place in places})
        self._annotations = _by_name(there)
        self._lost = [entry for entry in entries if entry not in self._annotations]
        if self._lost:
            found = _by_name(below(fs, f"{root}/{ANNOTATIONS}"))
            self._annotations, self._fitting = found | self._annotations, Files(found)
        self._below: Files | None = None

    def shown(self, name: str) -> str:
        """An annotation as findings name it."""
        file = self.annotation(name)
        return shown(self.folder, f"{ANNOTATIONS}/{file}") if self._named else file

    def annotation(self, name: str) -> str:
        """The file of an annotation below `ANNOTATIONS`: .XML, too."""
        return self._annotations.get(name, f"{name}.xml")

    def id_of(self, entry: str, findings: Findings) -> str:
        """The name of the annotation that an entry means, without suffix; the entry itself where there is none."""
        if entry in self._annotations:
            return entry
        two = SECOND.fullmatch(entry)
        for name in (entry, *([two[1]] if two else [])):
            found = self._fitting.find(name.removesuffix(".xml"))
            if len(found) == 1:
                findings.add("warning", *ENTRIES, f"{entry!r} is {found[0]}")
                return found[0]
        return entry

    def fitting(self, name: str, file: str) -> list[str]:
        """The files that the image of annotation `name` may be, which calls it `file`: one, if all is well."""
        own = self.images.get(name, [])
        if own:
            return [file] if file in own else own[:1]
        if self._below is None:
            fs, root = filesystem(self.folder)
            self._below = Files(path for path in below(fs, f"{root}/{IMAGES}") if is_image(path))
        return self._below.find(name) or (self._below.find(file) if file else [])


def _by_name(paths: Iterable[str]) -> dict[str, str]:
    """Annotations by their paths without suffix; .xml goes before .XML."""
    found = (PurePosixPath(path) for path in sorted(paths))
    return {str(path.with_suffix("")): str(path) for path in found if path.suffix.lower() == ".xml"}


def image_files(folder: str) -> dict[str, list[str]]:
    """The images of a folder, id -> file names: of several the .jpg first, VOC's own."""
    fs, root = filesystem(folder)
    try:
        found = [PurePath(path) for path in fs.ls(f"{root}/{IMAGES}", detail=False)]
    except OSError as error:
        raise UserError(f"{shown(folder, IMAGES)}: {error.strerror or error}; {HOLDS}") from error
    suffixes = {suffix: place for place, suffix in enumerate(image_suffixes())}  # .jpg is first
    images = [path for path in found if path.suffix.lower() in suffixes]
    found_by: dict[str, list[str]] = {}
    for path in sorted(images, key=lambda path: suffixes[path.suffix.lower()]):
        found_by.setdefault(path.stem, []).append(path.name)
    return found_by
