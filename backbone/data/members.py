"""Which members of a tar are a sample: WebDataset's rule, and what is done where people's names break it.

By the rule a key ends at the first dot of the file name and all after it is the suffix, so that `img.v1.jpg` is no
image. Where one reading alone makes sense, that is taken and counted: names cut at their last dot, where an image and a
label agree on it; or the only image of a key that has a label.
"""

import functools
import posixpath
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from backbone.data.findings import Findings
from backbone.data.formats import image_suffixes, is_hidden, is_other_image, suffix_of
from backbone.data.labels import checked
from backbone.errors import UserError

DIGITS = re.compile(r"\s*[+-]?[0-9]{1,30}\s*")
RAW = "rgb.npy"  # as in backbone.data.raw
WHOLE = "by WebDataset's rule a key ends at the first dot; each was paired with the label that it can only belong to"
FURTHER = "the image or label of the plain name is read"


class Name(NamedTuple):
    """A member's name, taken apart; suffixes in lower case."""

    key: str  # up to the first dot of the file name; "" for names that begin with one
    suffix: str  # all after that
    long_key: str  # up to the last dot
    last: str  # all after that

    @property
    def dotted(self) -> bool:
        return self.key != self.long_key

    @property
    def kind(self) -> str:
        """image, cls, json or ""."""
        return _kinds().get(self.last, "") if self.key else ""


@functools.cache
def _kinds() -> dict[str, str]:
    return {"cls": "cls", "json": "json", RAW: "image"} | {suffix[1:]: "image" for suffix in image_suffixes()}


def name_of(member: str) -> Name:
    """`n/a.v2.JPG` -> key n/a, suffix v2.jpg, long key n/a.v2, last jpg."""
    directory, name = posixpath.split(member.removeprefix("./"))
    stem, _, suffix = name.partition(".")
    last = RAW if suffix.lower().endswith(RAW) else suffix.rpartition(".")[2].lower()
    long_stem = name[: len(name) - len(last) - 1] if last else stem
    hidden = any(map(is_hidden, (part for part in directory.split("/") if part not in (".", ".."))))
    key = posixpath.join(directory, stem) if stem and not hidden else ""
    return Name(key, suffix.lower(), posixpath.join(directory, long_stem), last)


@dataclass(frozen=True)
class Image:
    """An image member."""

    member: str
    name: Name
    start: int  # bytes
    size: int  # bytes


@dataclass
class Members:
    """What a tar holds, as it is met; `samples` puts it together."""

    shown: str  # of the tar
    images: dict[str, Image] = field(default_factory=dict)  # by long key, as all that follow
    labels: dict[str, tuple[str, int]] = field(default_factory=dict)  # member, label
    json: dict[str, tuple[str, Any]] = field(default_factory=dict)  # member, what it gives as label
    unread: dict[str, str] = field(default_factory=dict)  # images in formats that are not read
    suffixes: Counter[str] = field(default_factory=Counter)  # of what is not read
    findings: Findings = field(default_factory=Findings)

    def add_image(self, image: Image) -> None:
        """An image.

        Raises:
            UserError: there is one of the same key.
        """
        other = self.images.setdefault(image.name.long_key, image)
        if other is not image:
            raise UserError(f"{self.shown}:{image.member}: {other.member} is an image of the same key; keep one")

    def add_label(self, member: str, name: Name, label: int) -> None:
        """A label.

        Raises:
            UserError: another member of the key says otherwise.
        """
        other, there = self.labels.setdefault(name.long_key, (member, label))
        if there != label:
            raise UserError(f"{self.shown}:{member}: says label {label}, but {other} says {there}; keep one")

    def add_other(self, member: str, name: Name) -> None:
        """What is neither image nor label."""
        where = f"{self.shown}:{member}"
        self.suffixes[suffix_of(member) or "no suffix"] += 1
        if not name.key:
            self.findings.add("note", "hidden members", "other programs' notes, by their names", where)
        elif is_other_image(member):
            self.unread[name.long_key] = member
            remedy = "convert them to JPEG or PNG; no reader of theirs is at hand"
            self.findings.add("warning", "images in formats that are not read", remedy, where)
        else:
            self.findings.add("note", "members that are neither image nor label", "not read", where)

    def samples(self) -> list[tuple[Image, int]]:
        """Images with their labels, in the order of the images.

        Raises:
            UserError: an image without a label or a label without an image, or it is not clear which belong together.
        """
        labels = dict(self.labels)
        for key, (member, value) in self.json.items():  # what .cls says goes first, and may be said in other words here
            where = f"{self.shown}:{member}"
            if key not in labels:
                if isinstance(value, UserError):
                    raise value
                labels[key] = (member, as_label(value, where))
            elif type(value) is int and value != labels[key][1]:
                what, remedy = "labels in .json that .cls contradicts", ".cls is read; remove one of the two"
                self.findings.add("warning", what, remedy, f"{where} says {value}, not {labels[key][1]}")
        found = {key: labels.pop(key)[1] for key in self.images if key in labels}
        rest: dict[str, list[Image]] = {}  # by key
        for long_key, image in self.images.items():
            if long_key not in found:
                rest.setdefault(image.name.key, []).append(image)
        for key, images in rest.items():
            if len(images) == 1 and key in labels:
                found[images[0].name.long_key] = labels.pop(key)[1]
            else:
                self._without_label(images, key, labels.get(key))
        for key, (member, _) in labels.items():
            self._without_image(key, member)
        for key in found:
            if self.images[key].name.dotted:
                self.findings.add(
                    "note", "names with dots, read whole", WHOLE, f"{self.shown}:{self.images[key].member}"
                )
        return [(image, found[key]) for key, image in self.images.items() if key in found]

    def _without_label(self, images: list[Image], key: str, label: tuple[str, int] | None) -> None:
        """Images of one key that have no label of their own; perhaps one that may be of any of them."""
        if label:
            names = ", ".join(image.member for image in images[:3])
            raise UserError(
                f"{self.shown}:{label[0]}: is the label of {len(images)} images ({names}); keep one of them, or give "
                f"each a label of its name, {images[0].name.long_key}.cls"
            )
        for image in images:
            where, name = f"{self.shown}:{image.member}", image.name
            if not name.dotted or key not in self.images:
                raise UserError(
                    f"{where}: has no label; add {name.long_key}.cls, or {name.long_key}.json with label or cls"
                )
            self.findings.add("note", "further images of a key", FURTHER, where)
            self.suffixes[f".{name.suffix}"] += 1

    def _without_image(self, key: str, member: str) -> None:
        """A label that no image has taken."""
        name = name_of(member)
        if name.dotted and name.key in self.images:
            self.findings.add("note", "further labels of a key", FURTHER, f"{self.shown}:{member}")
            return
        unread = self.unread.get(key)
        reason = f"{unread} is in a format that is not read, convert it" if unread else f"add {key}.jpg"
        raise UserError(f"{self.shown}:{member}: has a label but no image; {reason} or remove the label")


def as_label(value: Any, where: str) -> int:
    """The label that text, or a value of JSON, stands for.

    Raises:
        UserError: none, see `backbone.data.labels.checked`.
    """
    if isinstance(value, str) and DIGITS.fullmatch(value.removeprefix("\ufeff")):
        value = int(value.removeprefix("\ufeff"))
    if type(value) is not int:  # a bool is an int to isinstance
        name_it = ""
        if isinstance(value, str) and value.strip():
            name_it = "; write the number of the class, whose name goes into that line of classes.txt beside the shards"
        raise UserError(f"{where}: the label {repr(value)[:60]} is not an integer from 0 up{name_it}")
    return checked(value, where)
