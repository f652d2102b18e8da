"""The region proposal network: torchvision's, with what Faster R-CNN (arXiv:1506.01497) does otherwise as options."""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import AnchorGenerator, RegionProposalNetwork, RPNHead
from torchvision.ops import batched_nms, clip_boxes_to_image

from detection.nets.sampling import BestToo, Sampler, counts, where
from detection.options import Rpn


class Proposals(RegionProposalNetwork):
    """RegionProposalNetwork, but for `beta`, `min_size` and `inside_only` of the options."""

    fg_bg_sampler: Sampler

    def __init__(self, options: Rpn, anchors: AnchorGenerator, head: RPNHead) -> None:
        super().__init__(
            anchors,
            head,
            options.fg_iou,
            options.bg_iou,
            options.batch,
            options.fg_fraction,
            {"training": options.pre_nms_train, "testing": options.pre_nms_test},
            {"training": options.post_nms_train, "testing": options.post_nms_test},
            options.nms,
        )
        self.options, self.min_size = options, options.min_size
        self.proposal_matcher = BestToo(options.fg_iou, options.bg_iou)
        self.fg_bg_sampler = Sampler(options.batch, options.fg_fraction)

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """See torchvision's."""
        if targets is not None:  # what `assign_targets_to_anchors` needs to know, and is not told
            sides = [torch.tensor([w, h, w, h], device=images.tensors.device) for h, w in images.image_sizes]
            targets = [{**target, "ends": ends} for target, ends in zip(targets, sides, strict=True)]
        return super().forward(images, features, targets)

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Each image's labels [A], 1, 0 or -1, which is left out, and boxes to regress to [A, 4].

        An object's best anchor is sought among those that take part, as in py-faster-rcnn's AnchorTargetLayer.
        """
        if not self.options.inside_only:
            return super().assign_targets_to_anchors(anchors, targets)
        labels, boxes = [], []
        for every, target in zip(anchors, targets, strict=True):
            inside = ((every >= 0) & (every <= target["ends"])).all(1)
            label, box = every.new_full((len(every),), -1.0), every.clone()
            if inside.any():
                found = super().assign_targets_to_anchors([every[inside]], [target])
                label[inside], box[inside] = found[0][0], found[1][0]
            labels.append(label)
            boxes.append(box)
        return labels, boxes

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See torchvision's; what is large enough is counted for all images at once, which waits once."""
        scores = objectness.detach().reshape(len(proposals), -1)
        top = self._get_top_n_idx(scores, num_anchors_per_level)
        levels = torch.cat([top.new_full((n,), level) for level, n in enumerate(num_anchors_per_level)])[top]
        scores = torch.sigmoid(scores.gather(1, top))
        clipped = [
            clip_boxes_to_image(boxes[index], sides)
            for boxes, index, sides in zip(proposals.unbind(), top.unbind(), image_shapes, strict=True)
        ]
        sound = [
            ((boxes[:, 2:] - boxes[:, :2]) >= self.min_size).all(1) & (own >= self.score_thresh)
            for boxes, own in zip(clipped, scores.unbind(), strict=True)
        ]
        found = []
        for i, (boxes, count) in enumerate(zip(clipped, counts(sound), strict=True)):
            index = where(sound[i], count)
            boxes, own = boxes[index], scores[i][index]
            kept = batched_nms(boxes, own, levels[i][index], self.nms_thresh)[: self.post_nms_top_n()]
            found.append((boxes[kept], own[kept]))
        return [boxes for boxes, _ in found], [own for _, own in found]

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """See torchvision's. Zero where no anchor takes part, as in images smaller than all of them."""
        begins = [0, *accumulate(len(label) for label in labels)]
        positive, negative = (
            torch.cat([index + begin for index, begin in zip(rows, begins, strict=False)])
            for rows in self.fg_bg_sampler.indices(labels)
        )
        sampled = torch.cat([positive, negative])
        found, target = pred_bbox_deltas[positive], torch.cat(regression_targets)[positive]
        boxes = F.smooth_l1_loss(found, target, beta=self.options.beta, reduction="sum") / max(1, len(sampled))
        scores, label = objectness.flatten()[sampled], torch.cat(labels)[sampled]
        if not len(sampled):
            return scores.sum(), boxes
        return F.binary_cross_entropy_with_logits(scores, label), boxes


class ProposalHead(RPNHead):
    """RPNHead with `width` channels between the maps' and the predictors (Faster R-CNN on VGG-16: 512)."""

    def __init__(self, in_channels: int, num_anchors: int, width: int) -> None:
        super().__init__(width or in_channels, num_anchors)
        if width:
            first: Any = nn.Conv2d(in_channels, width, 3, padding=1)
            nn.init.normal_(first.weight, std=0.01)  # as RPNHead, and as the paper's (section 3.1.3)
            nn.init.zeros_(first.bias)
            self.conv[0][0] = first  # ty: ignore
