"""Region heads: torchvision's, with what Fast R-CNN (arXiv:1504.08083) does otherwise as options."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss

from detection.nets.context import beside_whole, with_whole
from detection.nets.sampling import Sampler


class Heads(RoIHeads):
    """RoIHeads, but for `beta` of the smooth L1 loss of boxes, which torchvision has fixed at 1/9, and `context`."""

    mask_predictor: nn.Module
    fg_bg_sampler: Sampler

    def __init__(self, *parts: Any, beta: float, context: bool = False, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self.beta, self.context = beta, context
        self.fg_bg_sampler = Sampler(self.fg_bg_sampler.batch_size_per_image, self.fg_bg_sampler.positive_fraction)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """See torchvision's RoIHeads."""
        if self.training and targets is not None:
            return [], self._losses(features, proposals, image_shapes, targets)
        logits, deltas = self.box_predictor(self.vectors(features, proposals, image_shapes))
        boxes, scores, labels = self.postprocess_detections(logits, deltas, proposals, image_shapes)
        rows = zip(boxes, scores, labels, strict=True)
        found = [{"boxes": box, "scores": score, "labels": label} for box, score, label in rows]
        if self.mask_roi_pool is not None:
            masks = self.predict_masks(features, boxes, labels, image_shapes)
            found = [{**one, "masks": mask} for one, mask in zip(found, masks, strict=True)]
        return found, {}

    def subsample(self, labels: list[Tensor]) -> list[Tensor]:
        """See torchvision's."""
        return [torch.cat(drawn).sort().values for drawn in zip(*self.fg_bg_sampler.indices(labels), strict=True)]

    def vectors(self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Each image's regions [R, 4] -> what their scores and boxes are computed from, [sum of R, features]."""
        if not self.context:
            return self.box_head(self.box_roi_pool(features, boxes, image_shapes))
        regions = self.box_roi_pool(features, with_whole(boxes, image_shapes), image_shapes)
        # All at once: norms that train would else count the images apart from their regions.
        return beside_whole(self.box_head(regions), [len(own) for own in boxes])

    def predict_masks(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        labels: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> list[Tensor]:
        """For each image the masks float32 [D, 1, S, S] of its labels int64 [D], probabilities within boxes [D, 4]."""
        maps: Any = self.mask_head(self.mask_roi_pool(features, boxes, image_shapes))  # ty: ignore
        return list(maskrcnn_inference(self.mask_predictor(maps), labels))

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        proposals, matched, labels, deltas = self.select_training_samples(proposals, targets)
        vectors = self.vectors(features, proposals, image_shapes)
        losses = self._box_losses(*self.box_predictor(vectors), labels, deltas)
        if self.mask_roi_pool is None or self.mask_head is None:
            return losses
        positive = [row > 0 for row in labels]
        boxes = [p[keep] for p, keep in zip(proposals, positive, strict=True)]
        maps = self.mask_head(self.mask_roi_pool(features, boxes, image_shapes))
        return losses | {"loss_mask": self._mask_loss(maps, boxes, matched, positive, targets)}

    def _box_losses(
        self, scores: Tensor, deltas: Tensor, labels: list[Tensor], wanted: list[Tensor]
    ) -> dict[str, Tensor]:
        """torchvision's `fastrcnn_loss`: boxes of positive regions alone, divided by the number of all."""
        label, target = torch.cat(labels), torch.cat(wanted)
        if not label.numel():  # an image without objects that is thinner than rpn.min_size
            return {"loss_classifier": scores.sum(), "loss_box_reg": deltas.sum()}
        positive = torch.where(label > 0)[0]
        found = deltas.reshape(len(scores), -1, 4)[positive, label[positive]]
        boxes = F.smooth_l1_loss(found, target[positive], beta=self.beta, reduction="sum")
        return {"loss_classifier": F.cross_entropy(scores, label), "loss_box_reg": boxes / label.numel()}

    def _mask_loss(
        self,
        maps: Tensor,
        boxes: list[Tensor],
        matched: list[Tensor],
        positive: list[Tensor],
        targets: list[dict[str, Tensor]],
    ) -> Tensor:
        """`maps` and `boxes` are of positive regions alone, `matched` of all."""
        return maskrcnn_loss(
            self.mask_predictor(maps),
            boxes,
            [t["masks"] for t in targets],
            [t["labels"] for t in targets],
            [m[keep] for m, keep in zip(matched, positive, strict=True)],
        )


def box_predictor(features: int, classes: int, init: str) -> FastRCNNPredictor:
    """Scores and boxes of a region; `classes` count the background. `init`: see `Roi.init`."""
    predictor = FastRCNNPredictor(features, classes)
    if init == "normal":  # Fast R-CNN, section 2.3
        for layer, deviation in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)
    return predictor
