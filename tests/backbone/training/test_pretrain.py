"""What pretraining evaluates: the exported weights once, and something rather than nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backbone import artifact
from backbone.data.synthetic import SyntheticSource
from backbone.errors import BadImage, UserError
from backbone.inputs import InputConvention
from backbone.training import engine
from backbone.training.pretrain import Classification, prepare, pretrain, statistics
from backbone.training.recipe import Recipe
from backbone.training.world import World

ALONE = World(0, 1, torch.device("cpu"))
Make = Callable[..., Recipe]


class Torn(SyntheticSource):
    """Scenes of which no image can be read but those named."""

    intact: frozenset[int] = frozenset()

    def image(self, i: int) -> np.ndarray:
        if i in self.intact:
            return super().image(i)
        raise BadImage(f"picture {i}: torn")


def task_of(recipe: Recipe, val: SyntheticSource, world: World = ALONE) -> Classification:
    return Classification(recipe, InputConvention(size=32), SyntheticSource(0, 64, 32, "train"), val, world)


@pytest.mark.parametrize(
    ("options", "more"),
    [({"run.precise_bn": 0}, 0), ({"run.precise_bn": 32}, 1), ({"model.norm": "group"}, 0)],
    ids=["as trained", "exact statistics", "no statistics"],
)
def test_weights_are_evaluated_again_only_where_they_changed(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, options: dict, more: int
) -> None:
    recipe = tiny({"schedule.total": 12, "run.eval_every": 1, **options})
    scored, original = [], Classification.evaluate

    def counted(task: Classification, *given: Any) -> dict[str, float]:
        scored.append(original(task, *given))
        return scored[-1]

    monkeypatch.setattr(Classification, "evaluate", counted)
    records: list[dict] = []
    payload = prepare(recipe)
    metrics = pretrain(payload, ALONE, records.append)
    evaluations = [one for one in records if one["kind"] == "evaluation"]
    assert len(scored) == len(evaluations) + more > 0
    loaded, _, block = artifact.load(Path(payload.url, "artifact"))
    again = engine.evaluate(task_of_payload(payload), loaded, ALONE)
    del again["val_seconds"]
    assert again == metrics == block["provenance"]["metrics"]


def task_of_payload(payload: Any) -> Classification:
    data = payload.recipe.data
    sources = (SyntheticSource(payload.recipe.seed, data.train_images, data.size, "train"),)
    val = SyntheticSource(payload.recipe.seed, data.val_images, data.size, "val")
    return Classification(payload.recipe, payload.inputs, *sources, val, ALONE)


def torn(tiny: Make) -> Recipe:
    recipe = tiny({"optim.micro_batch": 8})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"on_bad": "skip"})})


def test_nothing_readable_to_evaluate_on(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is trained; and where files vanish later, instead of a division by zero."""
    recipe = torn(tiny)
    says = r"data\.val: none of its 3 images can be read, so nothing can be evaluated: picture 0: torn"
    train, val = SyntheticSource(0, 64, 32, "train"), Torn(0, 3, 32, "val")
    monkeypatch.setattr("backbone.training.pretrain.open_data", lambda data, seed: (train, val))
    with pytest.raises(UserError, match=says):
        prepare(recipe)
    task = task_of(recipe, val)
    with pytest.raises(UserError, match=says):
        task.evaluate(task.model, ALONE)
    val.intact = frozenset({2})
    prepare(recipe)
    found = task.evaluate(task.model, ALONE)
    assert (found["images"], found["unreadable"]) == (1, 2)


class Beside(World):
    """The first rank of three; the others have counted two images, one of them right."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values + torch.tensor([1.0, 2.0, 3.0, 2.0], dtype=values.dtype)

    def gather(self, value: Any) -> list[Any]:
        return [value, [], []]


def test_a_rank_without_images_takes_part(tiny: Make) -> None:
    """Two images on three ranks: one share is empty, and adds nothing."""
    world = Beside(0, 3, torch.device("cpu"))
    task = task_of(torn(tiny), SyntheticSource(0, 2, 32, "val"), world)
    found = task.evaluate(task.model, world)
    assert found == {"error": 50.0, "top5_error": 0.0, "loss": 1.5, "images": 2, "unreadable": 0}


def test_statistics_of_nothing(tiny: Make) -> None:
    source = Torn(0, 5, 32, "train")
    with pytest.raises(UserError, match=r"data\.train: none of 5 images of it can be read, such as picture "):
        statistics(source, torn(tiny).data)
    source.intact = frozenset({3})
    assert torch.isfinite(statistics(source, torn(tiny).data)["std"]).all()


def test_a_net_may_be_judged_larger_than_it_is_trained(tiny: Make) -> None:
    """And the artifact names that size, at which it is loaded and judged elsewhere."""
    recipe = tiny({"schedule.total": 2, "data.eval_size": 48, "run.precise_bn": 0})
    payload = prepare(recipe)
    task = task_of_payload(payload)
    assert task.train.batch(range(2))["images"].shape[-1] == 32
    assert {batch["images"].shape[-1] for batch in task._val_batches} == {48}
    metrics = pretrain(payload, ALONE, lambda record: None)
    _, inputs, block = artifact.load(Path(payload.url, "artifact"))
    assert inputs.size == 48
    assert block["provenance"]["metrics"]["val_error"] == metrics["val_error"]
