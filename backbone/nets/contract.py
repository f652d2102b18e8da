"""What a detector, an evaluator or an exporter may assume of a net, and all that it may assume."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from backbone.options import AnyNet


@dataclass(frozen=True)
class Stage:
    """Shape of a stage's map: [N, channels, H / stride, W / stride].

    Sizes that the stride does not divide are rounded up by residual and plain nets, down by VGG.
    """

    channels: int
    stride: int


@dataclass(frozen=True)
class RegionLayers:
    """What reads one region of C4 instead of a whole image; `to_map`, then `to_vector`, each run in order.

    VGG: no map; fc6 and fc7, which stand in for the whole map. Others: C5, then the average pool.
    """

    to_map: tuple[nn.Module, ...]
    to_vector: tuple[nn.Module, ...]
    features: int
    """Length of the vector."""

    size: int | None
    """Cells a side that a region must have; None: any."""


class Backbone(nn.Module, ABC):
    """A net that gives its stage maps and its class scores.

    `stages` runs from shallow to deep: C2 to C5 at strides 4, 8, 16, 32, or C2 to C4 at strides 1, 2, 4 in the
    CIFAR nets. The last stage is what the head of `classify` reads.
    """

    options: AnyNet
    num_classes: int
    stages: dict[str, Stage]
    prefix: ClassVar[str] = ""
    """What keys have before the name that artifacts, and the library of an external net, give them."""

    def forward(self, x: Tensor, through: str | None = None) -> dict[str, Tensor]:
        """Map images [N, 3, H, W] to one map a stage, keyed and ordered like `stages`; none beyond stage `through`."""
        maps = {}
        for name, modules in self.parts().items():
            x = run(modules, x)
            if name in self.stages:
                maps[name] = x
            if name == through:
                break
        return maps

    @abstractmethod
    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        """The net up to its last map: `stem`, then one part a stage, each with the modules to run in order.

        A part reads what the one before it gives. The modules are the net's own, so what is done to them is done to it.
        """

    @abstractmethod
    def region_layers(self) -> RegionLayers:
        """What reads regions of C4, of the net's own modules. A net without C5 has none (KeyError)."""

    @abstractmethod
    def classify(self, x: Tensor) -> Tensor:
        """Map images [N, 3, H, W] to logits [N, num_classes]: one `forward`, then the head on its last stage."""


def run(modules: tuple[nn.Module, ...], x: Tensor) -> Tensor:
    """One module after the other."""
    for module in modules:
        x = module(x)
    return x
