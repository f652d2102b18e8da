"""A detector from an image's pixels to its detections, in operations that ONNX has and with sizes that are tensors.

What torchvision does with Python's own branches (suppression in one of two ways by the number of boxes, levels by
their number of regions) is put otherwise here: as many candidates as the options say, those that do not count with
score -1, and ONNX's suppression of each class by itself. The layers are the detector's own.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import MultiScaleRoIAlign, nms, roi_align

from detection import artifact
from detection.data.loader import DIVISOR
from detection.interop.resize import resize, target_size
from detection.nets import Rcnn, Retina
from detection.nets.heads import Heads

SMALLEST = 1e-2  # pixels of the net's input: detections with a shorter side are dropped, as torchvision does
OUT = -1.0  # the score of what does not count


class Whole(nn.Module):
    """Image uint8 RGB [H, W, 3] -> boxes float32 [D, 4], x1 y1 x2 y2 in its pixels, labels int64 [D], scores
    float32 [D], best first, and of a Mask R-CNN masks float32 [D, S, S], probabilities inside the box."""

    mean: Tensor
    std: Tensor

    def __init__(self, loaded: artifact.Loaded) -> None:
        super().__init__()
        self.detector, self.sides = loaded.detector, (loaded.inputs.size, loaded.longer_side)
        self.flip = loaded.inputs.channel_order == "BGR"
        for name, values in (("mean", loaded.inputs.mean), ("std", loaded.inputs.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        sides = torch._shape_as_tensor(image)[:2]
        target = target_size(sides, *self.sides)
        x = resize(image, target).permute(2, 0, 1)[None]
        x = (x / 255 - self.mean) / self.std
        x = x.flip(1) if self.flip else x
        padded = torch.ceil(target / DIVISOR) * DIVISOR
        below = (padded - target).long()
        x = F.pad(x, [0, below[1], 0, below[0]])  # ty: ignore[invalid-argument-type]  (tensors, so that they are traced)
        detector, ends = self.detector, target.flip(0).repeat(2).float()
        masks: tuple[Tensor, ...] = ()
        if isinstance(detector, Retina):
            boxes, labels, scores = _dense(detector, detector.backbone(x), padded, ends)
        else:
            assert isinstance(detector, Rcnn)
            maps = detector.backbone(x)
            boxes, labels, scores = _of_regions(detector, maps, proposals(detector, maps, padded, ends), ends)
            if detector.options.masks:
                masks = (_masks(detector.roi_heads, maps, boxes, labels),)
        ratio = (sides.double() / target).flip(0).repeat(2)
        whole = sides.flip(0).repeat(2).double()
        boxes = torch.minimum((boxes.double() * ratio).clamp(min=0), whole).float()
        return boxes, labels, scores, *masks


def proposals(detector: Rcnn, maps: dict[str, Tensor], padded: Tensor, ends: Tensor) -> Tensor:
    """Regions float32 [P, 4] within `ends`, best first: what `Proposals` gives."""
    rpn, options = detector.rpn, detector.options.rpn
    levels = list(maps.values())
    objectness, deltas = rpn.head(levels)
    of_levels = anchors(rpn.anchor_generator, levels, padded)
    found = [_best(*level, rpn, ends) for level in zip(objectness, deltas, of_levels, strict=True)]
    boxes, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
    kept = torch.cat(
        [_suppressed(own, score, options.nms) + i * options.pre_nms_test for i, (own, score) in enumerate(found)]
    )
    order = _order(scores[kept])[: options.post_nms_test]
    return boxes[kept[order]]


def _best(objectness: Tensor, deltas: Tensor, every: Tensor, rpn: Any, ends: Tensor) -> tuple[Tensor, Tensor]:
    """A level's best `pre_nms_test` boxes with their scores; what is missing to as many has score -1."""
    count, each = rpn.options.pre_nms_test, objectness.shape[1]
    flat = objectness[0].permute(1, 2, 0).reshape(-1)
    deltas = deltas[0].view(each, 4, *deltas.shape[2:]).permute(2, 3, 0, 1).reshape(-1, 4)
    top, at = _top(flat, count)
    there = at < torch._shape_as_tensor(flat)[0]
    at = torch.where(there, at, torch.zeros_like(at))
    boxes = _clipped(rpn.box_coder.decode_single(deltas[at], every[at]), ends)
    return boxes, torch.where(there & _large(boxes, rpn.min_size), top.sigmoid(), torch.full_like(top, OUT))


def _of_regions(
    detector: Rcnn, maps: dict[str, Tensor], regions: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, labels and scores of regions [P, 4]: what `Heads` gives."""
    heads = detector.roi_heads
    if heads.context:
        own = heads.box_head(
            _pooled(heads.box_roi_pool, maps, torch.cat([regions, torch.cat([torch.zeros(2), ends[2:]])[None]]))
        )
        vectors = torch.cat([own[:-1], own[-1:].expand_as(own[:-1])], 1)
    else:
        vectors = heads.box_head(_pooled(heads.box_roi_pool, maps, regions))
    logits, deltas = heads.box_predictor(vectors)
    classes = logits.shape[1]
    scores = F.softmax(logits, -1)[:, 1:].t()  # [K, P]
    deltas = deltas.view(-1, classes, 4)[:, 1:].permute(1, 0, 2)
    boxes = _clipped(_decoded(heads.box_coder, deltas, regions), ends)  # [K, P, 4]
    scores = torch.where(_large(boxes, SMALLEST), scores, torch.full_like(scores, OUT))
    chosen = Suppress.apply(boxes, scores[:, None], heads.nms_thresh, heads.score_thresh)
    label, at = chosen[:, 0], chosen[:, 2]
    order = _order(scores[label, at])[: heads.detections_per_img]
    label, at = label[order], at[order]
    return boxes[label, at], label + 1, scores[label, at]


def _masks(heads: Heads, maps: dict[str, Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
    """Probabilities [D, S, S] within boxes [D, 4]."""
    if heads.mask_roi_pool is None:  # kind c4: of the C5 maps of the box branch
        of_boxes: Any = heads.box_head
        logits = heads.mask_predictor(of_boxes.to_map(_pooled(heads.box_roi_pool, maps, boxes)))
    else:
        mask_head: Any = heads.mask_head
        logits = heads.mask_predictor(mask_head(_pooled(heads.mask_roi_pool, maps, boxes)))
    rows = torch.arange(torch._shape_as_tensor(labels)[0])  # ty: ignore[no-matching-overload]
    return logits[rows, labels].sigmoid()


def _dense(detector: Retina, maps: dict[str, Tensor], padded: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, labels and scores: what `Retina` gives."""
    options, levels = detector.options, list(maps.values())
    parts = []
    for level, every in zip(levels, anchors(detector.anchor_generator, levels, padded), strict=True):
        outputs = detector.head([level])
        logits, deltas = outputs["cls_logits"][0, :, 1:], outputs["bbox_regression"][0]
        classes = logits.shape[1]
        flat = logits.reshape(-1)
        scores, at = _top(flat, options.pre_nms)
        there = at < torch._shape_as_tensor(flat)[0]
        at = torch.where(there, at, torch.zeros_like(at))
        row = torch.div(at, classes, rounding_mode="floor")
        boxes = detector.box_coder.decode_single(deltas[row], every[row])
        scores = torch.where(there, scores.sigmoid(), torch.full_like(scores, OUT))
        parts.append((_clipped(boxes, ends), at - row * classes, scores))
    boxes, labels, scores = (torch.cat(part) for part in zip(*parts, strict=True))
    of_class = torch.arange(classes)[:, None] == labels
    each = torch.where(of_class, scores, torch.full_like(scores, OUT))
    kept = Suppress.apply(boxes[None], each[None], options.nms, options.score)[:, 2]
    kept = kept[_order(scores[kept])[: options.detections]]
    return boxes[kept], labels[kept] + 1, scores[kept]


def anchors(generator: Any, levels: list[Tensor], padded: Tensor) -> list[Tensor]:
    """Each level's anchors float32 [h w A, 4] on an image of float64 sides `padded`: what AnchorGenerator gives."""
    found = []
    for cells, level in zip(generator.cell_anchors, levels, strict=True):
        grid = torch._shape_as_tensor(level)[2:]
        strides = torch.floor(padded / grid.double())
        y, x = (torch.arange(grid[i]).double() * strides[i] for i in range(2))  # ty: ignore[no-matching-overload]
        rows, columns = y[:, None] + torch.zeros_like(x), torch.zeros_like(y)[:, None] + x
        shifts = torch.stack([columns, rows, columns, rows], -1).view(-1, 1, 4).float()
        found.append((shifts + cells.float()[None]).reshape(-1, 4))
    return found


def _pooled(pool: Any, maps: dict[str, Tensor], regions: Tensor) -> Tensor:
    """The maps of regions [R, 4]: what MultiScaleRoIAlign and RegionPool give."""
    rows = torch.cat([torch.zeros_like(regions[:, :1]), regions], 1)
    if not isinstance(pool, MultiScaleRoIAlign):
        return pool.pool(maps["C4"], rows)
    assert pool.map_levels is not None
    assert pool.scales is not None
    level = pool.map_levels([regions])
    parts, places = [], []
    for i, (name, scale) in enumerate(zip(pool.featmap_names, pool.scales, strict=True)):
        here = (level == i).nonzero()[:, 0]
        parts.append(roi_align(maps[name], rows[here], pool.output_size, scale, pool.sampling_ratio))
        places.append(here)
    return torch.cat(parts)[torch.argsort(torch.cat(places))]


def _decoded(coder: Any, deltas: Tensor, regions: Tensor) -> Tensor:
    """Boxes [K, P, 4] of deltas [K, P, 4] from regions [P, 4]."""
    classes = deltas.shape[0]
    every = regions[None].expand(classes, -1, -1).reshape(-1, 4)
    return coder.decode_single(deltas.reshape(-1, 4), every).reshape(classes, -1, 4)


def _clipped(boxes: Tensor, ends: Tensor) -> Tensor:
    return torch.minimum(boxes.clamp(min=0), ends)


def _large(boxes: Tensor, side: float) -> Tensor:
    return ((boxes[..., 2:] - boxes[..., :2]) >= side).all(-1)


def _top(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of values [n] and where they are; beyond n where there are fewer."""
    return torch.cat([values, values.new_full((count,), -torch.inf)]).topk(count)


def _order(scores: Tensor) -> Tensor:
    return torch.argsort(scores, descending=True)


def _suppressed(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Indices int64 of those boxes [C, 4] of score 0 or more that no better one overlaps by more than `iou`."""
    return Suppress.apply(boxes[None], scores[None, None], iou, -0.5)[:, 2]


class Suppress(torch.autograd.Function):
    """ONNX's NonMaxSuppression: of boxes [B, C, 4] and scores [B, K, C] the rows (b, k, c), int64 [n, 3], that are left
    of those with a score above `score`, each k of each b by itself."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, iou: float, score: float) -> Tensor:
        rows = []
        for b in range(scores.shape[0]):
            for k in range(scores.shape[1]):
                above = torch.where(scores[b, k] > score)[0]
                kept = above[nms(boxes[b, above], scores[b, k, above], iou)]
                rows.append(torch.stack([torch.full_like(kept, b), torch.full_like(kept, k), kept], 1))
        return torch.cat(rows)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, iou: float, score: float) -> Any:
        def constant(value: Any, dtype: torch.dtype) -> Any:
            return g.op("Constant", value_t=torch.tensor([value], dtype=dtype))

        most = constant(2**62, torch.int64)
        return g.op(
            "NonMaxSuppression", boxes, scores, most, constant(iou, torch.float32), constant(score, torch.float32)
        )
