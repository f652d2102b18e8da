"""The steps on real detectors: without any they find what the detector finds, mirrored images give mirrored boxes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from backbone.nets import build as build_net
from backbone.options import NetOptions
from detection.improvements.steps import Seen, Steps, detections, mean, pick
from detection.improvements.views import View, look, mirror, mirror_boxes
from detection.nets import Detector, build
from detection.options import DetectorOptions, RetinaOptions

SIDES = (50, 60)
LABELS = torch.arange(4)
IMAGE = torch.zeros(1, 3, 64, 64)
IMAGE[..., : SIDES[0], : SIDES[1]] = torch.randn(1, 3, *SIDES, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["fpn", "c4"])
def detector(request: pytest.FixtureRequest) -> Detector:
    """A Mask R-CNN of random weights, which finds plenty."""
    sizes = {"anchor_sizes": (8, 16, 24, 32, 48), "channels": 16, "hidden": 32} if request.param == "fpn" else {}
    roi = {"score": 0.2, "detections": 20}
    fields: dict[str, Any] = {"kind": request.param, "norm": "frozen", "freeze_at": 0, "masks": True, "roi": roi}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = build_net(NetOptions(net="resnet", depth=18, width=0.125), 1)
        made = build(DetectorOptions.model_validate(fields | {"anchor_sizes": (8, 16, 32)} | sizes), net, 3).eval()
        torch.nn.init.normal_(made.roi_heads.box_predictor.cls_score.weight, std=0.1)
    return made


@torch.no_grad()
def views(detector: Detector, image: Tensor = IMAGE, flip: bool = False) -> list[View]:
    return [look(detector, image, SIDES, (100, 120), mirrored) for mirrored in (False, True)[: 1 + flip]]


@torch.no_grad()
def found(detector: Detector, steps: Steps, image: Tensor = IMAGE) -> dict[str, Tensor]:
    return detections([Seen(views(detector, image, steps.flip), LABELS)], steps)


def test_without_any_step_it_is_what_the_detector_finds(detector: Detector) -> None:
    with torch.no_grad():
        theirs = detector(IMAGE, [SIDES])[0]
    mine = found(detector, Steps())
    assert len(mine["scores"]) > 5
    torch.testing.assert_close(mine["scores"], theirs["scores"])
    torch.testing.assert_close(mine["boxes"].float(), theirs["boxes"] * 2, rtol=1e-5, atol=1e-4)  # the file's pixels
    assert torch.equal(mine["labels"], theirs["labels"])
    torch.testing.assert_close(mine["masks"], theirs["masks"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("steps", [Steps(refine=True), Steps(vote=True), Steps(True, True)])
def test_refined_and_voted_are_other_detections_within_the_image(detector: Detector, steps: Steps) -> None:
    plain, better = found(detector, Steps()), found(detector, steps)
    assert plain["boxes"].shape != better["boxes"].shape or not torch.equal(plain["boxes"], better["boxes"])
    assert (better["boxes"] >= 0).all()
    assert (better["boxes"] <= torch.tensor([120, 100, 120, 100])).all()
    assert len(better["masks"]) == len(better["boxes"]) > 0


def test_an_image_without_proposals(detector: Detector) -> None:
    one = views(detector)[0]
    with torch.no_grad():
        none = replace(one, proposals=one.proposals[:0])
        output = detections([Seen([none], LABELS)], Steps(True, True))
    assert {name: len(rows) for name, rows in output.items()} == dict.fromkeys(
        ("boxes", "labels", "scores", "masks"), 0
    )


def test_a_symmetric_image_is_its_own_mirror_image() -> None:
    """And boxes that lie symmetrically their own; whatever the padding, which stays at the right."""
    symmetric = torch.cat([IMAGE[..., :30], IMAGE[..., :30].flip(-1), IMAGE[..., 60:]], -1)
    assert torch.equal(mirror(symmetric, 60), symmetric)
    assert not torch.equal(mirror(IMAGE, 60), IMAGE)
    assert torch.equal(mirror(mirror(IMAGE, 60), 60), IMAGE)
    boxes = torch.tensor([[10.0, 3, 50, 40], [0, 0, 60, 50], [5, 1, 9, 8]])
    assert torch.equal(mirror_boxes(boxes, 60), torch.tensor([[10.0, 3, 50, 40], [0, 0, 60, 50], [51, 1, 55, 8]]))


@pytest.mark.parametrize("steps", [Steps(flip=True), Steps(refine=True, vote=True, flip=True)])
def test_the_mirror_image_has_the_mirrored_detections(detector: Detector, steps: Steps) -> None:
    """With flip, since both then look at the same two images; without, this net does not keep to it."""
    one, other = found(detector, steps), found(detector, steps, mirror(IMAGE, 60))
    assert len(one["scores"]) > 5
    assert torch.equal(one["labels"], other["labels"])
    torch.testing.assert_close(one["scores"], other["scores"])
    torch.testing.assert_close(mirror_boxes(one["boxes"], 120), other["boxes"], rtol=0, atol=1e-3)
    torch.testing.assert_close(one["masks"].flip(-1), other["masks"], rtol=0, atol=1e-3)
    alone = Steps(steps.refine, steps.vote)
    plain, turned = found(detector, alone)["boxes"], found(detector, alone, mirror(IMAGE, 60))["boxes"]
    assert plain.shape != turned.shape or not torch.allclose(mirror_boxes(plain, 120), turned, atol=1e-1)


def test_scales_are_pooled_before_nms(detector: Detector) -> None:
    """Against torchvision's NMS, class by class, over what each scale holds; one scale given twice is one scale."""
    with torch.no_grad():
        both = [*views(detector), look(detector, IMAGE[..., ::2, ::2].contiguous(), (25, 30), (100, 120))]
        mine = pick(both, Steps())
        parts = [view.candidates(False) for view in both]
    boxes, labels, scores = (torch.cat([getattr(p, name) for p in parts]) for name in ("boxes", "labels", "scores"))
    kept = []
    for label in labels.unique():
        rows = torch.where(labels == label)[0]
        kept += rows[nms(boxes[rows].float(), scores[rows], detector.roi_heads.nms_thresh)].tolist()
    best = sorted(scores[kept].tolist(), reverse=True)[: detector.roi_heads.detections_per_img]
    assert mine.scores.tolist() == best
    assert all(len(part) for part in parts)
    with torch.no_grad():
        twice, once = pick(both[:1] * 2, Steps()), pick(both[:1], Steps())
    assert torch.equal(twice.boxes, once.boxes)


def test_an_ensemble_of_one_detector_twice_is_that_detector(detector: Detector) -> None:
    """Masks, too; classes have the data's numbers, and those that the data lack are left out."""
    once = found(detector, Steps())
    with torch.no_grad():
        seen = Seen(views(detector), LABELS)
        twice = detections([seen, seen], Steps())
        renamed = detections([Seen(seen.views, torch.tensor([0, 3, 1, 2]))], Steps())
        unknown = detections([Seen(seen.views, torch.zeros(4, dtype=torch.int64))], Steps())
    for name, rows in once.items():
        torch.testing.assert_close(twice[name], rows, rtol=1e-5, atol=1e-4)
    assert torch.equal(renamed["labels"], torch.tensor([0, 3, 1, 2])[once["labels"]])
    assert torch.equal(renamed["masks"], once["masks"])
    assert {len(rows) for rows in unknown.values()} == {0}


def test_masks_of_unlike_sizes_are_averaged_at_the_larger() -> None:
    half, full = torch.full((2, 1, 14, 14), 0.25), torch.full((2, 1, 28, 28), 0.75)
    assert torch.equal(mean([half, full]), torch.full((2, 1, 28, 28), 0.5))
    assert mean([half[:0], full[:0]]).shape[0] == 0


@pytest.fixture(scope="module")
def retina() -> Detector:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = build_net(NetOptions(net="resnet", depth=18, width=0.125), 1)
        options = {"norm": "frozen", "freeze_at": 0, "channels": 16, "anchor_sizes": (8, 16, 24, 32, 48), "score": 0.01}
        return build(RetinaOptions.model_validate(options | {"detections": 20}), net, 3).eval()


def test_retinanet_takes_the_steps_that_need_no_regions(retina: Detector) -> None:
    with torch.no_grad():
        theirs = retina(IMAGE, [SIDES])[0]
    mine = found(retina, Steps())
    assert len(mine["scores"]) == 20
    assert torch.equal(mine["scores"], theirs["scores"])
    assert torch.equal(mine["labels"], theirs["labels"])
    torch.testing.assert_close(mine["boxes"].float(), theirs["boxes"] * 2, rtol=1e-5, atol=1e-4)  # the file's pixels
    flipped = found(retina, Steps(flip=True), mirror(IMAGE, SIDES[1]))
    again = found(retina, Steps(flip=True))
    torch.testing.assert_close(flipped["scores"], again["scores"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mirror_boxes(flipped["boxes"], 120), again["boxes"], rtol=1e-4, atol=1e-3)
    voted = found(retina, Steps(vote=True))
    assert torch.equal(voted["scores"], mine["scores"])
    assert not torch.equal(voted["boxes"], mine["boxes"])
