"""Annotations as flat arrays in one memory-mapped file, and the images that belong to them.

The readers of COCO and Pascal VOC make the same arrays, so that everything after them is written once. All of COCO's
training annotations are 260 MB so, shared by every process of a machine; as Python objects they are 3 GB in each.
"""

import functools
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from PIL import Image
from pycocotools import mask as rle

from backbone.data.ahead import Ahead
from backbone.data.decode import decode
from backbone.data.findings import Finding
from backbone.data.index import Arrays, cache_directory, digest, is_fresh, map_arrays, pack, store, unpack, unpack_all
from backbone.errors import BadImage, StorageError, UserError
from backbone.storage import filesystem, join
from detection.data.contract import Categories, Objects
from detection.data.label_map import IGNORED, painted
from detection.data.patches import Patch
from detection.data.segments import encode, has_mask, patches, polygons_of

FORMAT = 4  # of the arrays; a change makes old files stale
THINNEST = 1.0  # pixels: a box thinner than this is no object
BLACKLIST = "blacklist"  # array of ImageNet DET's: rows of images and labels that are not judged in them, int64 [P, 2]
LEFT_OUT = ("", "crowds", "difficult", "degenerate boxes")  # why an object is not trained on; 0: it is
EXIF_ORIENTATION = 0x0112
# What undoes `ImageOps.exif_transpose` where it swaps height and width.
AS_STORED = {
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, 1),
    7: lambda image: np.rot90(image.transpose(1, 0, 2), 2),
    8: lambda image: np.rot90(image, -1),
}


def doctor(kind: str, location: str, annotations: str = "") -> str:
    """The command that lists all faults of a data set."""
    return f"python jobs/doctor.py --source {kind} --images {location}" + (
        f" --annotations {annotations}" if annotations else ""
    )


def tabulate(
    kind: str,
    images: tuple[list[str], np.ndarray, np.ndarray, np.ndarray],
    categories: Categories,
    objects: dict[str, np.ndarray],
    segments: Arrays,
) -> Arrays:
    """The arrays of N images with A objects.

    Args:
        kind: of data set; part of the fingerprint.
        images: names (paths under a root), numbers of their roots int64 [N], ids int64 [N], sizes int32 [N, 2] (height,
            width).
        categories: of the labels.
        objects: rows sorted by `image`. image int64 [A] (0..N-1), boxes float64 [A, 4] (x y width height, as in the
            data set), labels int64 [A] (1..K), areas float64 [A], crowd and difficult bool [A].
        segments: by `segments.flatten`.
    """
    names, parts, ids, sizes = images
    arrays = pack("names", names) | pack("classes", categories.names) | segments
    arrays |= {"parts": parts, "image_ids": ids, "sizes": sizes, "category_ids": np.array(categories.ids, np.int64)}
    arrays |= {key: objects[key] for key in ("boxes", "labels", "areas", "crowd", "difficult")}
    arrays["starts"] = np.searchsorted(objects["image"], np.arange(len(ids) + 1)).astype(np.int64)
    sha = hashlib.sha256(kind.encode())
    for key in sorted(arrays):
        sha.update(f"\n{key} {arrays[key].nbytes}\n".encode())
        sha.update(np.ascontiguousarray(arrays[key]).data)
    arrays["fingerprint"] = np.frombuffer(sha.hexdigest().encode(), np.uint8)
    degenerate = is_degenerate(objects["boxes"], sizes[objects["image"]])
    reasons = [objects["crowd"], objects["difficult"], degenerate]
    arrays["left_out"] = np.select(reasons, np.arange(1, len(LEFT_OUT), dtype=np.uint8), np.uint8(0))
    arrays["has_masks"] = np.array([len(objects["areas"]) > 0 and has_mask(arrays).all()])
    return arrays


def within(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Boxes x y width height, float64 [A, 4], as x1 y1 x2 y2 cut off at the borders of images of `sizes` [A, 2]."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    return np.clip(corners, 0, sizes[:, [1, 0, 1, 0]].astype(np.float64))


def is_degenerate(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which boxes (as in `within`) are not finite, or less than a pixel wide or high in the image; bool [A]."""
    corners = within(boxes, sizes)
    wide = (corners[:, 2:] - corners[:, :2] >= THINNEST).all(1)  # comparisons with NaN are False
    return ~(wide & np.isfinite(boxes).all(1))


def left_out_of(arrays: Arrays) -> dict[str, int]:
    """How many objects are not trained on, by reason."""
    counts = np.bincount(arrays["left_out"], minlength=len(LEFT_OUT)).tolist()
    return {reason: count for reason, count in zip(LEFT_OUT[1:], counts[1:], strict=True) if count}


def nothing_to_train_on(trained: int, left_out: dict[str, int]) -> str:
    """Says so where no object is trained on, and why; "" where one is."""
    reasons = ", ".join(f"{count} {what}" for what, count in left_out.items())
    return "" if trained else "no object to train on" + (f"; left out: {reasons}" if reasons else "")


def index_path(kind: str, key: str, cache: str | None) -> tuple[Path, str]:
    """Where the arrays made from annotations of this SHA-256 are kept, and the state they are to be in."""
    state = digest(FORMAT, key)
    return cache_directory(cache) / f"{kind}-{state[:16]}.index", state


def save(kind: str, key: str, arrays: Arrays, cache: str | None) -> Path:
    """Write arrays to the cache, unless they are there.

    Raises:
        UserError: the cache cannot be written.
    """
    path, state = index_path(kind, key, cache)
    return path if is_fresh(path, state) else store([path], state, arrays)


@functools.lru_cache(maxsize=8)
def _filesystem(url: str, process: int) -> tuple[fsspec.AbstractFileSystem, str]:
    return filesystem(url)  # clients of object stores do not survive a fork, hence one a process


def read(root: str, name: str) -> bytes:
    """The file `name` under the folder or URL `root`; OSError where it cannot be read. Safe in threads."""
    fs, base = _filesystem(root, os.getpid())
    path = f"{base.rstrip('/')}/{name}"
    return Path(path).read_bytes() if isinstance(fs, LocalFileSystem) else fs.cat_file(path)


def shown(root: str, name: str) -> str:
    """The same file as people write it."""
    return join(root if "://" in root else Path(root).expanduser().absolute(), name)


class AnnotatedSource:
    """A `DetectionSource` of the arrays of one file. Pickled as paths."""

    def __init__(
        self,
        index: Path,
        roots: tuple[str, ...],
        keep_empty: bool = True,
        fingerprint: str = "",
        findings: Sequence[Finding] = (),
    ) -> None:
        """Open.

        Args:
            index: the folder of arrays.
            roots: folders or URLs under which images lie; the index says which image is under which.
            keep_empty: False: without the images that have nothing to be trained on.
            fingerprint: if given, what the index must hold.
            findings: what the reader has to say; not pickled.

        Raises:
            UserError: the index holds another fingerprint.
        """
        self.findings = list(findings)
        self._arrays = map_arrays(index)
        self.fingerprint = self._arrays["fingerprint"].tobytes().decode()
        if fingerprint not in ("", self.fingerprint):
            raise UserError(
                f"{', '.join(roots)}: annotations changed while in use ({index} was rewritten); start again"
            )
        self._arguments = (index, roots, keep_empty, self.fingerprint)
        self._roots, self._ahead = roots, Ahead()
        if not keep_empty:
            self.fingerprint = digest(self.fingerprint, "without empty images")
        self.categories = Categories(
            unpack_all(self._arrays, "classes"), tuple(map(int, self._arrays["category_ids"].tolist()))
        )
        self.has_masks = bool(self._arrays["has_masks"][0])
        self.dropped = left_out_of(self._arrays)
        starts = self._arrays["starts"]
        trained = np.concatenate([[0], np.cumsum(self._arrays["left_out"] == 0)])
        counts = trained[starts[1:]] - trained[starts[:-1]]
        self._rows = np.arange(len(counts)) if keep_empty else np.flatnonzero(counts)
        self._counts = counts[self._rows].astype(np.int64)
        if len(self._rows) < len(counts):
            self.dropped["images without objects"] = len(counts) - len(self._rows)
        self.image_ids: np.ndarray = self._arrays["image_ids"][self._rows]
        self.sizes: np.ndarray = self._arrays["sizes"][self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __reduce__(self) -> tuple:
        return AnnotatedSource, self._arguments

    def _row(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        return int(self._rows[i])

    def _where(self, i: int) -> tuple[str, str]:
        row = self._row(i)
        return self._roots[self._arrays["parts"][row]], unpack(self._arrays, "names", row)

    def name(self, i: int) -> str:
        """Path or URL of the image."""
        return shown(*self._where(i))

    def image(self, i: int) -> np.ndarray:
        """Image i, uint8 [H, W, 3], RGB, of the recorded size.

        Raises:
            BadImage: it cannot be read or decoded, or is of another size. Names it.
        """
        try:
            data = self._ahead.take(i, self._read)
        except StorageError:
            raise  # no property of the image
        except OSError as error:
            raise BadImage(f"{self.name(i)}: {error.strerror or error}") from error
        return decode_as(data, self.name(i), *map(int, self.sizes[i]))

    def ahead(self, ids: Iterable[int]) -> None:
        """Begin to read these images, which are going to be asked for in this order, where they lie at URLs."""
        if any("://" in root for root in self._roots):
            self._ahead.begin(ids, self._read)

    def _read(self, i: int) -> bytes:
        return read(*self._where(i))

    def objects(self, i: int, masks: bool = False) -> Objects:
        """What image i is trained on, boxes cut off at its borders.

        Raises:
            UserError: masks are asked for, and an object has none (see `has_masks`).
        """
        rows = self._trained(i)
        height, width = map(int, self.sizes[i])
        boxes = within(self._arrays["boxes"][rows], np.broadcast_to(self.sizes[i], (len(rows), 2)))
        return Objects(
            boxes,
            self._arrays["labels"][rows].astype(np.int64),
            [self._mask(int(j), i, height, width) for j in rows] if masks else [],
        )

    def patched(self, i: int) -> tuple[Objects, list[Patch]]:
        """`objects(i)` and its masks as patches; UserError as there."""
        height, width = map(int, self.sizes[i])
        encoded = [self._encoded(int(j), i, height, width) for j in self._trained(i)]
        return self.objects(i), patches(encoded, height)

    def _trained(self, i: int) -> np.ndarray:
        """Rows of the objects that image i is trained on."""
        row = self._row(i)
        start, stop = self._arrays["starts"][row : row + 2].tolist()
        return start + np.flatnonzero(self._arrays["left_out"][start:stop] == 0)

    def _encoded(self, j: int, i: int, height: int, width: int) -> dict[str, Any]:
        encoded = encode(self._arrays, j, height, width)
        if encoded is None:
            raise UserError(f"{self.name(i)}: an object has no segmentation; train without masks, or add it")
        return encoded

    def _mask(self, j: int, i: int, height: int, width: int) -> np.ndarray:
        # pycocotools' are column by column
        return np.ascontiguousarray(rle.decode(self._encoded(j, i, height, width)))

    def label_map(self, i: int) -> np.ndarray:
        """The class of every pixel of image i: objects painted by their masks, crowds and difficult ones as 255.

        Raises:
            UserError: an object has no segmentation (see `has_masks`).
        """
        rows = range(*self._arrays["starts"][self._row(i) :][:2].tolist())
        height, width = map(int, self.sizes[i])
        ignored = [bool(self._arrays["crowd"][j] or self._arrays["difficult"][j]) for j in rows]
        labels = [IGNORED if no else int(self._arrays["labels"][j]) for j, no in zip(rows, ignored, strict=True)]
        return painted(height, width, [self._mask(j, i, height, width) for j in rows], labels)

    def num_objects(self) -> np.ndarray:
        """int64 [N]: how many `objects(i)` gives."""
        return self._counts.copy()

    def ground_truth(self, ids: np.ndarray | None = None) -> dict[str, Any]:
        """The annotations of images `ids` (indices; all by default) as a COCO instances dict; a copy.

        What Pascal VOC calls difficult has `iscrowd` 1, since COCO's tools know no other way to ignore an object, and
        `ignore` and `difficult` 1 besides, by which VOC's own rule can be applied. Of ImageNet DET `info` has `layout`
        ilsvrc-det, and images `blacklisted`, ids of categories that are not judged in them.
        """
        arrays = self._arrays
        images, annotations = [], []
        for i in range(len(self)) if ids is None else ids.tolist():
            row = self._row(i)
            height, width = self.sizes[i].tolist()
            image = int(self.image_ids[i])
            name = unpack(arrays, "names", row)
            images.append({"id": image, "file_name": name, "height": height, "width": width})
            for j in range(*arrays["starts"][row : row + 2].tolist()):
                difficult = bool(arrays["difficult"][j])
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": self.categories.ids[int(arrays["labels"][j]) - 1],
                    "bbox": arrays["boxes"][j].tolist(),
                    "area": float(arrays["areas"][j]),
                    "iscrowd": int(arrays["crowd"][j] or difficult),
                }
                segmentation = self._segmentation(j, height, width)
                if segmentation:
                    annotation["segmentation"] = segmentation
                if difficult:
                    annotation |= {"ignore": 1, "difficult": 1}
                annotations.append(annotation)
        categories = [
            {"id": id_, "name": name} for id_, name in zip(self.categories.ids, self.categories.names, strict=True)
        ]
        truth = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        if BLACKLIST in arrays:
            truth["info"] = {"layout": "ilsvrc-det"}  # as `detection.det_ap` asks
            entries = {int(image["id"]): image for image in images}
            for row, label in arrays[BLACKLIST].tolist():
                if entry := entries.get(int(arrays["image_ids"][row])):
                    entry.setdefault("blacklisted", []).append(self.categories.ids[label - 1])
        return truth

    def _segmentation(self, j: int, height: int, width: int) -> list[list[float]] | dict[str, Any] | None:
        polygons = polygons_of(self._arrays, j)
        encoded = None if polygons else encode(self._arrays, j, height, width)
        return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")} if encoded else polygons


def orientation(data: bytes) -> int:
    """How EXIF says an image is turned, 1..8; 1 where it does not say, or nobody can read it."""
    try:
        with Image.open(io.BytesIO(data)) as header:
            turn = header.getexif().get(EXIF_ORIENTATION, 1)
    except (
        Exception
    ):  # Pillow lets through whatever a broken block makes it raise; the pixels may be sound all the same
        return 1
    return turn if turn in range(1, 9) else 1


def decode_as(data: bytes, name: str, height: int, width: int) -> np.ndarray:
    """Decode an image that annotations say is of this size; uint8 [height, width, 3], RGB.

    Annotations may mean the image as a viewer shows it, turned upright by its EXIF orientation (labelling tools of
    today, detectron2), or its pixels as stored (COCO's own tools). Upright is taken, and the pixels as stored where
    only they have the recorded size. Turned by 180 degrees or mirrored, both have; the doctor names such images.

    Raises:
        BadImage: it cannot be decoded, or neither has the recorded size.
    """
    image = decode(data, name)
    if image.shape[:2] == (width, height) != (height, width):
        turn = AS_STORED.get(orientation(data))
        image = np.ascontiguousarray(turn(image)) if turn else image
    if image.shape[:2] != (height, width):
        found = f"{image.shape[1]}x{image.shape[0]}"
        if image.shape[:2] == (width, height):
            raise BadImage(
                f"{name}: is {found} pixels, {width}x{height} in its annotations: width and height are the other way "
                "round there; exchange them, if boxes fit the image so"
            )
        raise BadImage(
            f"{name}: is {found} pixels, {width}x{height} in its annotations: the wrong file, or resized after it was"
            " annotated; put the original back, or mend width, height and boxes"
        )
    return image
