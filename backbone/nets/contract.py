"""What a detector, an evaluator or an exporter may assume of a net, and all that it may assume."""

from dataclasses import dataclass

from torch import Tensor, nn

from backbone.options import NetOptions


@dataclass(frozen=True)
class Stage:
    """Shape of a stage's map: [N, channels, H / stride, W / stride].

    Sizes that the stride does not divide are rounded up by residual and plain nets, down by VGG.
    """

    channels: int
    stride: int


class Backbone(nn.Module):
    """A net that gives its stage maps and its class scores.

    `stages` runs from shallow to deep: C2 to C5 at strides 4, 8, 16, 32, or C2 to C4 at strides 1, 2, 4 in the
    CIFAR nets. The last stage is what the head of `classify` reads.
    """

    options: NetOptions
    num_classes: int
    stages: dict[str, Stage]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images [N, 3, H, W] to one map a stage, keyed and ordered like `stages`."""
        raise NotImplementedError

    def classify(self, x: Tensor) -> Tensor:
        """Map images [N, 3, H, W] to logits [N, num_classes]: one `forward`, then the head on its last stage."""
        raise NotImplementedError


def scaled(channels: int, width: float) -> int:
    """`channels` times the width multiplier, to the nearest integer, at least 1."""
    return max(1, round(channels * width))
