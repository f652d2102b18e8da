"""What annotated images consist of, in numbers."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from backbone.data.findings import image_sizes

SMALL, MEDIUM = 32**2, 96**2  # pixels: COCO's borders between small, medium and large objects


@dataclass
class Survey:
    """What a data set consists of, as far as it can be read."""

    # Of each image its root, its name, (height, width), and whether there is such a file.
    files: list[tuple[str, str, tuple[int, int], bool]] = field(default_factory=list)
    per_class: dict[str, int] = field(default_factory=dict)  # objects by name
    areas: list[float] = field(default_factory=list)  # of the objects, pixels
    with_objects: int = 0  # images


def statistics(survey: Survey) -> dict[str, Any]:
    """A data set in numbers."""
    area = np.array(survey.areas)
    small, medium = int((area < SMALL).sum()), int(((area >= SMALL) & (area < MEDIUM)).sum())
    found: dict[str, Any] = {
        "images": len(survey.files),
        "images with objects": survey.with_objects,
        "objects": sum(survey.per_class.values()),
        "objects by size": {"small (< 32²)": small, "medium": medium, "large (>= 96²)": len(area) - small - medium},
    }
    found |= image_sizes([size for _, _, size, _ in survey.files])
    found["objects by class"] = dict(sorted(survey.per_class.items(), key=lambda pair: (-pair[1], pair[0])))
    return found
