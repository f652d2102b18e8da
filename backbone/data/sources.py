"""Where images come from. A source is labels, and images by number; order and augmentation are others' business."""

import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from backbone.data.findings import Finding, Findings
from backbone.data.folder import INSIDE, open_imagefolder
from backbone.data.index import IndexedSource
from backbone.data.labels import class_findings, likeness
from backbone.data.tar import open_webdataset
from backbone.errors import BadImage, UserError


class Source(Protocol):
    """N labelled images, read at random. Pickles to a few hundred bytes, for processes of the same machine.

    Reading is safe in threads and after a fork.
    """

    @property
    def labels(self) -> np.ndarray:
        """int64 [N], from 0 up."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of labels 0, 1, ..."""
        ...

    @property
    def findings(self) -> list[Finding]:
        """What the reader left out, and what it took otherwise than it was written, counted and with examples."""
        ...

    @property
    def places(self) -> frozenset[str]:
        """The files that it reads, or the directory whose files it reads; none after unpickling."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 over kind, names, labels, sizes in bytes and classes; the same wherever the data set lies."""
        ...

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """What a person needs to find image i."""
        ...

    def image(self, i: int) -> np.ndarray:
        """Image i, uint8 [H, W, 3], RGB.

        Raises:
            BadImage: it cannot be read or decoded. Names it.
        """
        ...


def _open_parquet(location: str, cache: str | None = None) -> IndexedSource:
    from backbone.data.parquet import open_parquet  # pyarrow's compute and parquet, which nothing else needs

    return open_parquet(location, cache)


KINDS = {"imagefolder": open_imagefolder, "webdataset": open_webdataset, "parquet": _open_parquet}


def open_source(kind: str, location: str, cache: str | None = None, keep_gb: float = 0.0) -> IndexedSource:
    """Open one split of a data set.

    Args:
        kind: imagefolder, webdataset or parquet.
        location: local path or URL. A directory; for webdataset and parquet also a file, a glob or a brace pattern.
        cache: local directory for indices and copies; `$XDG_CACHE_HOME/raybone` by default.
        keep_gb: of images that are read by URL, how much stays in the cache, 1e9 bytes.

    Raises:
        UserError: unknown kind, or what is there is not such a data set; see the functions in `KINDS`.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of data {kind}; there are {', '.join(KINDS)}")
    source = KINDS[kind](location, cache)
    source.keep(1e9 * keep_gb)
    return source


def remarks(source: Source) -> list[str]:
    """What to say of a split before it is used, a line each; the doctor says the same with more words."""
    findings = Findings().join(source.findings).join(class_findings(source.labels, source.classes))
    return [finding.as_line() for finding in findings.sorted()]


def in_both(train: Source, val: Source) -> list[str]:
    """What both splits read: what was trained on does not test anything."""
    real = {_real(place): place for place in val.places}
    return sorted(real[one] for one in map(_real, train.places) if one in real)


def _real(place: str) -> str:
    """Where a link leads to."""
    return place if "://" in place else os.path.realpath(place)


def check_classes(train: Source) -> None:
    """Check that there is something to learn: two classes at least have images.

    Raises:
        UserError: all images are of one class.
    """
    only = int(train.labels[0])
    if (train.labels != only).any():
        return
    deeper = any(finding.what == INSIDE[0] for finding in train.findings)
    inside = f", or the folder {train.classes[only]} itself, if those in it are the classes" if deeper else ""
    raise UserError(
        f"all {len(train)} images ({train.name(0)}, ...) are of one class, {train.classes[only]}: a net that always "
        f"answers so is never wrong, and nothing is learned; give images of two classes or more{inside}"
    )


class Images(Protocol):
    """N images by number: what labelled and annotated sources have in common."""

    def __len__(self) -> int: ...

    def image(self, i: int) -> np.ndarray:
        """See `Source.image`."""
        ...


class Labelled(Images, Protocol):
    """They have labels, which may be of no class that has a name."""

    @property
    def labels(self) -> np.ndarray:
        """See `Source.labels`."""
        ...


def check_readable(val: Images) -> None:
    """Check that there is something to evaluate on. Reads one image where all is well.

    Raises:
        UserError: no image of the split can be read.
    """
    found: list[BadImage] = []
    for i in range(len(val)):
        try:
            val.image(i)
        except BadImage as error:
            found.append(error)
        else:
            return
    raise none_readable([str(error) for error in found])


def none_readable(bad: Sequence[str]) -> UserError:
    """What to raise where all images of an evaluation are unreadable; `bad` names them with the reasons."""
    return UserError(f"data.val: none of its {len(bad)} images can be read, so nothing can be evaluated: {bad[0]}")


def check_splits(train: Source, val: Source) -> None:
    """Check that labels mean the same in both splits.

    Raises:
        UserError: a class is only in one of them, or their order differs.
    """
    if train.classes == val.classes:
        return
    only = {"train": set(train.classes) - set(val.classes), "val": set(val.classes) - set(train.classes)}
    missing = "; ".join(f"only in {split}: {_some(sorted(names))}" for split, names in only.items() if names)
    if missing:
        alike = "".join(f"; {one!a} and {two!a} look alike" for one, two in _alike(only["train"], only["val"]))
        raise UserError(
            f"train and val have different classes ({missing}{alike}); mend the folders, or classes.txt of shards"
        )
    first = next(i for i, pair in enumerate(zip(train.classes, val.classes, strict=True)) if pair[0] != pair[1])
    raise UserError(f"label {first} is {train.classes[first]} in train, but {val.classes[first]} in val")


def _alike(names: set[str], others: set[str]) -> list[tuple[str, str]]:
    """Pairs that differ in case, blanks or Unicode form alone, some of which nobody could see."""
    keys = {likeness(name): name for name in others}
    return sorted((name, keys[likeness(name)]) for name in names if likeness(name) in keys)[:3]


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
