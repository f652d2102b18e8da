"""Which steps are taken, and in which order they make detections out of the views of one image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from detection.improvements.fusion import fuse
from detection.improvements.refinement import REFINED_NMS
from detection.improvements.rows import Rows, pool, suppress
from detection.improvements.views import View
from detection.improvements.voting import vote


@dataclass(frozen=True)
class Steps:
    """What is done beside one look at each image."""

    refine: bool = False
    vote: bool = False
    flip: bool = False
    maxout: bool = False


@dataclass(frozen=True)
class Seen:
    """One image as one detector, alone or of an ensemble, sees it."""

    views: Sequence[View]  # at every scale, mirrored or not
    labels: Tensor  # int64 [K + 1]: the detector's label -> that of the data, 0 where these lack the class

    def found(self, steps: Steps) -> Rows:
        """`pick`, with the data's labels."""
        rows = pick(self.views, steps)
        rows = replace(rows, labels=self.labels[rows.labels])
        return rows.take(rows.labels > 0)

    def masks(self, found: Rows) -> Tensor:
        """Masks float32 [D, 1, S, S] of detections, probabilities within the box: the mean over the views."""
        own = (found.labels[:, None] == self.labels).int().argmax(1)
        return torch.stack([view.masks(found.boxes, own) for view in self.views]).mean(0)


def pick(views: Sequence[View], steps: Steps) -> Rows:
    """Detections, in pixels of the file, from all views of one image by one detector, best first.

    Candidates of all views are pooled, then NMS, then voting. The detector's own IoU of NMS holds, or after refinement
    the paper's.
    """
    detector = views[0].detector
    candidates = pool([view.candidates(steps.refine) for view in views])
    kept = suppress(candidates, REFINED_NMS if steps.refine else detector.nms_iou, detector.most)
    return vote(kept, candidates) if steps.vote else kept


def detections(members: Sequence[Seen], steps: Steps) -> dict[str, Tensor]:
    """One image's boxes, labels, scores and perhaps masks, as a detector gives them, but in the file's pixels and with
    the data's labels.

    Those of several detectors are fused. Masks, where all have them, are predicted in the boxes that all steps have
    left, and are the mean over detectors.
    """
    parts = [seen.found(steps) for seen in members]
    detectors = [seen.views[0].detector for seen in members]
    most = max(detector.most for detector in detectors)
    found = parts[0] if len(parts) == 1 else first(fuse(parts), most)
    found = within(found, members[0].views[0].original)
    output = {"boxes": found.boxes, "labels": found.labels, "scores": found.scores}
    if all(detector.options.masks for detector in detectors):
        output["masks"] = mean([seen.masks(found) for seen in members])
    return output


def mean(masks: Sequence[Tensor]) -> Tensor:
    """The mean of masks float32 [D, 1, S, S], each of whose S may be another, at the largest."""
    side = max(each.shape[-1] for each in masks)
    if not len(masks[0]):  # which cannot be resized
        return masks[0]
    same = [
        each if each.shape[-1] == side else F.interpolate(each, size=(side, side), mode="bilinear") for each in masks
    ]
    return torch.stack(same).mean(0)


def first(rows: Rows, most: int) -> Rows:
    """The first `most` rows, or as many as there are."""
    return Rows(rows.boxes[:most], rows.labels[:most], rows.scores[:most])


def within(rows: Rows, sides: tuple[int, int]) -> Rows:
    """Boxes clipped to an image of height and width `sides`."""
    ends = rows.boxes.new_tensor([sides[1], sides[0]] * 2)
    return replace(rows, boxes=torch.minimum(rows.boxes.clamp(min=0), ends))
