"""What training, evaluation, artifacts and plans may assume of a detector, whichever family it is of."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from backbone.nets import Backbone
from detection.options import AnyDetector

Options = TypeVar("Options", bound=AnyDetector)


class Features(nn.Module):
    """Images -> float32 maps: the levels of a pyramid on the stages `read`, or C4 alone where there is none."""

    def __init__(self, body: Backbone, fpn: FeaturePyramidNetwork | None, read: Sequence[str] = ()) -> None:
        super().__init__()
        self.body, self.fpn, self.read = body, fpn, tuple(read) or tuple(body.stages)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if self.fpn is None:
            maps = {"C4": self.body(images, "C4")["C4"]}
        else:
            stages = self.body(images)
            maps = self.fpn({name: stages[name] for name in self.read})
        # The anchors take the maps' dtype, and in bfloat16 a coordinate of 800 px is off by 2.
        return {name: level.float() for name, level in maps.items()}


class Detector(nn.Module, ABC, Generic[Options]):
    """A backbone and all that is made of its maps."""

    options: Options
    backbone: Features

    @abstractmethod
    def forward(
        self, images: Tensor, sides: Sequence[tuple[int, int]], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation.

        Args:
            images: float [N, 3, H, W], normalised by `backbone.inputs`, padded with zeros right and below; H and W are
                multiples of 32, the anchors' strides being H and W over the maps' sizes.
            sides: height and width of each of the N images before padding.
            targets: one dict an image, read in training: boxes float32 [K, 4], x1 y1 x2 y2 in pixels of `images`,
                labels int64 [K] from 1, with `options.masks` masks uint8 [K, H, W]. K may be 0. Of kind semantic:
                classes uint8 [H, W], 0 background, 255 takes no part.

        Returns:
            In training: the losses by torchvision's names. Else for each image: boxes float32 [D, 4] within `sides`,
            labels int64 [D] from 1, scores float32 [D], best first, and with `options.masks` masks
            float32 [D, 1, S, S], probabilities inside the box. Of kind semantic: logits float32 [C, h, w] of background
            and classes, h and w being its `sides`.
        """

    @abstractmethod
    def probe(self, images: Tensor) -> dict[str, float]:
        """Deviations of what it computes of images [N, 3, H, W] by the way, which an artifact records. Without
        detections: their number jumps where a score stands at a threshold."""


class BoxDetector(Detector[Options]):
    """A detector of boxes."""

    @property
    @abstractmethod
    def nms_iou(self) -> float:
        """Of two detections of a class that overlap more, the worse is dropped."""

    @property
    @abstractmethod
    def most(self) -> int:
        """Detections of an image."""


def prune(module: nn.Module, used: list[nn.Module]) -> None:
    """Drop what is not among `used` or inside it: a parameter that never has a gradient would stop DDP."""
    kept = {id(m) for m in used}
    for name, child in list(module.named_children()):
        if id(child) not in kept:
            prune(child, used)
            if not any(True for _ in child.children()):
                delattr(module, name)


def to_float(module: nn.Module, inputs: Any, output: Any) -> Any:
    """A forward hook: layers may run in bfloat16; what is computed from them, boxes, losses and scores, is float32."""
    if isinstance(output, Tensor):
        return output.float()
    return type(output)(to_float(module, inputs, part) for part in output)
