"""What a trial knows of its run when it starts again, from the run's own files, and what it leaves to the next one."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backbone.errors import UserError
from backbone.stopping import Stopped
from backbone.sweep.segment import Segment
from backbone.sweep.trial import Common, _forget, _Run, evaluations
from backbone.training.pretrain import prepare, pretrain
from backbone.training.ray_train import launch
from backbone.training.recipe import Recipe
from backbone.training.run import run_url
from tests.backbone.sweep.sweeps import make


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


def test_what_a_run_held_goes_with_it_though_its_error_is_kept() -> None:
    """The next trial has the process: it shall not train beside the model of one that was stopped or that diverged."""

    class Model:
        pass

    held: list[weakref.ref[Model]] = []

    def train() -> None:
        model = Model()
        model.itself = model  # ty: ignore[unresolved-attribute]
        held.append(weakref.ref(model))
        raise FloatingPointError("the loss is not finite")

    def submit() -> None:
        try:
            train()
        except FloatingPointError as error:
            raise UserError("lower optim.lr") from error

    kept: list[BaseException] = []
    try:
        submit()
    except UserError as error:
        kept.append(error)
    assert held[0]()
    _forget(kept[0])
    assert held[0]() is None
    assert str(kept[0]) == "lower optim.lr"


def test_a_run_that_shall_end_ends_at_its_next_record(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    sweep = make(tmp_path, scheduler={"kind": "asha"})
    recipe = tiny({"run.eval_every": 1, "run.log_every": 1, "schedule.total": 30})
    run = _Run(Segment(recipe, "0000"), Common(sweep, {}, str(tmp_path), str(tmp_path), None, alone=True, follows=True))
    run.start()
    first = next(record for record in iter(run.records.get, None) if record["kind"] == "evaluation")
    assert first["step"] < first["total"]
    run.end()
    assert isinstance(run.error, Stopped)
    log = Path(run_url(recipe), "log.txt").read_text()
    assert log.rstrip().endswith(f"stopped at step {first['step']}")
