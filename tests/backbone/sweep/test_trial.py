"""What a trial knows of its run when it starts again: every evaluation there was, from the run's own files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backbone.sweep.trial import _is_last, evaluations
from backbone.training.pretrain import prepare, pretrain
from backbone.training.ray_train import launch
from backbone.training.recipe import Recipe


def test_what_a_run_reported_is_found_again(tiny: Callable[..., Recipe]) -> None:
    """The same rows from its newest checkpoint, interrupted anywhere, and from its history, finished."""
    recipe = tiny({"schedule.total": 30, "run.checkpoint_every": 5, "run.keep": 10})
    payload = prepare(recipe)
    assert evaluations(payload.url, recipe) == []
    seen: list[dict[str, Any]] = []

    def watch(record: dict[str, Any]) -> None:
        if record["kind"] == "evaluation":
            seen.append({k: v for k, v in record.items() if k not in ("kind", "total", "val_seconds")})

    launch(pretrain, payload, recipe.scaling, watch=watch)
    expected = [{**row, "device_hours": 0.0} for row in seen]  # in this process: no device of the cluster
    assert [row["epoch"] for row in seen] == [1, 2, 3]
    assert evaluations(payload.url, recipe) == [pytest.approx(row) for row in expected]
    assert [_is_last(row, recipe) for row in seen] == [False, False, True]

    Path(payload.url, "history.json").unlink()
    assert evaluations(payload.url, recipe) == [pytest.approx(row) for row in expected]
    for step in (25, 30):
        for file in Path(payload.url, "checkpoints", f"step-{step:08d}").glob("*"):
            file.unlink()
    assert evaluations(payload.url, recipe) == [pytest.approx(row) for row in expected[:2]]
