"""What a detector costs an image in training: multiply-adds of its layers. Nothing is computed, nothing allocated."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from detection.nets.context import beside_whole
from detection.nets.contract import Detector
from detection.nets.detector import Rcnn
from detection.nets.regions import RegionHead, RegionPool, SharedMaskHeads
from detection.nets.retinanet import Retina
from detection.nets.semantic import Semantic


def macs(detector: Detector, height: int, width: int) -> int:
    """Forward on one image as trained on, padding included; of Faster and Mask R-CNN with as many regions as are
    sampled: `options.roi.batch`.

    In convolutions and fully connected layers; boxes, anchors and suppression are left out. The detector may be on the
    meta device, and has to be of no use afterwards: it is moved there.
    """
    detector = detector.to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        maps = detector.backbone(torch.empty(1, 3, height, width, device="meta"))
        if isinstance(detector, Retina):
            detector.head(list(maps.values()))
        elif isinstance(detector, Semantic):
            detector.head(maps)
        elif isinstance(detector, Rcnn):
            _regions(detector, list(maps.values()))
    return counter.get_total_flops() // 2


def _regions(detector: Rcnn, levels: list[Tensor]) -> None:
    """Run the RPN, and the heads on as many regions as are sampled."""
    options, heads = detector.options, detector.roi_heads
    detector.rpn.head(levels)
    positive = round(options.roi.batch * options.roi.fg_fraction)
    side = _pooled(heads.box_roi_pool)
    regions = torch.empty(options.roi.batch, levels[0].shape[1], side, side, device="meta")
    count = len(regions)
    if heads.context:
        regions = torch.cat([regions, regions[:1]])  # the whole image
    if isinstance(heads, SharedMaskHeads):
        assert isinstance(heads.box_head, RegionHead)
        shared = heads.box_head.to_map(regions)
        vectors = heads.box_head.to_vector(shared)
        heads.mask_predictor(shared[:positive])
    else:
        vectors = heads.box_head(regions)
        if heads.mask_head is not None and heads.mask_predictor is not None:
            side = _pooled(heads.mask_roi_pool)
            regions = torch.empty(positive, levels[0].shape[1], side, side, device="meta")
            heads.mask_predictor(heads.mask_head(regions))
    heads.box_predictor(beside_whole(vectors, [count]) if heads.context else vectors)


def _pooled(pool: Any) -> int:
    """Side of a region's map."""
    size = (pool.pool if isinstance(pool, RegionPool) else pool).output_size
    return size if isinstance(size, int) else size[0]
