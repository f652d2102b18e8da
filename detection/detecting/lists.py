"""The images to detect in: those of a folder, of a COCO list or of a list of Pascal VOC. No annotations are read."""

import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backbone.data.decode import decode
from backbone.data.findings import Findings
from backbone.data.formats import image_suffixes, is_image, is_other_image
from backbone.data.index import digest
from backbone.errors import BadImage, StorageError, UserError
from backbone.storage import absolute, filesystem
from detection.data.annotated import decode_as, read, shown
from detection.data.coco import read_json
from detection.data.coco_table import table_of_images
from detection.data.files import MISSING, RESTORE, SEVERAL, WHICH, below, locate
from detection.data.voc_lists import IMAGES, Folder, list_images

SPLIT = re.compile(r"[^,]+:[^,:/]+(,[^,]+:[^,:/]+)*")
KINDS = "a folder of images, a COCO list (.json) with --image_folder, or a list of Pascal VOC such as VOC2007:test"


@dataclass(frozen=True)
class ImageList:
    """N images by ascending id. Pickles as names, for other machines as well."""

    kind: str  # folder, coco or voc
    roots: tuple[str, ...]
    parts: tuple[int, ...]  # number of an image's root
    paths: tuple[str, ...]  # below it
    ids: tuple[int, ...]
    sizes: tuple[tuple[int, int] | None, ...]  # height and width that its list says; None: those of the file
    names: tuple[str, ...]  # as VOC's files name them, without white space
    split: str  # as VOC's files are called
    remarks: tuple[str, ...] = ()  # what to say before they are used

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over kind, ids, names and sizes; the same wherever the images lie."""
        return digest(self.kind, *zip(self.ids, self.parts, self.paths, self.sizes, strict=True))

    def name(self, i: int) -> str:
        """Path or URL of image i."""
        return shown(self.roots[self.parts[i]], self.paths[i])

    def image(self, i: int) -> np.ndarray:
        """Image i, uint8 [H, W, 3], RGB, upright; where its list says another size, see `annotated.decode_as`.

        Raises:
            BadImage: it is not there, cannot be decoded, or is of another size. Names it.
            UserError: remote storage does not give it, which is no property of the image.
        """
        root = self.roots[self.parts[i]]
        try:
            data = read(root, self.paths[i])
        except StorageError:
            raise
        except OSError as error:
            if "://" in root and not isinstance(error, FileNotFoundError | PermissionError):
                raise UserError(f"{self.name(i)}: {error.strerror or error}; run the same again") from error
            raise BadImage(f"{self.name(i)}: {error.strerror or error}") from error
        size = self.sizes[i]
        return decode(data, self.name(i)) if size is None else decode_as(data, self.name(i), *size)


def open_images(images: str, image_folder: str = "") -> ImageList:
    """The images that `Detecting.images` and `Detecting.image_folder` name.

    Raises:
        UserError: there are none, or it is none of the three.
    """
    fs, path = filesystem(images)
    if images.endswith(".json"):
        return _coco(images, image_folder)
    if fs.isdir(path):
        return _folder(images)
    if SPLIT.fullmatch(images):
        return _voc(images)
    raise UserError(f"{images}: no such folder; --images takes {KINDS}")


def check_readable(images: ImageList) -> None:
    """Check that there is something to detect in. Reads one image where all is well.

    Raises:
        UserError: no image can be read.
    """
    first = ""
    for i in range(len(images)):
        try:
            images.image(i)
        except BadImage as error:
            first = first or str(error)
        else:
            return
    raise UserError(f"--images: none of the {len(images)} images can be read: {first}")


def _folder(location: str) -> ImageList:
    fs, root = filesystem(location)
    if fs.isdir(f"{root}/ImageSets/Main"):
        raise UserError(
            f"{location}: is laid out as Pascal VOC, whose label pictures are no photographs; give one of its lists, "
            f"--images {location}:test, or its photographs, --images {location}/{IMAGES}"
        )
    try:
        found = below(fs, root.rstrip("/"), whole=True)
    except StorageError:
        raise
    except OSError as error:
        where = error.filename or location
        raise UserError(
            f"{where}: cannot be listed ({error.strerror or error}); make it readable, or move it"
        ) from error
    paths = sorted(path for path in found if is_image(path))
    others = Findings()
    for path in sorted(filter(is_other_image, found)):
        others.add("warning", "images of kinds that are not read", "convert them to JPEG", path)
    remarks = tuple(finding.as_line() for finding in others.sorted())
    if not paths:
        there = f"; there are {remarks[0]}" if remarks else ""
        endings = ", ".join(image_suffixes()[:8])
        raise UserError(
            f"{location}: no image in this folder or below it{there}. Their names must end in {endings} or the like; "
            f"--images takes {KINDS}"
        )
    count = len(paths)
    return ImageList(
        "folder",
        (absolute(location),),
        (0,) * count,
        tuple(paths),
        tuple(range(1, count + 1)),
        (None,) * count,
        stems(paths),
        "test",
        remarks,
    )


def _coco(location: str, folder: str) -> ImageList:
    fs, root = filesystem(folder)
    if not fs.isdir(root):
        raise UserError(f"{folder}: no such folder of images; name another by --image_folder")
    names, ids, sizes, refused = table_of_images(read_json(location, ("images",))["images"])
    if refused:
        raise UserError(f"{location}: {refused[0].as_line()}")
    findings = Findings()
    paths, _ = locate(folder, names, findings)
    order = np.argsort(ids).tolist()
    paths = [paths[i] for i in order]
    return ImageList(
        "coco",
        (absolute(folder),),
        (0,) * len(order),
        tuple(paths),
        tuple(ids[order].tolist()),
        tuple((height, width) for height, width in sizes[order].tolist()),
        stems(paths),
        "test",
        tuple(finding.as_line() for finding in findings.sorted()),
    )


def _voc(location: str) -> ImageList:
    roots, parts, entries = list_images(location)
    findings = Findings()
    folders = [
        Folder(root, [entry for part, entry in zip(parts, entries, strict=True) if part == k])
        for k, root in enumerate(roots)
    ]
    listed = dict.fromkeys(
        (part, folders[part].id_of(entry, findings)) for part, entry in zip(parts, entries, strict=True)
    )
    paths = []
    for part, name in listed:
        fitting = folders[part].fitting(name, "")
        if len(fitting) > 1:
            findings.add("error", SEVERAL, WHICH, f"{name} fits {', '.join(fitting[:3])}")
        elif not fitting:
            findings.add("error", MISSING, RESTORE, f"{name}.jpg")
        paths.append(f"{IMAGES}/{fitting[0] if len(fitting) == 1 else f'{name}.jpg'}")
    splits = {part.strip().rpartition(":")[2] for part in location.split(",")}
    ids = tuple(range(1, len(paths) + 1))
    return ImageList(
        "voc",
        tuple(map(absolute, roots)),
        tuple(part for part, _ in listed),
        tuple(paths),
        ids,
        (None,) * len(ids),
        tuple(_unspaced(name) for _, name in listed),
        splits.pop() if len(splits) == 1 else "test",
        tuple(finding.as_line() for finding in findings.sorted()),
    )


def stems(paths: Sequence[str]) -> tuple[str, ...]:
    """Paths as VOC's files name images: without suffix, but where two would be the same; blanks as in URLs."""
    cut = [posixpath.splitext(path)[0] for path in paths]
    times = Counter(cut)
    return tuple(_unspaced(path if times[stem] > 1 else stem) for path, stem in zip(paths, cut, strict=True))


def _unspaced(name: str) -> str:
    return re.sub(r"\s", lambda blank: f"%{ord(blank[0]):02X}", name)
