"""Kind c4: regions cut from C4, and the part of the net that runs on each of them."""

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import maskrcnn_inference
from torchvision.ops import RoIAlign, RoIPool
from torchvision.ops._utils import convert_boxes_to_roi_format

from backbone.nets import Backbone
from backbone.nets.contract import run
from detection.nets import align
from detection.nets.context import beside_whole, with_whole, without_whole
from detection.nets.heads import Heads


class RegionPool(nn.Module):
    """Cut regions out of C4: maps, each image's boxes [R, 4] in input pixels -> [sum of R, channels, size, size]."""

    def __init__(self, size: int, pooling: str, stride: int) -> None:
        super().__init__()
        self.pool = RoIAlign(size, 1 / stride, align.SAMPLES) if pooling == "align" else RoIPool(size, 1 / stride)

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        if isinstance(self.pool, RoIPool):
            return self.pool(maps["C4"], boxes)
        rois = convert_boxes_to_roi_format(boxes)
        every = torch.arange(len(rois), device=rois.device)
        return align.pool([maps["C4"]], rois, [every], self.pool.output_size, [self.pool.spatial_scale])


class RegionHead(nn.Module):
    """A backbone's `region_layers` as torchvision's `box_head`: regions -> vectors [R, features]."""

    def __init__(self, net: Backbone) -> None:
        super().__init__()
        # In a tuple, so that its weights are not registered here too: they are the detector's `backbone.body`.
        self._net = (net,)

    def forward(self, regions: Tensor) -> Tensor:
        return self.to_vector(self.to_map(regions))

    def to_map(self, regions: Tensor) -> Tensor:
        """Regions of C4 -> their maps of C5."""
        return run(self._net[0].region_layers().to_map, regions)

    def to_vector(self, maps: Tensor) -> Tensor:
        """Maps of C5 -> vectors."""
        return run(self._net[0].region_layers().to_vector, maps)


class SharedMaskHeads(Heads):
    """Heads whose mask predictor reads the C5 maps of the box branch (arXiv:1703.06870, figure 4 left).

    RoIHeads would pool the positive regions again and run C5 on them a second time. With norms that train this would
    count them twice in the statistics, and a batch without positive regions would make those NaN.
    """

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """See torchvision's RoIHeads; masks are [D, 1, S, S], with S twice the side of a region's C5 map."""
        # Without a mask_roi_pool of its own RoIHeads does the boxes only, and refuses training without targets.
        found, losses = super().forward(features, proposals, image_shapes, targets)
        if losses:
            return found, losses
        boxes, labels = ([f[name] for f in found] for name in ("boxes", "labels"))
        masks = self.predict_masks(features, boxes, labels, image_shapes)
        return [{**f, "masks": m} for f, m in zip(found, masks, strict=True)], {}

    def predict_masks(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        labels: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> list[Tensor]:
        """See `Heads.predict_masks`."""
        maps = self.box_head.to_map(self.box_roi_pool(features, boxes, image_shapes))
        return list(maskrcnn_inference(self.mask_predictor(maps), labels))

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        proposals, matched, labels, deltas = self.select_training_samples(proposals, targets)
        regions, counts = proposals, [len(own) for own in proposals]
        if self.context:
            regions = with_whole(proposals, image_shapes)
        maps = self.box_head.to_map(self.box_roi_pool(features, regions, image_shapes))
        vectors = self.box_head.to_vector(maps)
        if self.context:
            vectors, maps = beside_whole(vectors, counts), without_whole(maps, counts)
        losses = self._box_losses(*self.box_predictor(vectors), labels, deltas)
        positive = [row > 0 for row in labels]
        boxes = [p[keep] for p, keep in zip(proposals, positive, strict=True)]
        return losses | {"loss_mask": self._mask_loss(maps[torch.cat(positive)], boxes, matched, positive, targets)}
