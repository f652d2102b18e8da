"""An image as a detector sees it, at one size, mirrored or not, and what the detector says of regions in it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from detection.improvements.refinement import refine
from detection.improvements.rows import Rows
from detection.nets import BoxDetector, Detector, Rcnn, Retina

SMALLEST = 1e-2  # pixels of the net's input: boxes with a shorter side are dropped, as torchvision does


@dataclass(frozen=True)
class View(ABC):
    """One image of the net's input."""

    detector: BoxDetector  # in eval mode
    maps: dict[str, Tensor]
    sides: tuple[int, int]  # height and width of the net's input, without padding
    original: tuple[int, int]  # height and width of the file
    mirrored: bool

    @abstractmethod
    def candidates(self, refined: bool) -> Rows:
        """All that the detector would choose from by NMS, in pixels of the file; `refined`: see `refine`."""

    def masks(self, boxes: Tensor, labels: Tensor) -> Tensor:
        """Probabilities float32 [D, 1, S, S] within boxes float64 [D, 4], pixels of the file; labels int64 [D]."""
        raise ValueError("the detector predicts no masks")

    def to_file(self, boxes: Tensor) -> Tensor:
        """Boxes [D, 4] of this view -> float64 [D, 4] in pixels of the file."""
        boxes = boxes.double()
        return (mirror_boxes(boxes, self.sides[1]) if self.mirrored else boxes) * self._ratio(boxes)

    def to_view(self, boxes: Tensor) -> Tensor:
        """The way back."""
        boxes = boxes / self._ratio(boxes)
        return mirror_boxes(boxes, self.sides[1]) if self.mirrored else boxes

    def _ratio(self, like: Tensor) -> Tensor:
        (height, width), (h, w) = self.original, self.sides
        return like.new_tensor([width / w, height / h] * 2)


@dataclass(frozen=True)
class RegionView(View):
    """As Faster and Mask R-CNN see it. All that follows the backbone reads its maps."""

    detector: Rcnn
    proposals: Tensor  # float32 [P, 4], x1 y1 x2 y2, pixels of the net's input

    def vectors(self, regions: Tensor) -> Tensor:
        """Regions float32 [R, 4] -> what their scores and boxes are computed from, [R, features]."""
        return self.detector.roi_heads.vectors(self.maps, [regions], [self.sides])

    def predict(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Regions float32 [R, 4] -> boxes float32 [R, K, 4] within the image, one a class, and scores [R, K]."""
        heads = self.detector.roi_heads
        logits, deltas = heads.box_predictor(self.vectors(regions))
        boxes = heads.box_coder.decode(deltas, [regions]).reshape(*logits.shape, 4)
        return clip_boxes_to_image(boxes, self.sides)[:, 1:], F.softmax(logits, -1)[:, 1:]

    def candidates(self, refined: bool) -> Rows:
        """See `View.candidates`."""
        boxes, scores = refine(self.predict, self.proposals) if refined else self.predict(self.proposals)
        labels = torch.arange(1, scores.shape[1] + 1, device=scores.device).expand_as(scores)
        above = scores > self.detector.roi_heads.score_thresh
        boxes, labels, scores = boxes[above], labels[above], scores[above]
        kept = remove_small_boxes(boxes, SMALLEST)
        return Rows(self.to_file(boxes[kept]), labels[kept], scores[kept])

    def masks(self, boxes: Tensor, labels: Tensor) -> Tensor:
        """See `View.masks`."""
        inside = self.to_view(boxes).float()
        masks = self.detector.roi_heads.predict_masks(self.maps, [inside], [labels], [self.sides])[0]
        return masks.flip(-1) if self.mirrored else masks


@dataclass(frozen=True)
class DenseView(View):
    """As RetinaNet sees it."""

    detector: Retina
    image: Tensor  # float [1, 3, H, W]

    def candidates(self, refined: bool) -> Rows:
        """See `View.candidates`. Without regions, which could be looked at again, there is no `refined`."""
        ((boxes, labels, scores),) = self.detector.candidates(self.maps, self.image, [self.sides])
        return Rows(self.to_file(boxes), labels, scores)


def look(
    detector: Detector, image: Tensor, sides: tuple[int, int], original: tuple[int, int], mirrored: bool = False
) -> View:
    """Run the backbone, and the RPN where there is one.

    Args:
        detector: in eval mode.
        image: float [1, 3, H, W], normalised, zero right and below of `sides`; H and W are multiples of 32.
        sides: height and width of the image before padding.
        original: height and width of its file.
        mirrored: look at its mirror image.
    """
    image = mirror(image, sides[1]) if mirrored else image
    maps = detector.backbone(image)
    if isinstance(detector, Retina):
        return DenseView(detector, maps, sides, original, mirrored, image)
    assert isinstance(detector, Rcnn)
    proposals, _ = detector.rpn(ImageList(image, [sides]), maps)
    return RegionView(detector, maps, sides, original, mirrored, proposals[0])


def mirror(images: Tensor, width: int) -> Tensor:
    """Images [..., W] whose first `width` columns are left and right exchanged; the padding stays where it is."""
    return torch.cat([images[..., :width].flip(-1), images[..., width:]], -1)


def mirror_boxes(boxes: Tensor, width: int) -> Tensor:
    """Boxes [..., 4], x1 y1 x2 y2, in the mirror image of one that is `width` wide."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], -1)
