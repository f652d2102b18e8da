"""Labels as people write them to labels from 0 up, bounded before anything is made for each class."""

import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from backbone.data.findings import Findings
from backbone.errors import UserError

MOST = 1_000_000  # classes; the last layer of a ResNet-50 of more takes 8 GB
FEW = 1_000  # classes that labels without names may have, however few of them are used
GAPS = 10  # beyond that: times as many classes as are used
OUT_OF_RANGE = "labels go from 0 to below the number of classes, 1,000,000 at most"


def checked(label: int, where: str) -> int:
    """A label, if it can be one. `where` names the file and member.

    Raises:
        UserError: it is negative, or larger than the largest.
    """
    if label < 0:
        raise UserError(f"{where}: the label {label} is negative, as where there are none; {OUT_OF_RANGE}")
    if label >= MOST:
        kept = " (-1 kept as an unsigned number)" if label in (2**8 - 1, 2**16 - 1, 2**32 - 1, 2**64 - 1) else ""
        raise UserError(f"{where}: the label {str(label)[:30]}{kept} is out of range; {OUT_OF_RANGE}")
    return label


def numbered(labels: np.ndarray, where: Callable[[int], str], name_them: str) -> list[str]:
    """The names of classes that have none: their numbers.

    Args:
        labels: int64 [N], N > 0, each `checked`.
        where: names image i.
        name_them: how to give names, for the error.

    Raises:
        UserError: there would be many more classes than are used.
    """
    largest, used = int(labels.max()), len(np.unique(labels))
    if largest >= FEW and largest >= GAPS * used:
        raise UserError(
            f"{where(int(labels.argmax()))}: has label {largest}, but only {used} different labels are in use; number "
            f"classes from 0 without gaps, or {name_them}"
        )
    return [str(label) for label in range(largest + 1)]


def within(labels: np.ndarray, names: Sequence[str], where: Callable[[int], str], named_by: str) -> None:
    """Check that every label has a name.

    Raises:
        UserError: one has none. Names the image.
    """
    if labels.max() >= len(names):
        i, count = int(labels.argmax()), int((labels >= len(names)).sum())
        more = f" (and {count - 1} more are out of range)" if count > 1 else ""
        raise UserError(f"{named_by} has {len(names)} classes, but {where(i)} has label {labels[i]}{more}")


def check_names(names: Sequence[str], named_by: str) -> None:
    """Check that classes can be told apart by their names.

    Raises:
        UserError: there are none, too many, or two of one name.
    """
    if not 0 < len(names) <= MOST:
        raise UserError(f"{named_by}: names {len(names)} classes; there may be 1 to {MOST:,}")
    if len(set(names)) < len(names):
        first = {name: label for label, name in reversed(list(enumerate(names)))}
        label, name = next((label, name) for label, name in enumerate(names) if first[name] != label)
        raise UserError(f"{named_by}: calls labels {first[name]} and {label} {name!r}; name them apart, or join them")


def likeness(name: str) -> str:
    """The same for names that differ in case, spaces around them or Unicode form at most."""
    return unicodedata.normalize("NFC", name).casefold().strip()


def class_findings(labels: np.ndarray, classes: Sequence[str], prefix: str = "") -> Findings:
    """What is odd about classes: some without images, and names that look alike.

    `prefix` comes before each name, such as "train: ".
    """
    findings = Findings()
    counts = np.bincount(labels, minlength=len(classes))
    for i in np.flatnonzero(counts == 0):
        remedy = "the net has an output that it never sees; fill the class, or number labels without gaps"
        findings.add("warning", "classes without images", remedy, prefix + classes[i])
    alike: dict[str, str] = {}
    for name in classes:
        key = likeness(name)
        if key in alike:
            remedy = "they differ in case, spaces or Unicode form at most; join them, or rename one"
            findings.add("warning", "classes of like names", remedy, f"{prefix}{alike[key]!r} and {name!r}")
        alike[key] = name
    return findings
