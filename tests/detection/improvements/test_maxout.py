"""Maxout over two adjacent scales against a loop written plainly, region by region."""

import pytest
import torch
from torch import Tensor

from backbone.nets import build as build_net
from backbone.options import NetOptions
from detection.improvements.maxout import Pyramid, look_at_pyramid, lower_scale
from detection.improvements.steps import Steps, pick
from detection.improvements.views import look
from detection.nets import Detector, build
from detection.options import DetectorOptions

Image = tuple[Tensor, tuple[int, int]]


@pytest.fixture(scope="module")
def detector() -> Detector:
    fields = {"kind": "c4", "norm": "frozen", "freeze_at": 0, "anchor_sizes": (16, 64, 128), "roi": {"score": 0.2}}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = build_net(NetOptions(net="resnet", depth=18, width=0.125), 1)
        made = build(DetectorOptions.model_validate(fields), net, 3).eval()
        torch.nn.init.normal_(made.roi_heads.box_predictor.cls_score.weight, std=0.1)
    return made


def image(height: int, width: int) -> Image:
    pixels = torch.zeros(1, 3, -(-height // 32) * 32, -(-width // 32) * 32)
    pixels[..., :height, :width] = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height))
    return pixels, (height, width)


def pyramid(detector: Detector, levels: list[Image], mirrored: bool = False) -> Pyramid:
    with torch.no_grad():
        return look_at_pyramid(detector, image(96, 128), levels, (192, 256), mirrored)


def test_which_two_scales() -> None:
    """The region's side comes to just below 224 and above it; beyond the pyramid its ends."""
    sides = torch.tensor([10.0, 111, 112, 113, 223, 224, 225, 900])
    assert lower_scale(sides, [0.5, 1, 2, 4]).tolist() == [2, 2, 2, 1, 1, 1, 0, 0]
    assert lower_scale(sides, [1, 2]).tolist() == [0] * 8


def test_against_a_plain_loop(detector: Detector) -> None:
    view = pyramid(detector, [image(48, 64), image(240, 320), image(288, 384)])
    regions = torch.tensor([[3.0, 4, 20, 30], [5, 5, 125, 90], [0, 0, 128, 96], [40, 10, 70, 50]])
    heads, used = detector.roi_heads, set()
    with torch.no_grad():
        found = view.vectors(regions)
        for region, vector in zip(regions, found, strict=True):
            side = ((region[2] - region[0]) * (region[3] - region[1])).sqrt().item()
            first = 1 if side * 2.5 <= 224 else 0  # scales 0.5, 2.5 and 3
            used.add(first)
            seen = []
            for maps, (height, width) in view.levels[first : first + 2]:
                moved = region * torch.tensor([width / 128, height / 96] * 2)
                seen.append(heads.box_head(heads.box_roi_pool(maps, [moved[None]], [(height, width)]))[0])
            torch.testing.assert_close(vector, torch.maximum(*seen), rtol=1e-4, atol=1e-5)
            assert not torch.allclose(*seen, atol=1e-3)
    assert used == {0, 1}


@pytest.mark.parametrize("mirrored", [False, True])
def test_two_levels_of_the_image_itself_change_nothing(detector: Detector, mirrored: bool) -> None:
    view = pyramid(detector, [image(96, 128)] * 2, mirrored)
    with torch.no_grad():
        plain = look(detector, *image(96, 128), (192, 256), mirrored)
        mine, theirs = pick([view], Steps(True, True)), pick([plain], Steps(True, True))
        assert view.vectors(torch.zeros(0, 4)).shape[0] == 0
    assert len(mine) > 5
    assert torch.equal(mine.boxes, theirs.boxes)
    assert torch.equal(mine.scores, theirs.scores)
