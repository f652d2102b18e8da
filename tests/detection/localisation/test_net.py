"""The per-class RPN against torchvision's parts and against plain loops."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import box_iou

from backbone.errors import UserError
from backbone.nets import build as build_net
from backbone.options import NetOptions
from detection.localisation.net import Localiser, build, decode, draw, encode, losses
from detection.localisation.recipe import LocaliserOptions

SMALL = NetOptions(net="resnet", depth=18, width=0.125)


def make(classes: int = 5, net: NetOptions = SMALL, **fields: Any) -> Localiser:
    torch.manual_seed(0)
    options = {"norm": "frozen", "channels": 8, "anchor_sizes": (16, 40), "anchor_ratios": (0.5, 1, 2), **fields}
    return build(LocaliserOptions(**options), build_net(net, 5), classes)


def some_boxes(*shape: int, seed: int = 0) -> Tensor:
    corners = torch.rand(*shape, 4, generator=torch.Generator().manual_seed(seed)) * 60
    return torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:] + 4], -1)


@pytest.mark.parametrize("stage", ["C4", "C5"])
@torch.no_grad()
def test_asked_for_some_classes_it_says_what_the_whole_layers_do(stage: str) -> None:
    model = make(stage=stage).eval()
    images, classes = torch.randn(2, 3, 64, 96), torch.tensor([[4, 0, 2], [1, 1, 3]])
    logits, deltas = model(images, classes)
    maps = model.conv(model.body(images, stage)[stage])
    n, _, h, w = maps.shape
    every = model.cls(maps).view(n, 5, model.each, h, w)
    boxes = model.reg(maps).view(n, 5, model.each, 4, h, w)
    for i in range(2):
        for j, label in enumerate(classes[i].tolist()):
            place = 0
            for y in range(h):
                for x in range(w):
                    for a in range(model.each):
                        torch.testing.assert_close(logits[i, j, place], every[i, label, a, y, x])
                        torch.testing.assert_close(deltas[i, j, place], boxes[i, label, a, :, y, x])
                        place += 1
    assert place == logits.shape[2] == len(model.anchors(64, 96))


def test_what_lies_beyond_the_map_is_not_kept() -> None:
    whole, part = make(stage="C5"), make(stage="C4")
    assert any(name.startswith("body.layer4") for name in whole.state_dict())
    assert not any(name.startswith("body.layer4") for name in part.state_dict())
    assert not any(".fc." in name for name in whole.state_dict())
    logits, deltas = part(torch.randn(2, 3, 64, 64), torch.zeros(2, 1, dtype=torch.int64))
    (logits.sum() + deltas.sum()).backward()
    assert all(p.grad is not None for p in part.parameters() if p.requires_grad)  # else DDP waits for ever


def test_anchors_are_torchvisions() -> None:
    model = make()
    theirs = AnchorGenerator(((16, 40),), ((0.5, 1.0, 2.0),))
    images = torch.zeros(1, 3, 64, 96)
    expected = theirs(ImageList(images, [(64, 96)]), [torch.zeros(1, 8, 2, 3)])[0]
    mine = model.anchors(64, 96)
    assert mine.shape == expected.shape
    # Theirs are rounded to whole pixels, and an anchor of a place has its ratios outermost, as ours.
    assert (mine - expected).abs().max() <= 0.5
    assert len(model.anchors(65, 33)) == 3 * 2 * 6  # maps are rounded up


def test_boxes_are_coded_as_torchvisions() -> None:
    boxes, anchors = some_boxes(50), some_boxes(50, seed=1)
    theirs = BoxCoder((1.0, 1.0, 1.0, 1.0))
    torch.testing.assert_close(encode(boxes, anchors), theirs.encode_single(boxes, anchors))
    deltas = torch.randn(50, 4) * 3
    torch.testing.assert_close(decode(deltas, anchors), theirs.decode_single(deltas, anchors))
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes)


def test_drawn_anchors_are_positive_and_negative_as_they_should() -> None:
    options = LocaliserOptions(norm="frozen", anchors=8, fg_iou=0.5, bg_iou=0.3)
    anchors, boxes = some_boxes(200, seed=2), some_boxes(6, 3)
    counts = torch.tensor([3, 1, 2, 0, 3, 1])
    torch.manual_seed(1)
    seen: set[int] = set()
    for _ in range(20):
        rows, positive, drawn, which = draw(anchors, boxes, counts, options)
        for i, count in enumerate(counts.tolist()):
            mine, of = rows[i][drawn[i]], positive[i][drawn[i]]
            assert len({*mine.tolist()}) == len(mine) == 8
            iou = box_iou(boxes[i, :count], anchors)
            if not count:
                assert not of.any()
                continue
            best, nearest = iou.max(0)
            top = {int(row.argmax()) for row in iou}
            allowed = {k for k in range(200) if best[k] >= 0.5} | top
            assert {*mine[of].tolist()} <= allowed
            assert int(of.sum()) == min(4, len(allowed))
            assert (best[mine[~of]] < 0.3).all()
            assert torch.equal(which[i, mine[of]], nearest[mine[of]])
            if i == 0:
                seen |= {*mine.tolist()}
    assert len(seen) > 40  # they change


def test_losses_against_a_plain_loop() -> None:
    options = LocaliserOptions(norm="frozen", fg_iou=0.5, beta=0.2)
    anchors, boxes, counts = some_boxes(60, seed=2), some_boxes(3, 2), torch.tensor([2, 1, 0])
    logits, deltas = torch.randn(3, 60), torch.randn(3, 60, 4)
    torch.manual_seed(4)
    score, box = losses(logits, deltas, anchors, boxes, counts, options)
    torch.manual_seed(4)
    rows, positive, drawn, which = draw(anchors, boxes, counts, options)
    theirs = BoxCoder((1.0, 1.0, 1.0, 1.0))
    for i in range(3):
        scores, distances = 0.0, 0.0
        for row, is_positive in zip(rows[i][drawn[i]].tolist(), positive[i][drawn[i]].tolist(), strict=True):
            p = torch.sigmoid(logits[i, row])
            scores -= float(torch.log(p if is_positive else 1 - p))
            if is_positive:
                target = theirs.encode_single(boxes[i, which[i, row]][None], anchors[row][None])[0]
                apart = (deltas[i, row] - target).abs()
                distances += float(torch.where(apart < 0.2, apart**2 / 0.4, apart - 0.1).sum())
        assert float(score[i]) == pytest.approx(scores / int(drawn[i].sum()), rel=1e-4)
        assert float(box[i]) == pytest.approx(distances / int(drawn[i].sum()), rel=1e-4)
    assert box[2] == 0


def test_what_does_not_fit_is_said_in_the_recipes_words() -> None:
    with pytest.raises(UserError, match=r"localiser\.norm group"):
        make(norm="group")
    with pytest.raises(UserError, match=r"localiser\.stage C5: cifar_resnet8 has C2, C3, C4"):
        make(net=NetOptions(net="cifar_resnet", depth=8, shortcut="A"))


@torch.no_grad()
def test_anchors_are_as_many_as_the_map_has_places() -> None:
    """VGG rounds its maps down: here 2 x 2 places, not 2 x 3."""
    model = make(net=NetOptions(net="vgg", depth=11, norm="none", width=0.1)).eval()
    logits, _ = model(torch.randn(1, 3, 64, 85), torch.zeros(1, 1, dtype=torch.int64))
    assert logits.shape[2] == len(model.anchors(64, 85))
