"""What a plan doubts: possible, but hardly meant."""

import pytest

from backbone.cli import load, read_yaml, validate
from backbone.training.plan import describe, doubts
from backbone.training.recipe import Recipe
from detection.finetune import places
from detection.recipe import Finetune
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


def test_one_folder_for_both() -> None:
    recipe = load(Recipe, STARTER / "classify.yaml")
    assert "warning" not in describe(recipe, 1000, 200, 10)
    tree = recipe.model_dump(mode="json")
    one = validate(Recipe, tree, "", {"data.val": "photos/train"})
    assert "warning    data.train and data.val are both photos/train: what was trained" in describe(one, 1000, 1000, 10)
    held_out = validate(Recipe, tree, "", {"data.val": "photos/train", "data.hold_out": 100})
    assert "warning" not in describe(held_out, 900, 100, 10)
    detector = validate(
        Finetune, read_yaml(STARTER / "detect.yaml"), "", {"backbone": "some", "data.val": "boxes:train"}
    )
    (line,) = doubts(detector, 1000, *places(detector.data))
    assert line.startswith("data.train and data.val are both boxes:train")
