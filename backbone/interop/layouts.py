"""Where in a checkpoint a net lies, and what lies beside it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from backbone.errors import UserError
from backbone.interop import weights
from backbone.interop.advice import Words
from backbone.interop.keys import some
from backbone.interop.origins import ORIGINS, Names

# Copies that follow the net that is trained, in the words of those that keep them.
COPIES = re.compile(
    r"(^|[._])(encoder_k|key_encoder|momentum\w*|\w*_momentum|target\w*|ema|\w*_ema|averaged\w*|ema_model|shadow)([._]|$)"
)
# What stands beside a net that learnt without labels; its `fc` then projects, and tells no classes apart.
UNSUPERVISED = re.compile(
    r"(^|[._])(encoder_k|queue|queue_ptr|momentum\w*|predictor|projector|projection\w*|prototypes|target_net|head\.mlp)([._]|$)"
)
# What shows that a body may have been dilated, which its own weights do not.
DILATED: tuple[tuple[str, str], ...] = (
    (r"(^|\.)(aux_classifier|classifier\.0\.convs)\.|(^|\.)classifier\.4\.(weight|bias)$", "an FCN or a DeepLab"),
    (r"(^|\.)(decode_head|auxiliary_head|segmentation_head|aspp)\.|\.project_conv\.", "a segmenter"),
    (r"(^|\.)transformer\.(encoder|decoder)\.|(^|\.)class_labels_classifier\.", "a DETR, which may be of the DC5 kind"),
)


@dataclass(frozen=True)
class Layout:
    """Where the weights are: whose names, in which part of the file, behind what, beside what."""

    source: str
    entry: str = ""
    prefix: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()

    def words(self) -> Words:
        """As options."""
        entry = (self.entry,) if self.entry else ()
        given = {"source": (self.source,), "entry": entry, "prefix": self.prefix, "drop": self.drop}
        return {name: values for name, values in given.items() if values}

    @property
    def copy(self) -> bool:
        """Whether this is a copy that follows another net. DINO's teacher is one, and the net that its authors use."""
        return bool(COPIES.search(self._path))

    @property
    def teacher(self) -> bool:
        """Whether this is the net of two that taught the other."""
        return "teacher" in self._path.split(".")

    @property
    def called(self) -> str:
        """What it is among others of the same file."""
        copies = {self.copy: "a copy by averaging", self.teacher: "the teacher, which DINO's authors evaluate"}
        return copies.get(True, "the student" if "student" in self._path.split(".") else "the net")

    @property
    def _path(self) -> str:
        return f"{self.entry}.{'.'.join(self.prefix)}"


def cut(values: Mapping[str, Any], layout: Layout, where: str) -> tuple[dict[str, Any], list[str]]:
    """Leave out what is named, then cut the prefixes off; all must be true of the file. With a note for each.

    Raises:
        UserError: nothing begins with what is named, or some keys begin with none of the prefixes.
    """
    notes, kept = [], dict(values)
    for start in layout.drop:
        out = [name for name in values if name.startswith(start)]
        if not out:
            raise UserError(f"{where}: --drop {start}: no key begins so; it has {some(sorted(values))}")
        within = [name for name in out if _inside(name, layout)]
        if within:
            raise UserError(
                f"{where}: --drop {start}: {some(sorted(within))} lie in the net itself, which without them computes "
                "something else"
            )
        notes.append(f"left out, as asked: {start}* ({len(out)} keys)")
        kept = {name: value for name, value in kept.items() if name not in set(out)}
    if not layout.prefix:
        return kept, notes
    others = [name for name in kept if not name.startswith(layout.prefix)]
    if others:
        raise UserError(
            f"{where}: --prefix {' '.join(layout.prefix)}: {len(others)} keys do not begin so: {some(sorted(others))}. "
            "Keys to leave out are named by --drop"
        )
    return {_behind(name, layout.prefix): value for name, value in kept.items()}, notes


def layouts(tree: Any, source: str) -> Iterator[Layout]:
    """Where nets may lie in a tree, the likeliest first: of names of `source`, trained rather than averaged.

    Whether the tensors are a net's, nobody has looked at.
    """
    found = []
    for name, origin in ORIGINS.items():
        for entry, values in weights.branches(tree).items():
            for form in origin.forms:
                found += [replace(layout, source=name, entry=entry) for layout in _of_form(list(values), form)]

    def likeliness(layout: Layout) -> tuple[Any, ...]:
        return (
            layout.source != source,
            layout.copy,
            not layout.teacher,
            len(layout.prefix),
            layout.entry.count("."),
            layout.entry,
        )

    seen = set()
    for layout in sorted(found, key=likeliness):
        place = (layout.entry, layout.prefix)
        if place not in seen:  # the same tensors fit more than one framework
            seen.add(place)
            yield layout


def dilated(names: Iterable[str]) -> str:
    """What a net is whose body may be dilated, by all the names of a checkpoint; empty: none is known to be."""
    names = list(names)
    return next((what for mark, what in DILATED if any(re.search(mark, name) for name in names)), "")


def _of_form(names: list[str], form: Names) -> Iterator[Layout]:
    """Layouts of one list of names; without source and entry."""
    stem, *_, late = form.marks
    there = set(names)
    for prefix in sorted({name.removesuffix(stem) for name in names if name.endswith(stem)}, key=len):
        if prefix and not prefix.endswith("."):
            continue
        prefixes = (prefix,)
        if not all(prefix + mark in there for mark in form.marks[1:-1]):
            continue
        if prefix + late not in there:  # a C4 detector has its last stage among its heads
            others = [name.removesuffix(late) for name in names if name.endswith(f".{late}")]
            if len(others) != 1:
                continue
            prefixes = tuple(sorted((prefix, others[0]), key=len, reverse=True))
        yield _beside(names, form, prefixes)


def _beside(names: list[str], form: Names, prefixes: tuple[str, ...]) -> Layout:
    """The layout of a net behind these prefixes: what is not its own is dropped."""
    unsupervised = any(UNSUPERVISED.search(name) for name in names)

    def own(name: str) -> bool:
        rest = _behind(name, prefixes)
        known = rest in form.table or rest.partition(".")[0] in form.inside
        return name.startswith(prefixes) and known and not (unsupervised and form.table.get(rest, "").startswith("fc."))

    kept = [name for name in names if own(name)]
    out = [name for name in names if name not in set(kept)]
    return Layout("", "", prefixes if prefixes != ("",) else (), tuple(_cover(out, kept)))


def _cover(out: list[str], kept: list[str]) -> list[str]:
    """First letters of all names of `out` and of none of `kept`, few and at dots, or at `_` where that spares three."""

    def shortest(name: str, marks: str) -> str:
        ends = [i + 1 for i, letter in enumerate(name) if letter in marks]
        starts = [name[:end] for end in ends] + [name]
        return next((start for start in starts if not any(other.startswith(start) for other in kept)), name)

    starts = dict.fromkeys(shortest(name, ".") for name in out)
    shorter = {start: shortest(start, "._") for start in starts}
    often = [short for short in shorter.values() if list(shorter.values()).count(short) > 2]
    found = dict.fromkeys(shorter[start] if shorter[start] in often else start for start in starts)
    return [start for start in found if not any(start != other and start.startswith(other) for other in found)]


def _behind(name: str, prefixes: tuple[str, ...]) -> str:
    """A name without the first of the prefixes that it begins with."""
    return name.removeprefix(next((prefix for prefix in prefixes if name.startswith(prefix)), ""))


def _inside(name: str, layout: Layout) -> bool:
    """Whether a key lies among those of the net that the prefix points at."""
    if layout.prefix and not name.startswith(layout.prefix):
        return False
    first = _behind(name, layout.prefix).partition(".")[0]
    return any(first in form.inside for form in ORIGINS[layout.source].forms)
