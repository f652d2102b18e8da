"""What a trial knows of its run when it starts again: every evaluation there was, from the run's own files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from backbone.sweep.trial import evaluations
from backbone.training.pretrain import prepare, pretrain
from backbone.training.ray_train import launch
from backbone.training.recipe import Recipe


def test_what_a_run_reported_is_found_again(tiny: Callable[..., Recipe]) -> None:
    """The same rows from its newest checkpoint, interrupted anywhere, and from its history, finished."""
    recipe = tiny({"schedule.total": 30, "run.checkpoint_every": 5, "run.keep": 10})
    payload = prepare(recipe)
    assert evaluations(payload.url) == []
    seen: list[dict[str, Any]] = []

    def watch(record: dict[str, Any]) -> None:
        if record["kind"] == "evaluation":
            seen.append(record)

    launch(pretrain, payload, recipe.scaling, watch=watch)
    assert [row["epoch"] for row in seen] == [1, 2, 3]
    assert [row["step"] for row in seen] == [10, 20, 30]
    assert seen[0]["total"] == 30
    assert evaluations(payload.url) == seen

    Path(payload.url, "history.json").unlink()
    assert evaluations(payload.url) == seen
    for step in (25, 30):
        for file in Path(payload.url, "checkpoints", f"step-{step:08d}").glob("*"):
            file.unlink()
    assert evaluations(payload.url) == seen[:2]
