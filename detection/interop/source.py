"""What the conversions of detectors share."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from detection.artifact import Loaded
from detection.detections import Detections

Files = dict[str, bytes]
"""Name -> content of a folder's files."""

Answer = Callable[[np.ndarray], Detections]
"""An image uint8 RGB [H, W, 3] -> what a framework finds in it."""


@dataclass(frozen=True)
class Source:
    """A detector on its way out, in eval mode on CPU."""

    loaded: Loaded
    place: str
    """Where the export will lie, as the user wrote it."""

    @property
    def title(self) -> str:
        """What people call it."""
        return f"{self.loaded.detector.options.title} on {self.loaded.detector.backbone.body.options.called}"
