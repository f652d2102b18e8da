from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.init import uniform_
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from backbone.nets import build as build_net
from backbone.options import NetOptions
from detection.nets import Detector, build
from detection.options import DetectorOptions

Target = dict[str, Tensor]
# Few proposals: what is tested does not depend on how many there are.
FEW = {
    "rpn": {"pre_nms_train": 60, "pre_nms_test": 60, "post_nms_train": 40, "post_nms_test": 40},
    "roi": {"batch": 32, "detections": 8},
}
NARROW = {"channels": 16, "hidden": 32}


@pytest.fixture
def shake() -> Callable[[nn.Module], None]:
    """Gives batch norms, frozen ones too, different statistics and affine parameters, of about unit gain."""

    def shake(net: nn.Module) -> None:
        for module in net.modules():
            if isinstance(module, (_BatchNorm, FrozenBatchNorm2d)):
                for key, low, high in (("weight", 0.4, 1.0), ("bias", -0.2, 0.2), ("running_mean", -0.2, 0.2)):
                    uniform_(module.state_dict()[key], low, high)
                uniform_(module.state_dict()["running_var"], 0.5, 1.5)

    return shake


@pytest.fixture
def detector() -> Callable[..., Detector]:
    """`detector({"depth": 50}, kind="c4")`: a small one on a quarter of the channels, of 3 classes, norm frozen."""

    def make(net: dict[str, Any], **fields: Any) -> Detector:
        torch.manual_seed(0)
        small = NARROW if fields.get("kind", "fpn") == "fpn" else {}
        roi = {**FEW["roi"], **fields.pop("roi", {})}
        options = {"norm": "frozen", "freeze_at": 0, "rpn": FEW["rpn"], "roi": roi, **small, **fields}
        return build(DetectorOptions(**options), build_net(NetOptions(**{"width": 0.25, **net}), 10), 3)

    return make


@pytest.fixture
def batch() -> tuple[Tensor, list[tuple[int, int]], list[Target]]:
    """Two images of 96x64 and 80x60 px in one tensor, with two objects and none."""
    torch.manual_seed(1)
    images, sizes = torch.randn(2, 3, 96, 64), [(96, 64), (80, 60)]
    images[1, :, 80:], images[1, :, :, 60:] = 0, 0
    masks = torch.zeros(2, 96, 64, dtype=torch.uint8)
    masks[0, 10:50, 8:40], masks[1, 40:90, 20:60] = 1, 1
    boxes = torch.tensor([[8.0, 10, 40, 50], [20, 40, 60, 90]])
    return images, sizes, [{"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks}, nothing()]


def nothing() -> Target:
    masks = torch.zeros(0, 96, 64, dtype=torch.uint8)
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": masks}


@pytest.fixture
def empty() -> list[Target]:
    """Targets of two images without objects."""
    return [nothing(), nothing()]
