"""The R-CNN step of ImageNet LOC (arXiv:1512.03385, appendix C).

"The image region is cropped from a proposal, warped to 224x224 pixels, and fed into the classification network as in
R-CNN. The outputs of this network consist of two sibling fc layers for cls and reg, also in a per-class form."
"""

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbone.errors import UserError
from backbone.inputs import InputConvention
from backbone.nets import Backbone
from backbone.nets.contract import run
from detection.localisation.recipe import RegionOptions
from detection.localisation.regions import CODER, Colour, warp
from detection.nets import policy
from detection.nets.contract import prune


class RegionNet(nn.Module):
    """Warped proposals and the class of each -> how sure it is of that class, and where the box should be."""

    def __init__(self, options: RegionOptions, body: Backbone, classes: int) -> None:
        super().__init__()
        self.options, self.body, self.classes = options, body, classes
        features = body.region_layers().features
        self.cls, self.reg = nn.Linear(features, classes), nn.Linear(features, 4 * classes)
        for layer, deviation in ((self.cls, 0.01), (self.reg, 0.001)):  # Fast R-CNN, section 2.3
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, regions: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised regions [R, 3, S, S] and their classes int64 [R] -> logits [R] and deltas [R, 4], float32."""
        *_, last = self.body(regions).values()
        layers = self.body.region_layers()
        if layers.size:
            last = F.adaptive_avg_pool2d(last, layers.size)
        vectors = run(layers.to_vector, last).float()
        logits = (self.cls.weight[classes] * vectors).sum(1) + self.cls.bias[classes]
        weight = self.reg.weight.view(self.classes, 4, -1)[classes]
        return logits, (weight * vectors[:, None]).sum(2) + self.reg.bias.view(-1, 4)[classes]


def build_regions(options: RegionOptions, net: Backbone, classes: int) -> RegionNet:
    """An R-CNN on a copy of `net`, in training mode; the two last layers' weights are random.

    Raises:
        UserError: `norm` or `freeze_at` do not fit the net, or it has no C5.
    """
    policy.check(options, net, "localiser")
    if "C5" not in net.stages:
        raise UserError(
            f"localiser.kind rcnn: {net.options.name} has {', '.join(net.stages)} and no C5, whose vector is read; "
            "give a backbone of net resnet, plain or vgg"
        )
    body = copy.deepcopy(net).train()
    used = [module for part in body.parts().values() for module in part]
    prune(body, [*used, *body.region_layers().to_vector])
    policy.apply(options, body)
    return RegionNet(options, body, classes)


def losses(
    logits: Tensor, deltas: Tensor, positive: Tensor, targets: Tensor, options: RegionOptions
) -> tuple[Tensor, Tensor]:
    """Losses of scores and of boxes of each region, [R] both: logistic, of the class whose proposal it is, and of
    positive ones smooth L1 of the four numbers. `positive` bool [R], the others as `RegionNet.forward` gives them."""
    scores = F.binary_cross_entropy_with_logits(logits, positive.float(), reduction="none")
    apart = F.smooth_l1_loss(deltas, targets, beta=options.beta, reduction="none").sum(1)
    return scores, apart * positive


@torch.no_grad()
def refine(
    net: RegionNet,
    inputs: InputConvention,
    images: Sequence[np.ndarray | None],
    classes: np.ndarray,
    proposals: Sequence[Sequence[np.ndarray]],
    batch: int,
    channels_last: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Of each image's and class's proposals the one that the net is surest of, moved: float64 [N, J, 4], pixels of the
    file; and how sure it is of each, float64 [N, J] from 0 to 1. Both are 0 for images that are None.

    Args:
        net: in eval mode, on its device.
        inputs: how it wants regions.
        images: uint8 [H, W, 3] of any sides.
        classes: int64 [N, J].
        proposals: [N][J] float64 [P, 4], by `regions.propose`.
        batch: regions that go through the net at once.
        channels_last: memory format.
    """
    device = net.cls.weight.device
    red, green, blue = (round(255 * channel) for channel in inputs.mean)
    padding = net.options.padding * inputs.size // 224
    found, sure = np.zeros((*classes.shape, 4)), np.zeros(classes.shape)
    surest: dict[tuple[int, int], float] = {}
    places: dict[tuple[int, int], np.ndarray] = {}
    for some in _chunks(images, classes, proposals, batch):
        crops = np.stack([_warped(images, one, inputs.size, padding, (red, green, blue)) for one in some])
        normal = inputs.normalize(torch.from_numpy(crops.transpose(0, 3, 1, 2).copy()).to(device))
        if channels_last:
            normal = normal.contiguous(memory_format=torch.channels_last)
        logits, deltas = net(normal, torch.tensor([label for _, label, _ in some], device=device))
        boxes = torch.from_numpy(np.stack([box for _, _, box in some]))
        moved = CODER.decode_single(deltas.double().cpu(), boxes).numpy()
        for (row, label, _), score, box in zip(some, logits.tolist(), moved, strict=True):
            if (row, label) not in places or score > surest[row, label]:
                surest[row, label], places[row, label] = score, box
    for row, image in enumerate(images):
        if image is None:
            continue
        height, width = image.shape[:2]
        for j, label in enumerate(classes[row].tolist()):
            found[row, j] = np.clip(places[row, label], 0, [width, height] * 2)
            sure[row, j] = torch.tensor(surest[row, label]).double().sigmoid()
    return found, sure


_One = tuple[int, int, np.ndarray]  # row of the image, class, box


def _chunks(
    images: Sequence[np.ndarray | None], classes: np.ndarray, proposals: Sequence[Sequence[np.ndarray]], size: int
) -> Iterator[list[_One]]:
    """All proposals, `size` at a time; those of a class that is asked for twice once."""
    some: list[_One] = []
    for row, image in enumerate(images):
        own = dict(zip(classes[row].tolist(), proposals[row], strict=True)) if image is not None else {}
        for label, boxes in own.items():
            for box in boxes:
                some.append((row, label, box))
                if len(some) == size:
                    yield some
                    some = []
    if some:
        yield some


def _warped(images: Sequence[np.ndarray | None], one: _One, size: int, padding: int, colour: Colour) -> np.ndarray:
    image = images[one[0]]
    assert image is not None
    return warp(image, one[2], size, padding, colour)
