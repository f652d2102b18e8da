"""A per-class region proposal network (arXiv:1512.03385, appendix C).

"This RPN ends with two sibling 1x1 convolutional layers for binary classification (cls) and box regression (reg) ...
both in a per-class form": for each of A anchors at each place, cls has a logit and reg four numbers for each of K
classes.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou

from backbone.errors import UserError
from backbone.nets import Backbone
from detection.localisation.recipe import LocaliserOptions
from detection.nets import policy
from detection.nets.contract import prune

CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))


class Localiser(nn.Module):
    """Images and the classes that are asked for -> a score and a box for each anchor and class.

    Only the layers of those classes are computed: of a thousand classes an image has one in training, five in tests.
    """

    def __init__(self, options: LocaliserOptions, body: Backbone, classes: int) -> None:
        super().__init__()
        self.options, self.body, self.classes = options, body, classes
        stage = body.stages[options.stage]
        self.stride = stage.stride
        width = options.channels or stage.channels
        self.conv: nn.Module = nn.Identity()
        if options.channels:
            self.conv = nn.Sequential(nn.Conv2d(stage.channels, width, 3, padding=1), nn.ReLU(inplace=True))
        self.grids: dict[tuple[int, int], tuple[int, int]] = {}
        """Sides of the images seen -> of their maps, which VGG rounds down and residual nets round up."""

        self.each = len(options.anchor_sizes) * len(options.anchor_ratios)
        self.cls = nn.Conv2d(width, classes * self.each, 1)
        self.reg = nn.Conv2d(width, classes * self.each * 4, 1)
        for layer in (self.conv, self.cls, self.reg):
            for module in layer.modules():
                if isinstance(module, nn.Conv2d):  # as in Faster R-CNN, section 3.1.3
                    nn.init.normal_(module.weight, std=0.01)
                    assert module.bias is not None
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [N, 3, H, W] and classes int64 [N, J] -> logits [N, J, M] and deltas [N, J, M, 4], float32,
        for the M anchors of `anchors`."""
        maps = self.conv(self.body(images, self.options.stage)[self.options.stage])
        self.grids[images.shape[-2], images.shape[-1]] = maps.shape[-2], maps.shape[-1]
        maps = maps.flatten(2)
        parts = []
        for layer, numbers in ((self.cls, 1), (self.reg, 4)):
            assert layer.bias is not None
            weight = layer.weight.view(self.classes, self.each * numbers, -1)[classes]
            bias = layer.bias.view(self.classes, self.each * numbers)[classes]
            found = torch.einsum("njac,ncp->njpa", weight, maps).float() + bias[:, :, None].float()
            parts.append(found.flatten(2).unflatten(2, (-1, numbers)))
        return parts[0][..., 0], parts[1]

    def anchors(self, height: int, width: int) -> Tensor:
        """Anchors of images of this size, float32 [M, 4], x1 y1 x2 y2 in pixels, some beyond the image: place by place,
        row by row. An anchor's centre is a place times the stride, where its receptive field has its own."""
        device = self.cls.weight.device
        ratios = torch.tensor(self.options.anchor_ratios, device=device).sqrt()[:, None]
        sizes = torch.tensor(self.options.anchor_sizes, device=device)[None]
        half = torch.stack([sizes / ratios, sizes * ratios], -1).reshape(-1, 2) / 2  # width, height
        up = -(-height // self.stride), -(-width // self.stride)  # of sizes that no image had yet
        rows, columns = self.grids.get((height, width), up)
        y, x = torch.meshgrid(*(torch.arange(n, device=device) for n in (rows, columns)), indexing="ij")
        centres = self.stride * torch.stack([x, y], -1).reshape(-1, 1, 2).float()
        return torch.cat([centres - half, centres + half], -1).reshape(-1, 4)


def build(options: LocaliserOptions, net: Backbone, classes: int) -> Localiser:
    """A localiser on a copy of what it needs of `net`, in training mode; the new layers' weights are random.

    Raises:
        UserError: the net has no such stage, or `norm` or `freeze_at` do not fit it.
    """
    policy.check(options, net, "localiser")
    if options.stage not in net.stages:
        raise UserError(f"localiser.stage {options.stage}: {net.options.name} has {', '.join(net.stages)}")
    body = copy.deepcopy(net).train()
    parts = body.parts()
    prune(body, [module for part in parts.values() for module in part])
    beyond = list(parts)[list(parts).index(options.stage) + 1 :]
    unused = {id(module) for name in beyond for module in parts[name]}
    for name, module in list(body.named_modules()):
        if id(module) in unused:
            body.set_submodule(name, nn.Identity())
    policy.apply(options, body)
    return Localiser(options, body, classes)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """What regression is to say so that anchors become boxes, [..., 4] all (arXiv:1311.2524, appendix C)."""
    boxes, anchors = torch.broadcast_tensors(boxes, anchors)
    return CODER.encode_single(boxes.reshape(-1, 4), anchors.reshape(-1, 4)).reshape(boxes.shape)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """What anchors [..., 4] become by deltas [..., 4]: boxes x1 y1 x2 y2."""
    deltas, anchors = torch.broadcast_tensors(deltas, anchors)
    return CODER.decode_single(deltas.reshape(-1, 4), anchors.reshape(-1, 4)).reshape(deltas.shape)


def losses(
    logits: Tensor, deltas: Tensor, anchors: Tensor, boxes: Tensor, counts: Tensor, options: LocaliserOptions
) -> tuple[Tensor, Tensor]:
    """Losses of scores and of boxes of each image, [N] both, over the anchors drawn for it.

    The paper takes 8 anchors an image, half of them positive. It does not say which of an anchor's thousand logistic
    outputs are trained; here that of the image's own class, since all others would be negatives, hundreds to one, which
    the equal halves are to prevent.

    Args:
        logits: [N, M], of the image's own class.
        deltas: [N, M, 4].
        anchors: [M, 4].
        boxes: [N, G, 4], objects of that class, the first `counts` of each image.
        counts: int64 [N]; 0 leaves negatives alone.
        options: thresholds and counts.
    """
    rows, positive, drawn, which = draw(anchors, boxes, counts, options)
    scores = F.binary_cross_entropy_with_logits(logits.gather(1, rows), positive.float(), reduction="none")
    total = drawn.sum(1).clamp(min=1)
    every = rows[..., None].expand(-1, -1, 4)
    found, at = deltas.gather(1, every), anchors[rows]
    matched = boxes.gather(1, which.gather(1, rows)[..., None].expand(-1, -1, 4))
    target = encode(torch.where(positive[..., None], matched, at), at)  # of negatives nothing is asked
    apart = F.smooth_l1_loss(found, target, beta=options.beta, reduction="none").sum(-1)
    return (scores * drawn).sum(1) / total, (apart * positive).sum(1) / total


def draw(
    anchors: Tensor, boxes: Tensor, counts: Tensor, options: LocaliserOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which anchors take part, by torch's current generator.

    Positive are those at `fg_iou` or more of an object and the best of each object, negative those below `bg_iou` of
    all.

    Returns:
        rows int64 [N, S] of the anchors, positive and drawn bool [N, S], where what is not drawn fills up; and the
        object that each anchor is nearest to, int64 [N, M].
    """
    images, most = boxes.shape[:2]
    iou = box_iou(boxes.flatten(0, 1), anchors).unflatten(0, boxes.shape[:2])
    there = torch.arange(most, device=boxes.device) < counts[:, None]
    iou = torch.where(there[..., None], iou, -1.0)
    best, which = iou.max(1)
    of_object = iou.amax(2, keepdim=True)
    positive = (best >= options.fg_iou) | ((iou == of_object) & (of_object > 0)).any(1)
    negative = (best < options.bg_iou) & ~positive
    luck = torch.rand(images, len(anchors), device=boxes.device)
    half, every = min(options.anchors // 2, len(anchors)), min(options.anchors, len(anchors))
    ahead, right = torch.where(positive, luck, -1.0).topk(half)
    others, wrong = torch.where(negative, luck, -1.0).topk(every)
    is_positive = ahead >= 0
    room = options.anchors - is_positive.sum(1, keepdim=True)
    is_negative = (others >= 0) & (torch.arange(every, device=boxes.device) < room)
    rows, drawn = torch.cat([right, wrong], 1), torch.cat([is_positive, is_negative], 1)
    return rows, torch.cat([is_positive, torch.zeros_like(is_negative)], 1), drawn, which
