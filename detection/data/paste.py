"""Simple copy-paste (arXiv:2012.07177): objects of one training image laid over another, as they are."""

from typing import NamedTuple

import numpy as np

from detection.data.patches import Patch


class Scene(NamedTuple):
    """An image and its K objects as the detector sees them."""

    image: np.ndarray  # uint8 [H, W, 3], RGB
    boxes: np.ndarray  # float32 [K, 4], x1 y1 x2 y2 in pixels of the image
    labels: np.ndarray  # int64 [K]
    masks: list[Patch]  # K, 1 where the object is seen


def paste(under: Scene, over: Scene, chosen: np.ndarray, colour: tuple[int, int, int]) -> Scene:
    """The objects `chosen`, bool [K] of `over`, in front of `under`, at the same places of the image.

    Where `over` reaches further, the image grows and what was not there is of `colour`. Of objects that are covered in
    part the masks lose what is not seen and the boxes are drawn anew around the rest; those covered wholly go.
    """
    height, width = (max(sides) for sides in zip(under.image.shape[:2], over.image.shape[:2], strict=True))
    image = np.empty((height, width, 3), np.uint8)
    image[:] = colour
    image[: under.image.shape[0], : under.image.shape[1]] = under.image
    pasted = [over.masks[place] for place in np.flatnonzero(chosen)]
    cover = np.zeros((height, width), bool)
    for mask in pasted:
        seen, place = mask.pixels > 0, _place(mask)
        cover[place] |= seen
        np.copyto(image[place], over.image[place], where=seen[..., None])
    boxes, labels, masks = [], [], []
    for box, label, mask in zip(under.boxes, under.labels, under.masks, strict=True):
        left = mask._replace(pixels=mask.pixels & ~cover[_place(mask)])
        if not left.pixels.any():
            continue
        boxes.append(box if np.array_equal(left.pixels, mask.pixels) else left.around())
        labels.append(label)
        masks.append(left)
    return Scene(
        image,
        np.concatenate([np.array(boxes, np.float32).reshape(-1, 4), over.boxes[chosen]]),
        np.concatenate([np.array(labels, np.int64), over.labels[chosen]]),
        masks + pasted,
    )


def _place(mask: Patch) -> tuple[slice, slice]:
    """Where it lies in its image."""
    height, width = mask.pixels.shape
    return slice(mask.top, mask.top + height), slice(mask.left, mask.left + width)
