"""A share of the labels: training on a part of the images, as if the others had never been annotated.

Images are ranked by a hash of their ids, and the first of them are taken. So shares of a data set are nested, the one
of 1 % lies within the one of 10 %, and are the same for every run, whatever its seed and its backbone.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from backbone.data.ahead import read_ahead
from backbone.data.findings import Finding
from backbone.data.index import digest
from backbone.data.stream import mix
from backbone.errors import UserError
from detection.data.contract import DetectionSource, Objects
from detection.data.patches import Patch, patched

SALT = 0x5AA2E  # so that this order is none that a seed draws


class Share:
    """The images of `source` that are in the share, as a `DetectionSource`, in its order."""

    def __init__(self, source: DetectionSource, share: float) -> None:
        """Choose `share` of the images, to the nearest whole number.

        Args:
            share: above 0, below 1.

        Raises:
            UserError: that is no image, or none of the images has an object.
        """
        self._source, self._share = source, share
        count = round(share * len(source))
        if not count:
            raise UserError(
                f"data.share {share:g} of {len(source):,} images is no image at all; give "
                f"{np.ceil(1e6 / len(source)) / 1e6:g} or more"
            )
        rank = np.array([mix(SALT, image_id) for image_id in source.image_ids.tolist()], np.uint64)
        self._rows = np.sort(np.argsort(rank, kind="stable")[:count])
        self.categories = source.categories
        self.image_ids: np.ndarray = source.image_ids[self._rows]
        self.sizes: np.ndarray = source.sizes[self._rows]
        self.has_masks = source.has_masks
        self.fingerprint = digest(source.fingerprint, "share", *self._rows.tolist())
        self.dropped = {**source.dropped, f"images beyond data.share {share:g}": len(source) - count}
        if not self.num_objects().sum():
            raise UserError(f"data.share {share:g}: none of its {count:,} images has an object; give more")

    def __len__(self) -> int:
        return len(self._rows)

    def __reduce__(self) -> tuple:
        return Share, (self._source, self._share)

    def _row(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        return int(self._rows[i])

    @property
    def findings(self) -> list[Finding]:
        """The source's, and the classes that the share has no object of."""
        absent = self.absent()
        if not absent:
            return self._source.findings
        what = f"classes without an object in data.share {self._share:g}"
        return [
            *self._source.findings,
            Finding("warning", what, "never learned, and counted in AP all the same", len(absent), absent[:5]),
        ]

    def absent(self) -> list[str]:
        """Names of the classes that no image of the share has an object of."""
        seen = {label for i in range(len(self)) for label in self.objects(i).labels.tolist()}
        return [name for label, name in enumerate(self.categories.names, 1) if label not in seen]

    def told(self) -> str:
        """`32 of 320 (data.share 0.1, 11 of 12 classes)`."""
        classes = len(self.categories)
        found = f"{classes - len(self.absent())} of {classes} classes"
        return f"{len(self):,} of {len(self._source):,} (data.share {self._share:g}, {found})"

    def name(self, i: int) -> str:
        """What a person needs to find image i."""
        return self._source.name(self._row(i))

    def image(self, i: int) -> np.ndarray:
        """Image i, see `DetectionSource.image`."""
        return self._source.image(self._row(i))

    def ahead(self, ids: Iterable[int]) -> None:
        """Image files that are going to be asked for, see `read_ahead`."""
        read_ahead(self._source, map(self._row, ids))

    def objects(self, i: int, masks: bool = False) -> Objects:
        """What image i is trained on."""
        return self._source.objects(self._row(i), masks)

    def patched(self, i: int) -> tuple[Objects, list[Patch]]:
        """What image i is trained on, and its masks as patches."""
        return patched(self._source, self._row(i))

    def label_map(self, i: int) -> np.ndarray:
        """The class of every pixel of image i."""
        return self._source.label_map(self._row(i))

    def num_objects(self) -> np.ndarray:
        """int64 [N]: how many `objects(i)` gives."""
        return self._source.num_objects()[self._rows]

    def ground_truth(self, ids: np.ndarray | None = None) -> dict[str, Any]:
        """See `DetectionSource.ground_truth`."""
        return self._source.ground_truth(self._rows if ids is None else self._rows[ids])
