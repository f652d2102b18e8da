"""What training, evaluation and the report may assume of annotated images, and all that they may assume."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from backbone.data.findings import Finding


@dataclass(frozen=True)
class Categories:
    """Classes both ways: label k (1..K) is `names[k - 1]`, and number `ids[k - 1]` in the data set. 0 is background."""

    names: tuple[str, ...]
    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)


class Objects(NamedTuple):
    """The objects of one image, K of them; rows belong together."""

    boxes: np.ndarray  # float64 [K, 4], x1 y1 x2 y2 in pixels of the image, within it; x2 - x1 is the width
    labels: np.ndarray  # int64 [K], 1..number of categories
    masks: list[np.ndarray]  # K arrays uint8 [H, W], 1 where the object is seen; empty where masks are not asked for


class DetectionSource(Protocol):
    """N annotated images, read at random. Pickles small, for processes of the same machine; reading is thread-safe."""

    @property
    def categories(self) -> Categories: ...

    @property
    def image_ids(self) -> np.ndarray:
        """int64 [N], the data set's own, unique."""
        ...

    @property
    def sizes(self) -> np.ndarray:
        """int32 [N, 2], height and width as recorded in the annotations."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 over kind, names, annotations and categories; the same wherever the data set lies."""
        ...

    @property
    def has_masks(self) -> bool: ...

    @property
    def dropped(self) -> dict[str, int]:
        """What the reader left out of training, by reason: {"degenerate boxes": 3, "crowds": 12, "difficult": 4}."""
        ...

    @property
    def findings(self) -> list[Finding]:
        """What the reader left out, took otherwise than it is written, or holds for wrong; none after pickling.

        Errors among them are for `sources` to refuse: what the boxes are given in, say, concerns training and scoring.
        """
        ...

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """What a person needs to find image i."""
        ...

    def image(self, i: int) -> np.ndarray:
        """Image i, uint8 [H, W, 3], RGB; H, W equal `sizes[i]`.

        Raises:
            BadImage: it cannot be read, or is not of the recorded size. Names it.
        """
        ...

    def objects(self, i: int, masks: bool = False) -> Objects:
        """What image i is trained on: no crowds, nothing difficult, nothing degenerate."""
        ...

    def label_map(self, i: int) -> np.ndarray:
        """The class of every pixel of image i, uint8 [H, W]: 0 background, 1..K, 255 neither trained on nor judged.

        Raises:
            UserError: there is none (see `has_masks`).
        """
        ...

    def num_objects(self) -> np.ndarray:
        """int64 [N]: how many `objects(i)` gives, without reading masks."""
        ...

    def ground_truth(self, ids: np.ndarray | None = None) -> dict[str, Any]:
        """The annotations of images `ids` (indices; all by default) as a COCO instances dict to be judged against.

        Boxes and segmentations exactly as in the data set, but for sides below 0, which are 0; crowds and difficult
        objects included as `iscrowd` 1; annotation ids from 1, `area` and `iscrowd` as settled. It is a copy.
        """
        ...
