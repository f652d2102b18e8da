"""RetinaNet (arXiv:1708.02002) of torchvision's parts, under torchvision's keys."""

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, batched_nms, box_iou, clip_boxes_to_image
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from backbone.errors import UserError
from backbone.nets import Backbone
from detection.nets import policy
from detection.nets.contract import BoxDetector, Features, prune, to_float
from detection.nets.sampling import BestToo
from detection.options import RetinaOptions

STAGES = ("C3", "C4", "C5")


class Retina(BoxDetector[RetinaOptions]):
    """Classes and boxes of every anchor on P3 to P7.

    Losses are torchvision's, to the last bit, but where no anchor touches an object (see `BestToo`): `classification`,
    the focal loss, and `bbox_regression`. Detections are torchvision's too, but for its class 0, which no annotation
    has: it is left out before the best are chosen.
    """

    def __init__(
        self, options: RetinaOptions, features: Features, anchors: AnchorGenerator, head: RetinaNetHead
    ) -> None:
        super().__init__()
        self.options = options
        self.backbone, self.anchor_generator, self.head = features, anchors, head
        self.matcher = BestToo(options.fg_iou, options.bg_iou)
        self.box_coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
        for part in (head.classification_head, head.regression_head):
            part.register_forward_hook(to_float)

    def forward(
        self, images: Tensor, sides: Sequence[tuple[int, int]], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """See `Detector.forward`."""
        if self.training and targets is None:
            raise ValueError("targets are needed in training")
        maps = self.backbone(images)
        if not self.training:
            return [self.best(*found) for found in self.candidates(maps, images, sides)]
        assert targets is not None
        levels = list(maps.values())
        anchors = self.anchor_generator(_listed(images, sides), levels)
        return self.losses(self.head(levels), anchors, targets)

    def losses(
        self, outputs: dict[str, Tensor], anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Of the head's outputs and each image's anchors [A, 4], which may have no object to be matched with."""
        matched = [
            self.matcher(box_iou(target["boxes"], every))
            if len(target["boxes"])
            else torch.full((len(every),), Matcher.BELOW_LOW_THRESHOLD, dtype=torch.int64, device=every.device)
            for every, target in zip(anchors, targets, strict=True)
        ]
        return self.head.compute_loss(targets, outputs, anchors, matched)

    def candidates(
        self, maps: dict[str, Tensor], images: Tensor, sides: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each image what NMS chooses from, the best of each level: boxes [C, 4] within `sides`, labels and scores
        [C]."""
        levels = list(maps.values())
        outputs = self.head(levels)
        counts = [level.shape[-2] * level.shape[-1] for level in levels]
        each = outputs["cls_logits"].shape[1] // sum(counts)
        counts = [each * count for count in counts]
        anchors = self.anchor_generator(_listed(images, sides), levels)
        found = []
        for i, side in enumerate(sides):
            of_levels = zip(
                outputs["cls_logits"][i].split(counts),
                outputs["bbox_regression"][i].split(counts),
                anchors[i].split(counts),
                strict=True,
            )
            best = [self._level(*level) for level in of_levels]
            boxes, labels, scores = (torch.cat(parts) for parts in zip(*best, strict=True))
            found.append((clip_boxes_to_image(boxes, side), labels, scores))
        return found

    def _level(self, logits: Tensor, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best boxes, labels and scores of a level's anchors [A, 4], with logits [A, K + 1] and deltas [A, 4]."""
        every = logits[:, 1:].sigmoid().flatten()
        above = torch.where(every > self.options.score)[0]
        scores, order = every[above].topk(min(len(above), self.options.pre_nms))
        rows = above[order]
        classes = logits.shape[1] - 1
        at = rows.div(classes, rounding_mode="floor")
        return self.box_coder.decode_single(deltas[at], anchors[at]), rows % classes + 1, scores

    def best(self, boxes: Tensor, labels: Tensor, scores: Tensor) -> dict[str, Tensor]:
        """The detections that NMS within each class leaves of an image's candidates."""
        kept = batched_nms(boxes, scores, labels, self.nms_iou)[: self.most]
        return {"boxes": boxes[kept], "labels": labels[kept], "scores": scores[kept]}

    @property
    def nms_iou(self) -> float:
        """See `Detector.nms_iou`."""
        return self.options.nms

    @property
    def most(self) -> int:
        """See `Detector.most`."""
        return self.options.detections

    def probe(self, images: Tensor) -> dict[str, float]:
        """See `Detector.probe`."""
        maps = self.backbone(images)
        levels = list(maps.values())
        outputs = {name.removesuffix("_regression"): values for name, values in self.head(levels).items()}
        anchors = self.anchor_generator(_listed(images, [(images.shape[-2], images.shape[-1])]), levels)[0]
        right = torch.cat(list(self.anchor_generator.cell_anchors))[:, 2]
        place = torch.arange(1, len(right) + 1)  # so that the order of ratios tells, and which side is which
        values = {**maps, **outputs, "anchors": anchors, "cells": right * place}
        return {name: value.double().std().item() for name, value in values.items()}


def build_retinanet(options: RetinaOptions, net: Backbone, classes: int) -> Retina:
    """`classes` count torchvision's class 0."""
    lacking = [name for name in STAGES if name not in net.stages]
    if lacking:
        raise UserError(
            f"detector.kind retinanet: {net.options.name} has no {' and '.join(lacking)} to make P3 to P7 of; it has "
            f"{', '.join(net.stages)}; use kind fpn"
        )
    net = copy.deepcopy(net).train()
    prune(net, [m for part in net.parts().values() for m in part])
    policy.apply(options, net)
    channels, deepest = options.channels, net.stages["C5"].channels
    top = LastLevelP6P7(channels if options.p6 == "P5" else deepest, channels)
    top.use_P5 = options.p6 == "P5"  # which it infers from channels, and C5 may have as many as the pyramid
    pyramid = FeaturePyramidNetwork([net.stages[name].channels for name in STAGES], channels, top)
    sizes = [octaves(size, options.octaves) for size in options.anchor_sizes]
    anchors = AnchorGenerator(tuple(sizes), (options.anchor_ratios,) * len(sizes))
    norm = partial(nn.GroupNorm, 32) if options.head_norm == "group" else None
    head = RetinaNetHead(channels, anchors.num_anchors_per_location()[0], classes, norm_layer=norm)
    head.regression_head._loss_type = options.box_loss
    return Retina(options, Features(net, pyramid, STAGES), anchors, head)


def octaves(size: float, count: int) -> tuple[float, ...]:
    """The sides of a level's anchors (arXiv:1708.02002, section 4.1), without fractions but in the first, as
    torchvision has them."""
    return (size, *(int(size * 2 ** (i / count)) for i in range(1, count)))


def _listed(images: Tensor, sides: Sequence[tuple[int, int]]) -> ImageList:
    return ImageList(images, [(h, w) for h, w in sides])
