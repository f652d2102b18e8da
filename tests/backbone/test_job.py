"""Submitting: one process at a run, from before anything is written to the end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backbone import lease as leases
from backbone.errors import UserError
from backbone.job import Job, submit
from backbone.lease import FILE, Holder, lease
from backbone.training.pretrain import PRETRAIN
from backbone.training.recipe import Recipe
from backbone.training.run import run_url
from backbone.training.world import Payload, Report, World

Make = Callable[..., Recipe]


def test_a_second_submission_is_refused_before_it_writes(tiny: Make) -> None:
    recipe = tiny({"schedule.total": 2})
    folder = Path(run_url(recipe))
    with lease(str(folder)):
        with pytest.raises(UserError, match=r"runs/tiny is being trained by pid .*another --name"):
            submit(PRETRAIN, recipe)
        assert [file.name for file in folder.iterdir()] == [FILE]
    assert submit(PRETRAIN, recipe).seconds is not None
    assert submit(PRETRAIN, recipe).seconds is None
    assert not (folder / FILE).exists()


def test_of_the_processes_of_torchrun_the_first_holds_the_run(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny()
    folder = Path(run_url(recipe))

    def work(payload: Payload, world: World, report: Report) -> dict[str, Any]:
        return {"rank": world.rank, "held": (folder / FILE).exists()}

    job = Job(lambda recipe, say: Payload(run_url(recipe)), work, place=run_url)
    assert submit(job, recipe).results == {"rank": 0, "held": True}
    monkeypatch.setenv("RANK", "1")
    folder.mkdir(parents=True, exist_ok=True)
    assert submit(job, recipe).results == {"rank": 1, "held": False}
    with lease(str(folder)):
        assert submit(job, recipe).results == {"rank": 1, "held": True}


def test_a_run_that_was_taken_over_stops_writing(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process had been frozen: when it goes on, another has its run, and its next checkpoint is not written."""
    recipe = tiny({"run.log_every": 1})
    folder = Path(run_url(recipe))
    monkeypatch.setattr(leases, "CHECKED", 0.0)

    def freeze(record: dict[str, Any]) -> None:
        if record.get("step") == 6:
            (folder / FILE).write_text(json.dumps({**vars(Holder()), "token": "theirs", "pid": 7, "host": "node-7"}))

    with pytest.raises(UserError, match="pid 7 on node-7 took over"):
        submit(PRETRAIN, recipe, watch=freeze)
    assert sorted(file.name for file in (folder / "checkpoints").iterdir()) == ["step-00000004"]
    assert "took over" in (folder / "log.txt").read_text()
