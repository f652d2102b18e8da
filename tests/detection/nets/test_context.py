"""Global context against the paper's words written plainly; without it, against torchvision's own heads to the bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads

from backbone.training.recipe import identity
from detection.improvements.maxout import look_at_pyramid
from detection.improvements.views import look
from detection.nets import Detector
from detection.nets.context import beside_whole, with_whole, without_whole
from detection.nets.count import macs
from tests.detection.conftest import recipe

Make = Callable[..., Detector]
Batch = tuple[Tensor, list[tuple[int, int]], list[dict[str, Tensor]]]
KINDS = pytest.mark.parametrize("kind", ["fpn", "c4"])
MASKS = pytest.mark.parametrize("masks", [False, True])


def test_the_whole_image_is_one_more_region_and_stands_beside_each() -> None:
    boxes = [torch.rand(2, 4), torch.zeros(0, 4), torch.rand(1, 4)]
    regions = with_whole(boxes, [(10, 20), (30, 40), (50, 60)])
    assert [own[-1].tolist() for own in regions] == [[0, 0, 20, 10], [0, 0, 40, 30], [0, 0, 60, 50]]
    assert [len(own) for own in regions] == [3, 1, 2]
    rows = torch.arange(6.0)[:, None]  # two regions and their image, an image alone, a region and its image
    assert beside_whole(rows, [2, 0, 1]).tolist() == [[0, 2], [1, 2], [4, 5]]
    assert without_whole(rows, [2, 0, 1]).tolist() == [[0], [1], [4]]


@KINDS
@MASKS
@torch.no_grad()
def test_scores_and_boxes_come_from_region_and_image_side_by_side(
    kind: str, masks: bool, detector: Make, batch: Batch, shake: Callable[[nn.Module], None]
) -> None:
    made = detector({"depth": 18}, kind=kind, masks=masks, context=True).eval()
    shake(made)
    images, sides, _ = batch
    maps, heads = made.backbone(images), made.roi_heads
    boxes = [torch.tensor([[3.0, 4, 40, 50], [0, 0, 64, 96]]), torch.tensor([[10.0, 20, 60, 70]])]
    found = heads.vectors(maps, boxes, sides)
    plain: list[Tensor] = []
    for i, (own, (height, width)) in enumerate(zip(boxes, sides, strict=True)):
        one = {name: level[i : i + 1] for name, level in maps.items()}
        (image,) = heads.box_head(heads.box_roi_pool(one, [torch.tensor([[0.0, 0, width, height]])], [sides[i]]))
        for region in own:
            (vector,) = heads.box_head(heads.box_roi_pool(one, [region[None]], [sides[i]]))
            plain.append(torch.cat([vector, image]))
    torch.testing.assert_close(found, torch.stack(plain), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1, : found.shape[1] // 2], found[1, found.shape[1] // 2 :])  # the image itself
    assert heads.box_predictor.cls_score.in_features == found.shape[1]


@KINDS
@MASKS
def test_it_trains_in_both_halves_and_sees_images_without_objects(
    kind: str, masks: bool, detector: Make, batch: Batch, empty: list[dict[str, Tensor]]
) -> None:
    made = detector({"depth": 18}, kind=kind, masks=masks, context=True, norm="trainable")
    images, sides, targets = batch
    losses = made(images, sides, targets)
    assert isinstance(losses, dict)
    torch.stack(list(losses.values())).sum().backward()
    gradient = made.roi_heads.box_predictor.cls_score.weight.grad
    assert gradient is not None
    half = gradient.shape[1] // 2
    assert gradient[:, :half].abs().sum() > 0
    assert gradient[:, half:].abs().sum() > 0
    without = detector({"depth": 18}, kind=kind, masks=masks, norm="trainable")
    assert losses.keys() == without(images, sides, targets).keys()
    assert all(value.isfinite() for value in made(images, sides, empty).values())


@KINDS
@MASKS
@torch.no_grad()
def test_off_it_is_what_torchvisions_heads_find_to_the_last_bit(
    kind: str, masks: bool, detector: Make, batch: Batch, shake: Callable[[nn.Module], None]
) -> None:
    """torchvision's own `forward`, which was inherited before there was a choice."""
    made = detector({"depth": 18}, kind=kind, masks=masks, roi={"score": 0.01}).eval()
    shake(made)
    images, sides, _ = batch
    found = made(images, sides)
    maps = made.backbone(images)
    proposals, _ = made.rpn(ImageList(images, sides), maps)
    theirs, _ = RoIHeads.forward(made.roi_heads, maps, proposals, sides)
    assert sum(len(one["boxes"]) for one in theirs) > 5
    for mine, their in zip(found, theirs, strict=True):
        assert mine.keys() - {"masks"} == their.keys() - {"masks"}
        assert all(torch.equal(mine[key], their[key]) for key in their)


@torch.no_grad()
def test_every_step_of_a_detection_entry_goes_by_it(detector: Make) -> None:
    """Refinement, flips and scales read `View.vectors`, maxout `Pyramid.vectors`."""
    made = detector({"depth": 18}, kind="c4", context=True).eval()
    image, sides = torch.randn(1, 3, 96, 64), (96, 64)
    regions = torch.tensor([[3.0, 4, 40, 50], [5, 6, 20, 30]])
    expected = made.roi_heads.vectors(made.backbone(image), [regions], [sides])
    torch.testing.assert_close(look(made, image, sides, sides).vectors(regions), expected)
    pyramid = look_at_pyramid(made, (image, sides), [(image, sides)] * 2, sides)
    torch.testing.assert_close(pyramid.vectors(regions), expected)


@KINDS
def test_its_cost_is_one_more_region_and_a_wider_predictor(kind: str, detector: Make) -> None:
    plain, wide = (detector({"depth": 18}, kind=kind, context=context) for context in (False, True))
    predictor = plain.roi_heads.box_predictor
    features, outputs = predictor.cls_score.in_features, predictor.cls_score.out_features * 5
    region = macs(wide, 96, 64) - macs(plain, 96, 64) - 32 * features * outputs
    assert 0 < region < macs(plain, 96, 64) / 16  # of 32 regions


def test_runs_of_before_it_keep_their_identity(tmp_path: Any) -> None:
    off, on = (identity(recipe(tmp_path, "b", {"detector.context": value})) for value in (False, True))
    assert "detector.context" not in off
    assert on == off | {"detector.context": True}
