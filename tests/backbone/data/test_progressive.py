"""Progressive resizing: which size in which epoch, and the same pixels however batches are made."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from backbone.cli import load, validate
from backbone.data.batches import TrainSet
from backbone.data.loader import train_loader
from backbone.data.options import Progressive, SyntheticData
from backbone.data.stream import MicroBatches
from backbone.data.synthetic import SyntheticSource
from backbone.errors import UserError
from backbone.inputs import InputConvention
from backbone.training.pretrain import Classification
from backbone.training.recipe import Recipe
from backbone.training.world import World
from tests.conftest import ROOT

ALONE = World(0, 1, torch.device("cpu"))
SOURCE = SyntheticSource(0, 22, 36)
STEPS = 5  # of 16 images: the fourth epoch has begun
SIDES = [16] * 6 + [24] * 5 + [32] * 9
"""Of micro-batches of 4: one that holds the end of an epoch, too, has the size of that epoch."""


def train_set(**options: Any) -> TrainSet:
    given: dict[str, Any] = {"size": 32, "workers": 0, "augment": {"kind": "modern", "policy": "trivial"}, **options}
    return TrainSet(SOURCE, SyntheticData.model_validate(given), 5, (120, 110, 100))


def growing(**options: Any) -> TrainSet:
    return train_set(progressive={"from_size": 16, "start": 0, "end": 2, "step": 8}, **options)


def micro_batches(rank: int = 0, world: int = 1, start: int = 0) -> MicroBatches:
    return MicroBatches(16, 4, rank, world, start, STEPS)


def images(train: TrainSet, *place: int) -> list[torch.Tensor]:
    return [batch["images"].clone() for batch in train_loader(train, micro_batches(*place))]


def same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return len(one) == len(two) and all(map(torch.equal, one, two))


def test_the_short_recipe_has_ffcvs_sizes() -> None:
    """rn50_16_epochs: 160 pixels to epoch 11, 192 from epoch 13, judged at 256."""
    data = load(Recipe, ROOT / "jobs/recipes/imagenet-modern/resnet50-short.yaml").data
    assert [data.trained_at(epoch) for epoch in range(16)] == [160] * 12 + [192] * 4
    assert data.judged_at == 256


@pytest.mark.parametrize(("first", "last", "start", "end"), [(160, 192, 11, 13), (128, 224, 4, 12), (96, 256, 0, 40)])
def test_sides_between_are_the_nearest_multiples(first: int, last: int, start: int, end: int) -> None:
    """Against numpy's interpolation."""
    grows = Progressive(from_size=first, start=start, end=end)
    epochs = np.arange(end + 5)
    expected = 32 * np.round(np.interp(epochs, [start, end], [first, last]) / 32)
    assert [grows.side(int(epoch), last) for epoch in epochs] == expected.tolist()


def test_off_is_one_size() -> None:
    assert {SyntheticData(size=96).trained_at(epoch) for epoch in range(200)} == {96}


@pytest.mark.parametrize("end", [3, 90, 10**9])
def test_sizes_are_counted_without_going_through_the_epochs(end: int) -> None:
    grows = Progressive(from_size=100, start=1, end=end, step=8)
    found = list(grows.sides(224))
    epochs = range(end + 1) if end < 100 else range(0, end + 1, 10**6)
    assert found == sorted({grows.side(epoch, 224) for epoch in epochs} | {224})


def test_many_sizes_are_refused_where_each_would_be_compiled() -> None:
    """Eight are not; and a mistyped end takes no time."""
    many = {"data": {"progressive": {"from_size": 96, "end": 10**9, "step": 8}}}
    assert validate(Recipe, many, "").data.trained_at(5 * 10**8) == 160
    with pytest.raises(UserError, match=r"compute\.compile default"):
        validate(Recipe, many, "", {"compute.compile": "default"})
    grows = {"from_size": 96, "end": 10**9, "step": 21}
    assert len(list(Progressive.model_validate(grows).sides(224))) == 8
    validate(Recipe, many, "", {"compute.compile": "default", "data.progressive.step": 21})
    with pytest.raises(UserError, match="more than 8"):
        validate(Recipe, many, "", {"compute.compile": "default", "data.progressive.step": 20})


def test_one_word_switches_off_what_a_recipe_says() -> None:
    recipe = load(Recipe, ROOT / "jobs/recipes/imagenet-modern/resnet50-short.yaml")
    tree = recipe.model_dump(mode="json")
    off = validate(Recipe, tree, "", {"data.progressive.from_size": 0})
    assert off.data.progressive == Progressive()


def test_exact_statistics_are_of_the_size_trained_at_last(tiny: Callable[..., Recipe]) -> None:
    """Three epochs, of which the third ends at 24 px: the images that would come next, at 32, are shown at 24."""
    grows = {"data.augment": {"kind": "modern"}, "data.progressive": {"from_size": 16, "end": 3, "step": 8}}
    grows |= {"optim.micro_batch": 16}
    inputs = InputConvention(size=32)
    source = SyntheticSource(0, 160, 32, "train")
    task = Classification(tiny(grows), inputs, source, SyntheticSource(0, 8, 32, "val"), ALONE)
    batches = task.train.stream.num_samples // task.recipe.optim.batch
    assert [task.train.side(position) for position in (0, 3 * 160 - 16, 3 * 160)] == [16, 24, 32]
    shown = list(task.plain_batches(3 * batches, 40, 3 * batches))
    assert [tuple(one.shape) for one in shown] == [(16, 3, 24, 24)] * 3
    plain = Classification(tiny({**grows, "data.size": 24, "data.progressive": {}}), inputs, source, source, ALONE)
    assert same(shown, list(plain.plain_batches(3 * batches, 40, 3 * batches)))
    best = task.plain_batches(3 * batches, 16, batches)  # weights of the first epoch
    assert [one.shape[-1] for one in best] == [16]
    grown = task.plain_batches(3 * batches + 1, 16, 3 * batches + 1)
    assert [one.shape[-1] for one in grown] == [32]


def test_each_micro_batch_is_as_where_its_size_is_that_of_all() -> None:
    found = images(growing())
    assert [tuple(one.shape) for one in found] == [(4, 3, side, side) for side in SIDES]
    assert all(one.is_contiguous() for one in found)
    alone = {side: images(train_set(size=side)) for side in (16, 24, 32)}
    assert same(found, [alone[side][k] for k, side in enumerate(SIDES)])


def test_ranks_loader_processes_and_resumes_give_the_same() -> None:
    whole = images(growing())
    assert same(images(growing(workers=2)), whole)
    ranks = [images(growing(), rank, 2) for rank in range(2)]
    steps = [each[2 * step : 2 * step + 2] for step in range(STEPS) for each in ranks]
    assert same([one for step in steps for one in step], whole)
    assert same(images(growing(), 0, 1, 2), whole[8:])
