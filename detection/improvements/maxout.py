"""Regions seen at two sizes of the image, of which the stronger features count (arXiv:1512.03385, appendix B, which
follows NoC, arXiv:1504.06066)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detection.improvements.views import RegionView, look, mirror
from detection.nets import Rcnn

CANONICAL = 224.0  # side of a region, pixels, that two adjacent sizes of the image are to enclose (NoC, after SPP-net)

Level = tuple[dict[str, Tensor], tuple[int, int]]
"""Maps of one size of the image, and its height and width without padding."""


@dataclass(frozen=True)
class Pyramid(RegionView):
    """A view whose proposals are those of one size, and whose regions are cut from two of several others.

    The maximum is taken of the vectors that scores and boxes are computed from: for c4 after C5 and pooling over the
    region ("RoI pooling and subsequent layers are performed on the two scales, which are merged by maxout").
    """

    levels: Sequence[Level]  # two or more, the smallest first

    def vectors(self, regions: Tensor) -> Tensor:
        """See `RegionView.vectors`."""
        heads = self.detector.roi_heads
        sides = (regions[:, 2:] - regions[:, :2]).prod(1).clamp(min=0).sqrt()
        ratios = [regions.new_tensor([w / self.sides[1], h / self.sides[0]] * 2) for _, (h, w) in self.levels]
        lower = lower_scale(sides, [float(ratio.prod() ** 0.25) for ratio in ratios])
        found: Tensor | None = None
        for level, ((maps, size), ratio) in enumerate(zip(self.levels, ratios, strict=True)):
            rows = torch.where((lower == level) | (lower == level - 1))[0]
            if len(rows) or level == 0:
                vectors = heads.vectors(maps, [regions[rows] * ratio], [size])
                if found is None:
                    found = vectors.new_full((len(regions), vectors.shape[1]), -torch.inf)
                found[rows] = torch.maximum(found[rows], vectors)
        assert found is not None
        return found


def lower_scale(sides: Tensor, scales: Sequence[float]) -> Tensor:
    """Which of `scales`, ascending, and the one above it see a region: int64 [R].

    The largest at which its side [R], times the scale, is not above 224 pixels; the lowest or the last two of `scales`
    where 224 is beyond them.
    """
    below = sides[:, None] * sides.new_tensor(list(scales)) <= CANONICAL
    return (below.sum(1) - 1).clamp(0, len(scales) - 2)


def look_at_pyramid(
    detector: Rcnn,
    image: tuple[Tensor, tuple[int, int]],
    levels: Sequence[tuple[Tensor, tuple[int, int]]],
    original: tuple[int, int],
    mirrored: bool = False,
) -> Pyramid:
    """As `look`. Proposals come from `image`, pixels and sides, and regions from `levels`, the same at other sizes."""
    base = look(detector, *image, original, mirrored)
    assert isinstance(base, RegionView)
    maps = [(detector.backbone(mirror(each, sides[1]) if mirrored else each), sides) for each, sides in levels]
    return Pyramid(detector, base.maps, base.sides, original, mirrored, base.proposals, maps)
