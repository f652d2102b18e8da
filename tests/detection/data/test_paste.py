"""Copy-paste against torchvision's rule written out, and as a part of the loader's batches."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from backbone.data.stream import MicroBatches
from detection.data.loader import TrainSet, planes, train_loader
from detection.data.options import ScenesData
from detection.data.paste import Scene, paste
from detection.data.patches import patch_of
from detection.data.sources import open_sources
from detection.recipe import Finetune
from tests.backbone.data.making import kept
from tests.detection.data.making import whole

GREY = (9, 8, 7)


def around(masks: Tensor) -> np.ndarray:
    """torchvision's boxes end at the last pixel, ours behind it."""
    return masks_to_boxes(masks).numpy() + np.array([0, 0, 1, 1])


def scene(height: int, width: int, seed: int, num: int = 4) -> Scene:
    """Rectangles anywhere, with tight boxes."""
    draws = np.random.default_rng(seed)
    masks = np.zeros((num, height, width), np.uint8)
    for mask in masks:
        y, x = draws.integers(0, height - 6), draws.integers(0, width - 6)
        mask[y : y + draws.integers(3, 20), x : x + draws.integers(3, 20)] = 1
    boxes = around(torch.from_numpy(masks))
    image = draws.integers(0, 256, (height, width, 3), np.uint8)
    return Scene(image, boxes.astype(np.float32), draws.integers(1, 9, num), [patch_of(mask) for mask in masks])


@pytest.mark.parametrize("seed", range(5))
def test_pasted_is_as_by_torchvisions_reference(seed: int):
    """references/detection: target masks less the union of the pasted ones, boxes by `masks_to_boxes`."""
    under, over, chosen = scene(40, 50, seed), scene(40, 50, seed + 100), np.array([True, False, True, True])
    found = paste(under, over, chosen, GREY)
    pasted = torch.from_numpy(np.stack(whole(over).masks)[chosen]) > 0
    union = pasted.any(0)
    left = (torch.from_numpy(np.stack(whole(under).masks)) > 0) & ~union
    kept = left.flatten(1).any(1)
    expected = torch.cat([left[kept], pasted])
    assert np.array_equal(np.stack(whole(found).masks), expected.numpy())
    assert np.allclose(found.boxes, around(expected))
    assert found.labels.tolist() == [*under.labels[kept.numpy()], *over.labels[chosen]]
    assert np.array_equal(found.image, np.where(union.numpy()[..., None], over.image, under.image))


def test_nothing_chosen_changes_nothing():
    under = scene(40, 50, 1)
    found = paste(under, scene(30, 20, 2), np.zeros(4, bool), GREY)
    assert np.array_equal(found.image, under.image)
    assert np.array_equal(found.boxes, under.boxes)
    assert np.array_equal(whole(found).masks, whole(under).masks)


def test_what_reaches_further_makes_the_image_grow():
    under, over = scene(20, 60, 1), scene(50, 30, 2)
    found = paste(under, over, np.ones(4, bool), GREY)
    assert found.image.shape == (50, 60, 3)
    assert {mask.shape for mask in whole(found).masks} == {(50, 60)}
    assert (found.image[20:, 30:] == GREY).all()


def batches(workers: int, rank: int, world: int, **augment: Any) -> list[dict[str, Any]]:
    data = ScenesData(
        train_images=6, val_images=1, render=64, objects=(2, 3), shorter_side=(64,), longer_side=64, workers=workers
    ).model_copy(update={"augment": ScenesData().augment.model_copy(update=augment)})
    train, _ = open_sources(data)
    return kept(train_loader(TrainSet(train, data, 7, 4, 2, True, GREY), MicroBatches(4, 2, rank, world, 0, 3)))


def same(one: Any, two: Any) -> bool:
    return torch.equal(one, two) if isinstance(one, Tensor) else one == two


def test_batches_do_not_depend_on_ranks_nor_on_where_one_begins():
    strong = {"canvas": 64, "paste": 0.7}
    alone = batches(0, 0, 1, **strong)
    ranks = [batches(0, rank, 2, **strong) for rank in range(2)]
    for place, batch in enumerate(alone):
        other = ranks[place % 2][place // 2]
        assert all(same(batch[name], other[name]) for name in batch)
    plain = batches(0, 0, 1, canvas=64)
    assert sum(map(len, (b["labels"] for b in alone))) > sum(map(len, (b["labels"] for b in plain)))
    for batch in alone:
        boxes, masks = batch["boxes"], planes(batch, batch["images"])
        assert len(boxes) == len(masks) == sum(batch["counts"])
        assert (masks.flatten(1).any(1)).all()
        assert np.abs(around(masks) - boxes.numpy()).max() <= 2


@pytest.mark.parametrize(
    ("augment", "complaint"),
    [
        ({"canvas": 16}, "canvas 16: give 32 pixels or more"),
        ({"canvas": 64, "crop": 0.5}, "give one of them"),
        ({"scales": (0.5, 1)}, "scales is read with canvas only"),
        ({"canvas": 64, "scales": (2, 1)}, "smaller, larger"),
    ],
)
def test_options_that_do_not_go_together(augment: dict[str, Any], complaint: str):
    with pytest.raises(ValueError, match=complaint):
        ScenesData.model_validate({"augment": augment})


def test_pasting_needs_masks():
    data = {"source": "voc", "train": "a", "val": "b", "augment": {"paste": 1}}
    detector = {"norm": "frozen", "freeze_at": 2}
    with pytest.raises(ValueError, match=r"data\.augment\.paste: Pascal VOC's boxes come without masks"):
        Finetune.model_validate({"backbone": "x", "detector": detector, "data": data})
