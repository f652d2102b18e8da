"""Detectors: a backbone, a region proposal network and region heads, put together from torchvision's parts."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper

from backbone.errors import UserError
from backbone.nets import Backbone
from backbone.nets.contract import run
from backbone.nets.external import External
from detection.nets import policy
from detection.nets.heads import Heads, box_predictor
from detection.nets.proposals import ProposalHead, Proposals
from detection.nets.regions import RegionHead, RegionPool, SharedMaskHeads
from detection.options import DetectorOptions

MASK_CHANNELS = 256  # of the mask branch of kind c4 (arXiv:1703.06870, figure 4 left)


class Features(nn.Module):
    """Images -> float32 maps: the pyramid's levels C2..C5 and `pool`, or C4 alone where there is no pyramid."""

    def __init__(self, body: Backbone, fpn: FeaturePyramidNetwork | None) -> None:
        super().__init__()
        self.body, self.fpn = body, fpn

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = {"C4": self.body(images, "C4")["C4"]} if self.fpn is None else self.fpn(self.body(images))
        # The anchors take the maps' dtype, and in bfloat16 a coordinate of 800 px is off by 2.
        return {name: level.float() for name, level in maps.items()}


class Detector(nn.Module):
    """A Faster R-CNN, or with `options.masks` a Mask R-CNN."""

    def __init__(self, options: DetectorOptions, features: Features, rpn: Proposals, roi_heads: Heads) -> None:
        super().__init__()
        self.options = options
        self.backbone, self.rpn, self.roi_heads = features, rpn, roi_heads
        for predictor in (rpn.head, roi_heads.box_predictor, roi_heads.mask_predictor):
            if predictor is not None:
                # Layers may run in bfloat16; what is computed from them, boxes, losses and scores, is float32.
                predictor.register_forward_hook(_to_float)

    def forward(
        self, images: Tensor, sides: Sequence[tuple[int, int]], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation.

        Args:
            images: float [N, 3, H, W], normalised by `backbone.inputs`, padded with zeros right and below; H and W are
                multiples of 32, the anchors' strides being H and W over the maps' sizes.
            sides: height and width of each of the N images before padding.
            targets: one dict an image, read in training: boxes float32 [K, 4], x1 y1 x2 y2 in pixels of `images`,
                labels int64 [K] from 1, with `options.masks` masks uint8 [K, H, W]. K may be 0.

        Returns:
            In training: loss_objectness, loss_rpn_box_reg, loss_classifier, loss_box_reg and with masks loss_mask.
            Else for each image: boxes float32 [D, 4] within `sides`, labels int64 [D], scores float32 [D], best first,
            and with masks masks float32 [D, 1, S, S], probabilities inside the box: S is 28 with kind fpn, twice
            the side of a region's C5 map with c4 (14 at roi.size 14).
        """
        if self.training and targets is None:
            raise ValueError("targets are needed in training")
        batch = ImageList(images, [(h, w) for h, w in sides])
        maps = self.backbone(images)
        proposals, losses = self.rpn(batch, maps, targets)
        found, roi_losses = self.roi_heads(maps, proposals, batch.image_sizes, targets)
        return {**losses, **roi_losses} if self.training else found


def build(options: DetectorOptions, net: Backbone, num_classes: int) -> Detector:
    """Build a detector of `num_classes` classes, background not counted, on a copy of what it needs of `net`.

    Heads get random weights from torch's current generator, on its default device. In training mode.

    Raises:
        UserError: the options do not fit the net.
    """
    policy.check(options, net)
    make = _c4 if options.kind == "c4" else _fpn
    return make(options, copy.deepcopy(net).train(), num_classes + 1)


def summary(detector: Detector) -> str:
    """What trains: `53 norms frozen, 0 trained; 1 of 5 parts fixed (stem); 41,745,878 of 41,755,286 parameters train`.

    Frozen batch norms hold no parameters. A group norm is frozen where it lies in a fixed part.
    """
    frozen, trained = policy.count_norms(detector)
    names = list(detector.backbone.body.parts())
    fixed = names[: detector.options.freeze_at]
    which = f" ({', '.join(fixed)})" if fixed else ""
    sizes = [(p.numel(), p.requires_grad) for p in detector.parameters()]
    return (
        f"{frozen} norms frozen, {trained} trained; {len(fixed)} of {len(names)} parts fixed{which}; "
        f"{sum(n for n, trains in sizes if trains):,} of {sum(n for n, _ in sizes):,} parameters train"
    )


def _fpn(options: DetectorOptions, net: Backbone, classes: int) -> Detector:
    levels = len(net.stages) + 1
    if len(options.anchor_sizes) != levels:
        raise UserError(
            f"detector.anchor_sizes has {len(options.anchor_sizes)} sizes; kind fpn on {net.options.name} needs "
            f"{levels}, one for each of its {len(net.stages)} stages and one for the level above"
        )
    _prune(net, [m for part in net.parts().values() for m in part])
    policy.apply(options, net)
    channels, size = options.channels, options.roi.size or 7
    inputs = [stage.channels for stage in net.stages.values()]
    fpn = FeaturePyramidNetwork(inputs, channels, LastLevelMaxPool())
    masks: dict[str, Any] = {}
    if options.masks:
        masks["mask_roi_pool"] = _pyramid_pool(options, net, 14)
        masks["mask_head"] = MaskRCNNHeads(channels, (channels,) * 4, 1)
        masks["mask_predictor"] = MaskRCNNPredictor(channels, channels, classes)
    heads = Heads(
        _pyramid_pool(options, net, size),
        TwoMLPHead(channels * size**2, options.hidden),
        box_predictor(options.hidden * (1 + options.context), classes, options.roi.init),
        **_roi_settings(options),
        **masks,
    )
    return Detector(options, Features(net, fpn), _rpn(options, channels, [(s,) for s in options.anchor_sizes]), heads)


def _c4(options: DetectorOptions, net: Backbone, classes: int) -> Detector:
    if "C5" not in net.stages:
        raise UserError(f"detector.kind c4: {net.options.name} has no C5 to run on regions of C4; use kind fpn")
    head = net.region_layers()
    if options.masks and not head.to_map:
        raise UserError(
            f"detector.masks: regions of {net.options.name} with kind c4 pass through fc6 and fc7, which leave no map "
            "to predict masks from; use kind fpn"
        )
    size = options.roi.size or head.size or 14
    if head.size not in (None, size):
        raise UserError(
            f"detector.roi.size {size}: fc6 of {net.options.name} reads {head.size}x{head.size} cells; give {head.size}"
        )
    if isinstance(net, External):
        _check_regions(net, size)
    _prune(net, [*(m for part in net.parts().values() for m in part), *head.to_vector])
    policy.apply(options, net)
    stage = net.stages["C4"]
    # The mask branch is the C5 maps of the box branch, then a deconvolution and a 1x1 convolution.
    masks = {"mask_predictor": MaskRCNNPredictor(net.stages["C5"].channels, MASK_CHANNELS, classes)}
    heads = (SharedMaskHeads if options.masks else Heads)(
        RegionPool(size, options.roi.pooling, stage.stride),
        RegionHead(net),
        box_predictor(head.features * (1 + options.context), classes, options.roi.init),
        **_roi_settings(options),
        **(masks if options.masks else {}),
    )
    return Detector(options, Features(net, None), _rpn(options, stage.channels, [options.anchor_sizes]), heads)


@torch.no_grad()
def _check_regions(net: External, size: int) -> None:
    """UserError where the last stage cannot run on regions of C4, as that of a net made for images of one size."""
    net.eval()  # so that it leaves no trace in the statistics
    region = torch.zeros(1, net.stages["C4"].channels, size, size, device=next(net.parameters()).device)
    try:
        found = list(run(net.region_layers().to_map, region).shape)
    except Exception as error:  # each net of a thousand refuses in its own way
        found = " ".join(str(error).split())[:200]
    net.train()
    if found != [1, net.stages["C5"].channels, -(-size // 2), -(-size // 2)]:
        raise UserError(
            f"detector.kind c4: the last stage of {net.options.name} cannot run on regions of {size}x{size} cells: "
            f"{found}; use kind fpn, or another roi.size"
        )


def _rpn(options: DetectorOptions, channels: int, sizes: list[tuple[float, ...]]) -> Proposals:
    """`sizes`: those of each level."""
    anchors = AnchorGenerator(tuple(sizes), (options.anchor_ratios,) * len(sizes))
    head = ProposalHead(channels, anchors.num_anchors_per_location()[0], options.rpn.channels)
    return Proposals(options.rpn, anchors, head)


def _roi_settings(options: DetectorOptions) -> dict[str, Any]:
    roi = options.roi
    return {
        "fg_iou_thresh": roi.fg_iou,
        "bg_iou_thresh": roi.bg_iou,
        "batch_size_per_image": roi.batch,
        "positive_fraction": roi.fg_fraction,
        "bbox_reg_weights": None,  # torchvision's: 10, 10, 5, 5
        "score_thresh": roi.score,
        "nms_thresh": roi.nms,
        "detections_per_img": roi.detections,
        "beta": roi.beta,
        "context": options.context,
    }


def _pyramid_pool(options: DetectorOptions, net: Backbone, size: int) -> MultiScaleRoIAlign:
    pool = MultiScaleRoIAlign(list(net.stages), size, sampling_ratio=2)
    # Left alone it infers the strides from its first batch and keeps them. It compares padded maps with unpadded images
    # there: where those are below 68 px it can be wrong, and then for good.
    strides = [stage.stride for stage in net.stages.values()]
    canonical: Any = options.roi.canonical  # annotated as int, used as a divisor
    pool.scales = [1 / s for s in strides]
    pool.map_levels = LevelMapper(strides[0].bit_length() - 1, strides[-1].bit_length() - 1, canonical)
    return pool


def _prune(module: nn.Module, used: list[nn.Module]) -> None:
    """Drop what is not among `used` or inside it: a parameter that never has a gradient would stop DDP."""
    kept = {id(m) for m in used}
    for name, child in list(module.named_children()):
        if id(child) not in kept:
            _prune(child, used)
            if not any(True for _ in child.children()):
                delattr(module, name)


def _to_float(module: nn.Module, inputs: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float()
    return type(output)(_to_float(module, inputs, part) for part in output)
