"""What a plan doubts: possible, but hardly meant."""

import pytest

from backbone.cli import load, validate
from backbone.nets import build
from backbone.nets.count import macs
from backbone.training.plan import describe, doubts, images_of_sizes, mean_macs
from backbone.training.recipe import Recipe
from backbone.training.schedule import in_steps
from tests.conftest import ROOT

STARTER = ROOT / "jobs/recipes/starter"


@pytest.mark.parametrize(("batch", "images", "fits"), [(1024, 61, 8), (65, 64, 16), (2, 1, 1)])
def test_a_batch_of_more_than_there_is(batch: int, images: int, fits: int) -> None:
    (line,) = doubts(validate(Recipe, {"optim": {"batch": batch}}, ""), images)
    assert line.startswith(f"optim.batch {batch:,} over {images:,} images: ")
    assert line.endswith(f"--optim.batch {fits}")
    assert doubts(validate(Recipe, {"optim": {"batch": images}}, ""), images) == []


def test_a_schedule_for_more_images() -> None:
    recipe = validate(Recipe, {"schedule": {"unit": "iterations", "total": 90_000}}, "")
    assert doubts(recipe, 90_000 * 256 // 1000) == []
    (line,) = doubts(recipe, 4672)
    assert line.startswith("4,932 epochs: the schedule is for more images than 4,672; ")


def test_images_that_grow() -> None:
    """Sizes by the epoch, multiply-adds of each weighted by its share of images, and a schedule too short for them."""
    grows = {"from_size": 64, "start": 1, "end": 3}
    tree = {"data": {"size": 128, "train_images": 512, "progressive": grows}, "model": {"depth": 18}}
    recipe = validate(Recipe, {**tree, "schedule": {"total": 5}}, "")
    steps = in_steps(recipe.schedule, recipe.optim.batch, 512)
    assert images_of_sizes(recipe.data, steps) == {64: 1024, 96: 512, 128: 1024}
    net = build(recipe.model, 10)
    each = (2 * macs(net, 64) + macs(net, 96) + 2 * macs(net, 128)) / 5
    assert mean_macs(net, recipe.data, steps) == round(each)
    said = describe(recipe, 512, 100, 10)
    assert "sizes      64 px for 2 epochs, 96 px for 1 epochs, 128 px for 2 epochs; " in said
    assert doubts(recipe, 512) == []


@pytest.mark.parametrize(
    ("start", "end", "epochs", "mended"),
    [
        (1, 3, 3, {"end": 2}),
        (4, 8, 3, {"start": 1, "end": 2}),  # the last epoch comes before the images begin to grow
        (2, 3, 3, {"start": 1, "end": 2}),
        (11, 13, 2, {"start": 0, "end": 1}),
        (4, 8, 1, {"from_size": 0}),
        (0, 1, 1, {"from_size": 0}),  # no end that is reached can come after a start
    ],
)
def test_a_training_too_short_to_grow_is_mended_as_told(start: int, end: int, epochs: int, mended: dict) -> None:
    grows = {"from_size": 64, "start": start, "end": end}
    tree = {"data": {"size": 128, "progressive": grows}, "schedule": {"total": epochs}}
    recipe = validate(Recipe, tree, "")
    (line,) = doubts(recipe, 512)
    before, told = line.split("; ")
    assert before.startswith(f"data.progressive.end {end}: training ends in epoch {epochs - 1}, at ")
    words = told[: told.rindex(" reaches" if "reaches" in told else " trains")].split()
    given = dict(zip((word.removeprefix("--") for word in words[::2]), map(int, words[1::2]), strict=True))
    assert given == {f"data.progressive.{name}": value for name, value in mended.items()}
    again = validate(Recipe, tree, "", given)
    assert doubts(again, 512) == []
    assert again.data.trained_at(epochs - 1) == 128


def test_the_last_micro_batch_must_have_grown() -> None:
    """Some images of epoch 2 are trained on, in a micro-batch that begins in epoch 1, whose size it has."""
    tree = {
        "data": {"size": 128, "progressive": {"from_size": 64, "end": 2}},
        "optim": {"batch": 64, "micro_batch": 64},
        "schedule": {"unit": "iterations", "total": 16},
    }
    (line,) = doubts(validate(Recipe, tree, ""), 511)
    assert "training ends in epoch 1, at 96 px; --data.progressive.end 1 reaches data.size 128" in line
    tree["optim"] = {"batch": 64, "micro_batch": 1}
    assert doubts(validate(Recipe, tree, ""), 511) == []


def test_one_folder_for_both() -> None:
    recipe = load(Recipe, STARTER / "classify.yaml")
    assert "warning" not in describe(recipe, 1000, 200, 10)
    tree = recipe.model_dump(mode="json")
    one = validate(Recipe, tree, "", {"data.val": "photos/train"})
    assert "warning    data.train and data.val are both photos/train: what was trained" in describe(one, 1000, 1000, 10)
    held_out = validate(Recipe, tree, "", {"data.val": "photos/train", "data.hold_out": 100})
    assert "warning" not in describe(held_out, 900, 100, 10)
