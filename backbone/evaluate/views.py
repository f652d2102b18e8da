"""What a net is shown of an image to be judged: one crop, ten, or the whole image at several sizes (section 3.4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from backbone.data.ahead import read_ahead
from backbone.data.augment import evaluation_view, pil_filter
from backbone.data.sources import Labelled
from backbone.errors import BadImage
from backbone.inputs import InputConvention


class ViewSpec(NamedTuple):
    """How a net of one input size is shown an image."""

    protocol: str
    size: int
    crop_pct: float
    scales: tuple[int, ...] = ()
    interpolation: str = "bilinear"


def view_for(inputs: InputConvention, protocol: str, scales: Sequence[int] = ()) -> ViewSpec:
    """How a net of this input convention is shown an image; `scales` are read by multi-scale alone."""
    scales = tuple(scales) if protocol == "multi-scale" else ()
    return ViewSpec(protocol, inputs.size, inputs.crop_pct, scales, inputs.interpolation)


def views(image: np.ndarray, view: ViewSpec) -> list[np.ndarray]:
    """What a net sees of an image, uint8 RGB [H, W, 3] each, but for the mirror images.

    1-crop: one [size, size]. 10-crop: five of them, whose mirror images make ten as in AlexNet; torchvision's TenCrop
    cuts five from the mirrored image, the middle one of which may lie a pixel aside. multi-scale: the whole image once
    a scale.
    """
    if view.protocol == "1-crop":
        return [evaluation_view(image, view.size, view.crop_pct, view.interpolation)]
    if view.protocol == "multi-scale":
        return [resized(image, in_proportion(scale, view.size), view.interpolation) for scale in view.scales]
    image, size = resized(image, in_proportion(256, view.size), view.interpolation), view.size
    bottom, right = image.shape[0] - size, image.shape[1] - size
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (round(bottom / 2), round(right / 2))]
    return [image[top : top + size, left : left + size] for top, left in corners]


def in_proportion(side: int, size: int) -> int:
    """A side given for a net of 224 px, for one of `size` px; rounded down, as `evaluation_view` rounds."""
    return side * size // 224


def resized(image: np.ndarray, side: int, interpolation: str) -> np.ndarray:
    """Shorter side to `side`, filtered and rounded as in `evaluation_view`; uint8 [H, W, 3]."""
    height, width = image.shape[:2]
    if min(height, width) == side:
        return image
    size = side * width // min(height, width), side * height // min(height, width)
    return np.asarray(Image.fromarray(image).resize(size, pil_filter(interpolation)))


@dataclass
class ViewSet(Dataset):
    """Sample ids -> the views of their images, those of one shape together."""

    source: Labelled
    views: tuple[ViewSpec, ...]
    on_bad: str

    def __getitems__(self, ids: list[int]) -> dict[str, Any]:
        """`samples`, the ids; `labels` int64 [N], -1 where an image could not be read; `sides` int64 [N, 2], height and
        width, 0 likewise; `bad`, those by name; `groups`, for each view a list of (rows int64 [M], images uint8
        [M, 3, H, W])."""
        labels, bad = [], []
        sides = np.zeros((len(ids), 2), np.int64)
        found: list[dict[tuple, tuple[list, list]]] = [{} for _ in self.views]
        read_ahead(self.source, ids)
        for row, sample in enumerate(ids):
            try:
                image = self.source.image(sample)
            except BadImage as error:
                if self.on_bad == "stop":
                    raise BadImage(f"{error}; mend or remove it, or set data.on_bad: skip") from error
                bad.append(str(error))
                labels.append(-1)
                continue
            labels.append(int(self.source.labels[sample]))
            sides[row] = image.shape[:2]
            for view, groups in zip(self.views, found, strict=True):
                for seen in views(image, view):
                    rows, images = groups.setdefault(seen.shape, ([], []))
                    rows.append(row)
                    images.append(seen)
        stacked = [
            [
                (torch.tensor(rows), torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy()))
                for rows, images in groups.values()
            ]
            for groups in found
        ]
        return {"samples": list(ids), "labels": torch.tensor(labels), "sides": sides, "bad": bad, "groups": stacked}
