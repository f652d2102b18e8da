"""Which steps are taken, and in which order they make detections out of the views of one image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

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


def pick(views: Sequence[View], steps: Steps) -> Rows:
    """Detections, in pixels of the file, from all views of one image by one detector, best first.

    Candidates of all views are pooled, then NMS, then voting. The detector's own IoU of NMS holds, or after refinement
    the paper's.
    """
    heads = views[0].detector.roi_heads
    candidates = pool([view.candidates(steps.refine) for view in views])
    kept = suppress(candidates, REFINED_NMS if steps.refine else heads.nms_thresh, heads.detections_per_img)
    return vote(kept, candidates) if steps.vote else kept


def mean_masks(views: Sequence[View], found: Rows) -> Tensor:
    """Masks float32 [D, 1, S, S] of detections, probabilities within the box: the mean over all views of the image."""
    return torch.stack([view.masks(found.boxes, found.labels) for view in views]).mean(0)


def detections(views: Sequence[View], steps: Steps) -> dict[str, Tensor]:
    """One image's boxes, labels, scores and perhaps masks, as a detector gives them, but in the file's pixels.

    Masks are predicted in the boxes that all steps have left.
    """
    found = within(pick(views, steps), views[0].original)
    masks = {"masks": mean_masks(views, found)} if views[0].detector.options.masks else {}
    return {"boxes": found.boxes, "labels": found.labels, "scores": found.scores, **masks}


def within(rows: Rows, sides: tuple[int, int]) -> Rows:
    """Boxes clipped to an image of height and width `sides`."""
    ends = rows.boxes.new_tensor([sides[1], sides[0]] * 2)
    return replace(rows, boxes=torch.minimum(rows.boxes.clamp(min=0), ends))
