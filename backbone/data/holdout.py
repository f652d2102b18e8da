"""A part of the training images kept back to validate on, as the paper's 45k/5k split of CIFAR-10 (section 4.2)."""

import hashlib
from collections.abc import Iterable
from typing import Literal

import numpy as np

from backbone.data.index import IndexedSource
from backbone.data.stream import order
from backbone.errors import UserError


class Part(IndexedSource):
    """Some images of a source, by numbers of their own. Pickles small, as the source does."""

    def __init__(self, whole: IndexedSource, held_out: int, which: Literal["train", "val"]) -> None:
        """Which images are held out depends on how many there are and on nothing else, so that runs can be compared."""
        self._whole, self._given = whole, (held_out, which)
        mixed = order(0, 0, len(whole))
        self._ids = np.sort(mixed[held_out:] if which == "train" else mixed[:held_out])
        self.labels, self.sizes = whole.labels[self._ids], whole.sizes[self._ids]
        self.classes = whole.classes
        words = f"{whole.fingerprint} {which} {held_out}"
        self.fingerprint = hashlib.sha256(words.encode()).hexdigest()
        # What the reader has to say, it says of the whole, once.
        self.findings = whole.findings if which == "train" else []
        self.places = whole.places if which == "train" else frozenset()

    def __reduce__(self) -> tuple:
        return Part, (self._whole, *self._given)

    def name(self, i: int) -> str:
        """See `IndexedSource.name`."""
        return self._whole.name(int(self._ids[i]))

    def data(self, i: int) -> bytes:
        """See `IndexedSource.data`."""
        return self._whole.data(int(self._ids[i]))

    def place(self, i: int, suffix: bytes) -> tuple[int, int] | None:
        """See `IndexedSource.place`."""
        return self._whole.place(int(self._ids[i]), suffix)

    def ahead(self, ids: Iterable[int]) -> None:
        """See `IndexedSource.ahead`."""
        self._whole.ahead(int(self._ids[i]) for i in ids)


def hold_out(whole: IndexedSource, count: int) -> tuple[Part, Part]:
    """(training images, `count` images to validate on) of what was opened for training.

    Raises:
        UserError: nothing would be left to train on.
    """
    if count >= len(whole):
        raise UserError(f"data.hold_out {count}: data.train has {len(whole):,} images; hold out fewer")
    return Part(whole, count, "train"), Part(whole, count, "val")
