"""The semantic branch of Panoptic FPN (arXiv:1901.02446, section 3 and figure 3), alone on the pyramid."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from backbone.errors import UserError
from backbone.nets import Backbone
from detection.data.label_map import IGNORED
from detection.nets import policy
from detection.nets.contract import Detector, Features, prune, to_float
from detection.options import SemanticOptions

GROUPS = 32


class SemanticHead(nn.Module):
    """Each level brought to the finest one's stride, their sum, and the logits of every class there.

    A level of twice the stride of the next takes one more 3x3 convolution, group norm, ReLU and bilinear doubling; the
    finest one takes a single convolution and no doubling.
    """

    def __init__(self, strides: Mapping[str, int], channels: int, width: int, classes: int) -> None:
        """`strides` of the levels, the finest first; `classes` count the background."""
        super().__init__()
        finest = min(strides.values())
        self.levels = nn.ModuleDict(
            {name: _level((stride // finest).bit_length() - 1, channels, width) for name, stride in strides.items()}
        )
        self.predictor = nn.Conv2d(width, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        assert self.predictor.bias is not None
        nn.init.zeros_(self.predictor.bias)

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Maps [N, channels, h, w] by level -> logits [N, classes, H, W] of the finest level's size."""
        first, *others = (part(maps[name]) for name, part in self.levels.items())
        return self.predictor(sum(others, first))


class Semantic(Detector[SemanticOptions]):
    """The class of every pixel. Its loss is `loss_semantic`, the mean cross entropy of all pixels of the micro-batch
    that are not ignored."""

    def __init__(self, options: SemanticOptions, features: Features, head: SemanticHead, stride: int) -> None:
        super().__init__()
        self.options, self.backbone, self.head, self.stride = options, features, head, stride
        head.predictor.register_forward_hook(to_float)

    def forward(
        self, images: Tensor, sides: Sequence[tuple[int, int]], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """See `Detector.forward`."""
        if self.training and targets is None:
            raise ValueError("targets are needed in training")
        logits = self.logits(images)
        if not self.training:
            return [{"logits": each[:, :height, :width]} for each, (height, width) in zip(logits, sides, strict=True)]
        assert targets is not None
        return {"loss_semantic": loss(logits, torch.stack([target["classes"] for target in targets]))}

    def logits(self, images: Tensor) -> Tensor:
        """Float32 [N, C, H, W] of images [N, 3, H, W]."""
        found = self.head(self.backbone(images))
        return F.interpolate(found, scale_factor=float(self.stride), mode="bilinear", align_corners=False)

    def probe(self, images: Tensor) -> dict[str, float]:
        """See `Detector.probe`."""
        maps = self.backbone(images)
        logits = self.head(maps)
        place = torch.arange(1, logits.shape[1] + 1).view(1, -1, 1, 1)  # so that the order of classes tells
        values = {**maps, "logits": logits, "classes": (logits * place).sum(1)}
        return {name: value.double().std().item() for name, value in values.items()}


def loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean cross entropy of logits [N, C, H, W] over the pixels of classes uint8 [N, H, W] that are not `IGNORED`; 0
    where all are."""
    wanted = classes.long()
    total = F.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")
    return total / (wanted != IGNORED).sum().clamp(min=1)


def build_semantic(options: SemanticOptions, net: Backbone, classes: int) -> Semantic:
    """`classes` count the background."""
    strides = {name: stage.stride for name, stage in net.stages.items()}
    finest = min(strides.values())
    odd = [name for name, stride in strides.items() if stride % finest or (stride // finest).bit_count() != 1]
    if odd:
        raise UserError(
            f"detector.kind semantic: {net.options.name} has strides {', '.join(map(str, strides.values()))}; each "
            f"must be a power of two times the first, and that of {odd[0]} is not"
        )
    net = copy.deepcopy(net).train()
    prune(net, [m for part in net.parts().values() for m in part])
    policy.apply(options, net)
    pyramid = FeaturePyramidNetwork([stage.channels for stage in net.stages.values()], options.channels)
    head = SemanticHead(strides, options.channels, options.head_channels, classes)
    return Semantic(options, Features(net, pyramid), head, finest)


def _level(doublings: int, channels: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for k in range(max(1, doublings)):
        layers += [
            nn.Conv2d(width if k else channels, width, 3, padding=1, bias=False),
            nn.GroupNorm(GROUPS, width),
            nn.ReLU(inplace=True),
        ]
        if doublings:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers)
