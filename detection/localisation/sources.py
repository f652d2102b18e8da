"""Images of one main object each, with its class and its boxes."""

from typing import Any, Protocol

import numpy as np

from backbone.data.sources import Source, check_readable
from backbone.data.synthetic import SyntheticSource
from backbone.errors import UserError
from detection.localisation.clsloc import open_clsloc
from detection.localisation.recipe import LocData, OneObjectData


class LocatedSource(Source, Protocol):
    """A `Source` that also says where the objects of each image's class are."""

    @property
    def sides(self) -> np.ndarray:
        """int64 [N, 2]: height and width."""
        ...

    def boxes(self, i: int) -> np.ndarray:
        """float64 [K, 4], K of 1 or more: objects of the image's class, x1 y1 x2 y2 in pixels; x2 - x1 is the width."""
        ...


class OneObjectScenes(SyntheticSource):
    """The scenes that classifiers learn from, with their boxes."""

    def __init__(self, seed: int, num_images: int, size: int, split: str) -> None:
        super().__init__(seed, num_images, size, split)
        self.sides = np.full((num_images, 2), size)
        self._boxes: dict[int, np.ndarray] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return OneObjectScenes, self._arguments

    def boxes(self, i: int) -> np.ndarray:
        """See `LocatedSource.boxes`. The first time it draws the scene."""
        if i not in self._boxes:
            self._boxes[i] = self.scene(i).boxes.astype(np.float64)
        return self._boxes[i]


def open_located(data: LocData, size: int) -> tuple[LocatedSource, LocatedSource]:
    """The images to train on and those to judge by; scenes are `size` pixels wide.

    Raises:
        UserError: missing or damaged, or classes to judge by that are not trained on.
    """
    if isinstance(data, OneObjectData):
        train = OneObjectScenes(data.seed, data.train_images, size, "train")
        return train, OneObjectScenes(data.seed, data.val_images, size, "val")
    cache = data.cache or None
    train, val = open_clsloc(data.train, cache), open_clsloc(data.val, cache, data.blacklist)
    unknown = sorted(set(val.classes) - set(train.classes))
    if unknown:
        raise UserError(f"{data.val}: has classes that {data.train} lacks: {', '.join(unknown[:10])}")
    check_readable(val)
    return train, val
