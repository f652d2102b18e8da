"""Proposals and warped regions against plain loops, coordinates and masks."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou, nms

from backbone.cli import validate
from backbone.data.options import StoredData
from backbone.evaluate.views import ViewSet, ViewSpec
from backbone.inputs import InputConvention
from backbone.nets import build as build_backbone
from backbone.options import NetOptions
from detection.localisation.judge import Views
from detection.localisation.net import Localiser, build, decode
from detection.localisation.recipe import LocaliserOptions, RegionOptions
from detection.localisation.regions import Boxes, RegionSet, draw, propose, surroundings, warp
from detection.localisation.sources import OneObjectScenes

GREY = (100, 110, 120)
CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))


def gradient(height: int, width: int) -> np.ndarray:
    """Each pixel says where it is: red across, green down, two levels a pixel."""
    y, x = np.mgrid[:height, :width]
    return np.stack([2 * x + 20, 2 * y + 20, 0 * x + 200], 2).astype(np.uint8)


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("box", [(10.0, 8, 42, 72), (11.3, 20.6, 30.1, 33.7)])
def test_a_warped_pixel_is_of_the_place_it_should_be_of(box: tuple, padding: int) -> None:
    image, size = gradient(90, 80), 32
    seen = warp(image, np.array(box), size, padding, GREY)
    x1, y1, x2, y2 = box
    for row, column in ((padding, padding), (16, 16), (size - 1 - padding, size - 1 - padding), (12, 20)):
        # The centre of a pixel of the square, as a share of what is within the padding, and so of the box.
        across, down = ((k + 0.5 - padding) / (size - 2 * padding) for k in (column, row))
        x, y = x1 + across * (x2 - x1) - 0.5, y1 + down * (y2 - y1) - 0.5
        assert seen[row, column].tolist() == pytest.approx([2 * x + 20, 2 * y + 20, 200], abs=1.1)


def test_beyond_the_image_is_its_mean_colour() -> None:
    image = np.full((40, 60, 3), 255, np.uint8)
    seen = warp(image, np.array([-20.0, 0, 20, 40]), 32, 0, GREY)
    assert (seen[:, :15] == GREY).all()
    assert (seen[:, 17:] == 255).all()
    assert (warp(image, np.array([100.0, 100, 120, 130]), 32, 4, GREY) == GREY).all()
    assert np.array_equal(warp(image[:32, :32], np.array([0.0, 0, 32, 32]), 32, 0, GREY), image[:32, :32])
    assert surroundings(np.array([10.0, 10, 34, 22]), 32, 4).tolist() == [6, 8, 38, 24]
    assert warp(image, np.array([10.0, 10, 10, 10]), 32, 4, GREY).shape == (32, 32, 3)  # an empty box shows a pixel


def options(**fields: Any) -> RegionOptions:
    return RegionOptions.model_validate({"kind": "rcnn", "norm": "trainable", **fields})


def localiser() -> Localiser:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = build_backbone(NetOptions(depth=18, width=0.125), 5)
        given: Any = {"norm": "frozen", "stage": "C4", "channels": 8, "anchor_sizes": (16, 40), "anchor_ratios": (1.0,)}
        model = build(LocaliserOptions(**given), net, 5)
        torch.nn.init.normal_(model.reg.weight, std=0.5)
        torch.nn.init.normal_(model.cls.weight, std=0.5)
    return model.eval()


class Pictures:
    def __init__(self) -> None:
        self.labels = np.zeros(2, np.int64)
        self.classes = ("a",)

    def __len__(self) -> int:
        return 2

    def image(self, i: int) -> np.ndarray:
        return np.random.default_rng(i).integers(0, 256, (50 + 14 * i, 64 - 10 * i, 3), dtype=np.uint8)


@pytest.mark.parametrize(("most", "overlap"), [(7, 1.0), (12, 0.3), (100, 0.5)])
def test_proposals_against_a_plain_loop(most: int, overlap: float) -> None:
    """Of two images, three classes and two scales."""
    model, inputs = localiser(), InputConvention(size=48)
    view = ViewSpec("multi-scale", 48, 1.0, (224, 448))
    source: Any = Pictures()
    shown = ViewSet(source, (view,), "stop").__getitems__([0, 1])
    asked = torch.tensor([[4, 0, 2], [1, 1, 3]])
    views = Views(inputs, shown["sides"], shown["groups"][0], view, 3, False)
    found = propose(model, asked, views, options(proposals=most, nms=overlap))
    for i, j in np.ndindex(2, 3):
        height, width = source.image(i).shape[:2]
        pairs: list[tuple[float, torch.Tensor]] = []
        for rows, pixels in shown["groups"][0]:
            for one in pixels[rows == i]:
                with torch.no_grad():
                    logits, deltas = model(inputs.normalize(one[None]), asked[i, j].view(1, 1))
                down, across = one.shape[1], one.shape[2]
                edge = torch.tensor([across, down] * 2)
                boxes = torch.minimum(decode(deltas[0, 0], model.anchors(down, across)).clamp(min=0), edge)
                scale = torch.tensor([across / width, down / height] * 2)
                pairs += [(s, b / scale) for s, b in zip(logits[0, 0].tolist(), boxes, strict=True) if wide(b)]
        pairs.sort(key=lambda pair: -pair[0])
        kept: list[torch.Tensor] = []
        for _, box in pairs:
            if overlap == 1 or not kept or box_iou(box[None], torch.stack(kept)).max() <= overlap:
                kept.append(box)
        np.testing.assert_allclose(found[i][j], torch.stack(kept[:most]), atol=0.01)
    assert most < 100 or len(found[0][0]) < 100
    np.testing.assert_array_equal(found[1][0], found[1][1])


def wide(box: torch.Tensor) -> bool:
    return bool((box[2:] - box[:2]).min() >= 1)


def test_what_overlaps_a_better_one_is_no_proposal() -> None:
    model, inputs, view = localiser(), InputConvention(size=48), ViewSpec("1-crop", 48, 1.0)
    source: Any = Pictures()
    shown = ViewSet(source, (view,), "stop").__getitems__([0])
    views = Views(inputs, shown["sides"], shown["groups"][0], view, 3, False)
    every, some = (propose(model, torch.tensor([[2]]), views, options(nms=overlap))[0][0] for overlap in (1.0, 0.4))
    rank = torch.arange(len(every), 0, -1).double()
    assert 1 < len(some) < len(every)
    np.testing.assert_array_equal(some, every[nms(torch.from_numpy(every), rank, 0.4).numpy()])


TRUTH = np.array([[10.0, 10, 30, 40], [50, 50, 90, 90]])
PROPOSALS = np.array([[10.0, 10, 30, 40], [12, 14, 34, 44], [48, 55, 88, 90], [0, 0, 20, 20], [60, 60, 70, 70]])


def test_what_is_drawn_is_labelled_as_it_overlaps() -> None:
    seen: dict[int, int] = {}
    mirrored = 0
    for key in range(800):
        one = draw(PROPOSALS, TRUTH, key, options(positive=0.25))
        at = int(np.flatnonzero((one.box == PROPOSALS).all(1))[0])
        seen[at] = seen.get(at, 0) + 1
        mirrored += one.mirrored
        assert one.positive == (at < 3)
        if not one.positive:
            assert not one.deltas.any()
            continue
        back = one.deltas * np.array([-1 if one.mirrored else 1, 1, 1, 1], np.float32)
        box = CODER.decode_single(torch.from_numpy(back[None]), torch.from_numpy(one.box[None]))[0]
        np.testing.assert_allclose(box, TRUTH[0 if at < 2 else 1], atol=1e-3)
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert sum(seen[k] for k in range(3)) == pytest.approx(200, abs=40)  # three standard deviations
    assert seen[0] == pytest.approx(200 / 3, abs=25)
    assert mirrored == pytest.approx(400, abs=45)
    only = [draw(PROPOSALS[:2], TRUTH, key, options()).positive for key in range(9)]
    assert all(only)  # there are no others


def test_a_regions_target_is_where_its_object_is_seen(tmp_path: Path) -> None:
    """The object's mask, drawn in place of the image, lies where the four numbers say, mirrored or not."""
    source = OneObjectScenes(0, 30, 48, "train")
    rng = np.random.default_rng(0)
    every = [source.boxes(i) + rng.uniform(-4, 4, (6, 4)) for i in range(30)]
    np.save(tmp_path / "boxes.npy", np.concatenate(every).astype(np.float32))
    np.save(tmp_path / "starts.npy", np.cumsum([0] + [6] * 30))
    tree = {"source": "imagefolder", "train": "-", "val": "-", "size": 48, "workers": 0, "augment": {"kind": "none"}}
    given: Any = {"source": source, "options": validate(StoredData, tree, "t"), "seed": 1, "fill": (0, 0, 0)}
    train = RegionSet(**given, boxes=Boxes(tmp_path), regions=options(positive=0.99))
    seen = {True: 0, False: 0}
    for position in range(60):
        epoch, sample = train.stream[position]
        located = train.located([sample], position)
        one = train.drawn(epoch, sample)
        assert bool(located["positive"][0]) == one.positive
        mask = 255 * np.repeat(source.scene(sample).masks[0][..., None], 3, 2)
        view = warp(mask, one.box, 48, train.padding, (0, 0, 0))
        view = view[:, ::-1] if one.mirrored else view
        if not one.positive:
            continue
        inner = torch.tensor([[train.padding, train.padding, 48.0 - train.padding, 48.0 - train.padding]])
        x1, y1, x2, y2 = CODER.decode_single(located["deltas"], inner)[0].tolist()
        rows, columns = np.nonzero(view[..., 0] > 127)
        assert columns.min() == pytest.approx(max(0, x1), abs=2.5)
        assert columns.max() + 1 == pytest.approx(min(48, x2), abs=2.5)
        assert rows.min() == pytest.approx(max(0, y1), abs=2.5)
        assert rows.max() + 1 == pytest.approx(min(48, y2), abs=2.5)
        seen[one.mirrored] += 1
    assert min(seen.values()) > 15
    batch = train.batch(range(4))
    again = pickle.loads(pickle.dumps(train)).batch(range(4))  # as a loader process gets it
    assert torch.equal(batch["images"], again["images"])
    epoch, sample = train.stream[2]
    one = train.drawn(epoch, sample)
    shown = warp(source.image(sample), one.box, 48, train.padding, (0, 0, 0))
    shown = shown[:, ::-1] if one.mirrored else shown
    assert np.array_equal(batch["images"][2].numpy().transpose(1, 2, 0), shown)
