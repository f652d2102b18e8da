"""Faster and Mask R-CNN: a backbone, a region proposal network and region heads, of torchvision's parts."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from backbone.errors import UserError
from backbone.nets import Backbone
from backbone.nets.contract import run
from backbone.nets.external import External
from detection.nets import policy
from detection.nets.contract import BoxDetector, Detector, Features, prune, to_float
from detection.nets.heads import Heads, box_predictor
from detection.nets.proposals import ProposalHead, Proposals
from detection.nets.regions import RegionHead, RegionPool, SharedMaskHeads
from detection.nets.retinanet import build_retinanet
from detection.nets.sampling import PyramidPool
from detection.nets.semantic import build_semantic
from detection.options import AnyDetector, DetectorOptions, RetinaOptions, SemanticOptions

MASK_CHANNELS = 256  # of the mask branch of kind c4 (arXiv:1703.06870, figure 4 left)


PROBE_BOXES = ((3.0, 5.0, 21.0, 30.0), (40.0, 8.0, 77.0, 70.0), (10.0, 50.0, 120.0, 90.0), (0.0, 0.0, 128.0, 128.0))


class Rcnn(BoxDetector[DetectorOptions]):
    """A Faster R-CNN, or with `options.masks` a Mask R-CNN."""

    def __init__(self, options: DetectorOptions, features: Features, rpn: Proposals, roi_heads: Heads) -> None:
        super().__init__()
        self.options = options
        self.backbone, self.rpn, self.roi_heads = features, rpn, roi_heads
        self.trains = "joint"
        for predictor in (rpn.head, roi_heads.box_predictor, roi_heads.mask_predictor):
            if predictor is not None:
                predictor.register_forward_hook(to_float)

    def forward(
        self,
        images: Tensor,
        sides: Sequence[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
        proposals: list[Tensor] | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """See `Detector.forward`. Masks: S is 28 with kind fpn, twice the side of a region's C5 map with c4 (14 at
        roi.size 14). `proposals`: each image's, float32 [P, 4], in place of its own; it then has no loss of them."""
        if self.training and targets is None:
            raise ValueError("targets are needed in training")
        batch = ImageList(images, [(h, w) for h, w in sides])
        maps, losses = self.backbone(images), {}
        if proposals is None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains != "heads"):
                proposals, losses = self.rpn(batch, maps, targets)
        if not self.training:
            return self.roi_heads(maps, proposals, batch.image_sizes, targets)[0]
        if self.trains == "rpn":
            return losses
        roi_losses = self.roi_heads(maps, proposals, batch.image_sizes, targets)[1]
        return roi_losses if self.trains == "heads" else {**losses, **roi_losses}

    @torch.no_grad()
    def propose(
        self, images: Tensor, sides: Sequence[tuple[int, int]], targets: list[dict[str, Tensor]]
    ) -> list[Tensor]:
        """Each image's proposals, float32 [P, 4], as many as in training. The maps are as in this module's mode."""
        was_training = self.rpn.training
        proposals, _ = self.rpn.train()(ImageList(images, [(h, w) for h, w in sides]), self.backbone(images), targets)
        self.rpn.train(was_training)
        return proposals

    def train_only(self, what: str) -> None:
        """Fix what else there is beside the shared layers and `what`: rpn or heads."""
        self.trains = what
        fixed = list(self.rpn.parameters())
        if what == "rpn":
            fixed = list(self.roi_heads.parameters())
            if self.options.kind == "c4":
                layers = self.backbone.body.region_layers()
                fixed += [p for module in (*layers.to_map, *layers.to_vector) for p in module.parameters()]
        for parameter in fixed:
            parameter.requires_grad_(False)

    @property
    def nms_iou(self) -> float:
        """See `Detector.nms_iou`."""
        return self.roi_heads.nms_thresh

    @property
    def most(self) -> int:
        """See `Detector.most`."""
        return self.roi_heads.detections_per_img

    def probe(self, images: Tensor) -> dict[str, float]:
        """See `Detector.probe`. Of images of 128 pixels: of the maps, of the RPN's anchors and outputs, and of what the
        region head says of four fixed boxes."""
        maps: dict[str, Tensor] = self.backbone(images)
        objectness, deltas = self.rpn.head(list(maps.values()))
        found = {name: values.double().std().item() for name, values in maps.items()}
        for i, (scores, boxes) in enumerate(zip(objectness, deltas, strict=True)):
            found |= {f"objectness{i}": scores.double().std().item(), f"deltas{i}": boxes.double().std().item()}
        sizes = [(images.shape[-2], images.shape[-1])]
        found["anchors"] = self.rpn.anchor_generator(ImageList(images, sizes), list(maps.values()))[0].std().item()
        heads = self.roi_heads
        logits, boxes = heads.box_predictor(heads.vectors(maps, [torch.tensor(PROBE_BOXES)], sizes))
        return found | {"classes": logits.double().std().item(), "boxes": boxes.double().std().item()}


def build(options: AnyDetector, net: Backbone, num_classes: int) -> Detector:
    """Build a detector of `num_classes` classes, background not counted, on a copy of what it needs of `net`.

    Heads get random weights from torch's current generator, on its default device. In training mode.

    Raises:
        UserError: the options do not fit the net.
    """
    policy.check(options, net)
    if isinstance(options, RetinaOptions):
        return build_retinanet(options, net, num_classes + 1)
    if isinstance(options, SemanticOptions):
        return build_semantic(options, net, num_classes + 1)
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


def _fpn(options: DetectorOptions, net: Backbone, classes: int) -> Rcnn:
    levels = len(net.stages) + 1
    if len(options.anchor_sizes) != levels:
        raise UserError(
            f"detector.anchor_sizes has {len(options.anchor_sizes)} sizes; kind fpn on {net.options.name} needs "
            f"{levels}, one for each of its {len(net.stages)} stages and one for the level above"
        )
    prune(net, [m for part in net.parts().values() for m in part])
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
    return Rcnn(options, Features(net, fpn), _rpn(options, channels, [(s,) for s in options.anchor_sizes]), heads)


def _c4(options: DetectorOptions, net: Backbone, classes: int) -> Rcnn:
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
    prune(net, [*(m for part in net.parts().values() for m in part), *head.to_vector])
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
    return Rcnn(options, Features(net, None), _rpn(options, stage.channels, [options.anchor_sizes]), heads)


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


def _pyramid_pool(options: DetectorOptions, net: Backbone, size: int) -> PyramidPool:
    return PyramidPool({name: stage.stride for name, stage in net.stages.items()}, size, options.roi.canonical)
