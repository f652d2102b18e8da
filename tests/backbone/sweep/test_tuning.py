"""Tune's part: a scheduler that is told again decides the same, and a population's winner is one run in pieces."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from backbone.artifact import load
from backbone.cli import load as load_recipe
from backbone.cluster import places_of
from backbone.compute import Scaling
from backbone.errors import UserError
from backbone.sweep.board import Board
from backbone.sweep.run import run
from backbone.sweep.tuning import _scheduler, _tell_again
from backbone.training.pretrain import prepare, pretrain
from backbone.training.ray_train import launch
from backbone.training.recipe import Recipe
from tests.backbone.sweep.sweeps import make


def test_some_trial_always_has_a_place() -> None:
    """Tune takes none for no bound."""
    assert places_of(Scaling(num_workers=8, autoscales=True), 0, 0) == 1
    assert places_of(Scaling(num_workers=4, min_workers=1), 2, 0) == 1
    assert [places_of(Scaling(num_workers=2), 8, most) for most in (0, 3, 9)] == [4, 3, 4]
    assert [places_of(Scaling(num_workers=2, autoscales=True), 8, most) for most in (0, 1, 9)] == [4, 1, 9]


class Named:
    def __init__(self, name: str) -> None:
        self.trial_id = name


def decisions(scheduler: Any, rows: list[tuple[str, float, float]], epochs: float = 8) -> list[str]:
    told = [(name, {"epoch": epoch, "share": epoch / epochs, "val_error": error}) for name, epoch, error in rows]
    return [scheduler.on_trial_result(None, Named(name), row) for name, row in told]


def test_asha_told_again_decides_as_if_it_had_never_ended(tmp_path: Path) -> None:
    before = [("0000", 1.0, 50.0), ("0001", 1.0, 60.0), ("0002", 1.0, 40.0), ("0003", 1.0, 45.0), ("0002", 2.0, 30.0)]
    after = [("0004", 1.0, 44.0), ("0005", 1.0, 39.0), ("0005", 2.0, 31.0), ("0003", 2.0, 29.0), ("0005", 3.0, 5.0)]
    whole = ASHAScheduler(
        time_attr="epoch", metric="val_error", mode="min", max_t=8, grace_period=1, reduction_factor=2
    )
    for i in range(6):
        whole.on_trial_add(None, Named(f"{i:04d}"))
    assert decisions(whole, before)[1] == TrialScheduler.STOP
    expected = decisions(whole, after)
    assert set(expected) == {TrialScheduler.STOP, TrialScheduler.CONTINUE}

    space = {"optim.lr": {"uniform": [0.1, 0.2]}}
    on_ray = {"scaling": {"num_workers": 1}, "schedule": {"total": 80}}
    board = Board(make(tmp_path, space, base_with=on_ray, scheduler={"reduction": 2}), lambda text: None)
    assert board.record.rungs == [1 / 8, 2 / 8, 4 / 8]
    for _ in range(4):
        board.next()
    for name, epoch, error in before:
        board.reported(board.record.trial(name), {"step": 10 * epoch, "epoch": epoch, "val_error": error}, {})
    for name, state in {"0000": "stopped", "0001": "stopped", "0002": "finished"}.items():
        board.record.trial(name).state = state
    again = _scheduler(board)
    _tell_again(again, board.record.trial("0003"), "0003")  # it goes on
    for name in ("0003", "0004", "0005"):
        again.on_trial_add(None, Named(name))
    assert decisions(again, after) == expected


def test_a_longer_schedule_wins_where_it_is_better_in_the_end(tmp_path: Path) -> None:
    """Errors fall as cosines do: after equally many epochs the longer trial is the worse one, until it ends."""
    space = {"schedule.total": {"choice": [20, 60]}}
    on_ray = {"scaling": {"num_workers": 1}, "schedule": {"kind": "cosine"}}
    board = Board(make(tmp_path, space, search="grid", base_with=on_ray, scheduler={"reduction": 2}), lambda text: None)
    trials = {round(trial.epochs): trial for trial in iter(board.next, None)}
    scheduler, told = _scheduler(board), {}
    for trial in trials.values():
        scheduler.on_trial_add(None, Named(trial.id))

    def error(length: int, epoch: int) -> float:
        return 80 - (50 + length) * (1 - math.cos(math.pi * epoch / length)) / 2

    assert error(2, 1) < error(6, 1)
    assert error(2, 2) > error(6, 6)
    for length, epoch in [(2, 1), (6, 1), (2, 2), (6, 2), (6, 3), (6, 4), (6, 5)]:
        row = {"epoch": epoch, "val_error": error(length, epoch)}
        share = trials[length].share(row)
        told[length, epoch] = scheduler.on_trial_result(None, Named(trials[length].id), {**row, "share": share})
    assert {told[6, epoch] for epoch in range(1, 6)} == {TrialScheduler.CONTINUE}


def test_kinds_of_schedule_are_not_compared_midway(tmp_path: Path) -> None:
    space = {"schedule": {"choice": [{"kind": "cosine"}, {"kind": "constant"}]}}
    with pytest.raises(UserError, match=r"space: schedules of kinds constant and cosine: .*--scheduler.kind none"):
        Board(make(tmp_path, space), lambda text: None)
    Board(make(tmp_path, space, scheduler={"kind": "none"}), lambda text: None)


@pytest.mark.slow
@pytest.mark.ray
def test_a_population_shares_weights_and_its_winner_is_one_run_in_pieces(tmp_path: Path, ray_cluster: Any) -> None:
    """The worse takes over the better's weights; `best.yaml`, trained at one go, gives the same weights to the bit."""
    said: list[str] = []
    base = {
        "scaling": {"num_workers": 1},
        "schedule": {"kind": "constant", "total": 30},
        "run": {"storage": str(tmp_path / "again"), "checkpoint_every": 0},
    }
    space = {"optim.lr": {"loguniform": [0.0001, 0.3]}}
    scheduler = {"kind": "pbt", "every": 2, "share": 0.5}
    sweep = make(tmp_path, space, base_with=base, scheduler=scheduler, budget={"trials": 2}, seed=1)
    record = run(sweep, say=said.append)
    assert [trial.state for trial in record.trials] == ["finished", "finished"]
    (moved,) = [trial for trial in record.trials if trial.lineage]
    (stayed,) = [trial for trial in record.trials if not trial.lineage]
    (change,) = moved.lineage
    assert (change["epoch"], change["step"], change["from"]) == (2.0, 20, stayed.id)
    assert change["lr_before"] == stayed.point["optim.lr"] != change["lr"]
    assert moved.lr[-1][1] == change["lr"]
    assert any("takes over" in line for line in said)

    for trial in record.trials:
        record.best = trial.id
        board = Board(sweep, said.append)
        board.record.best = trial.id
        board.end("finished", "")
        recipe = load_recipe(Recipe, tmp_path / "s" / "best.yaml")
        recipe = recipe.model_copy(update={"name": f"again-{trial.id}"})
        recipe = recipe.model_copy(update={"scaling": recipe.scaling.model_copy(update={"num_workers": 0})})
        payload = prepare(recipe)
        launch(pretrain, payload, recipe.scaling)
        net, _, _ = load(Path(payload.url, "artifact"))
        theirs, _, _ = load(Path(record.place(trial), "artifact"))
        for (name, mine), other in zip(net.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert mine.equal(other), name


@pytest.mark.slow
@pytest.mark.ray
def test_trials_follow_each_other_in_one_process(tmp_path: Path, ray_cluster: Any) -> None:
    """Those that are stopped on their way, too; what a trial trains is what its recipe trains by itself, to the bit."""
    base = {"scaling": {"num_workers": 1}, "run": {"checkpoint_every": 0}, "schedule": {"kind": "cosine", "total": 40}}
    space = {"optim.lr": {"choice": [0.1, 0.05, 0.02, 1e-6, 1e-7, 1e-8]}}
    scheduler = {"kind": "asha", "grace": 1, "reduction": 2}
    sweep = make(tmp_path, space, base_with=base, search="grid", scheduler=scheduler, parallel=1)
    record = run(sweep, say=lambda text: None)
    states = [trial.state for trial in record.trials]
    assert set(states) == {"finished", "stopped"}
    results = (tmp_path / "s" / "tune").rglob("result.json")
    pids = [json.loads(path.read_text().splitlines()[0])["pid"] for path in results]
    assert len(pids) == len(states) == 6
    assert len(set(pids)) == 1

    last = next(trial for trial in reversed(record.trials) if trial.state == "finished")
    recipe = load_recipe(Recipe, Path(record.place(last), "recipe.yaml"))
    recipe = recipe.model_copy(update={"name": "again", "scaling": Scaling(num_workers=0)})
    payload = prepare(recipe)
    launch(pretrain, payload, recipe.scaling)
    mine, theirs = (load(Path(place, "artifact"))[0].state_dict() for place in (payload.url, record.place(last)))
    assert all(mine[name].equal(theirs[name]) for name in mine)
    for trial in record.trials:
        told = Path(record.place(trial), "log.txt").read_text()
        assert "Traceback" not in told
        assert "submit again" not in told
        assert (f"step {recipe.schedule.total:g}/" in told) == (trial.state == "finished")


def test_a_budget_that_ends_a_sweep_without_a_trial_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    why = "budget.hours 0.1 is used up"
    monkeypatch.setattr("backbone.sweep.run._run", lambda board, *more: board.end("finished", why))
    with pytest.raises(UserError, match=f"no trial finished: {why}; a larger --budget.hours goes on with them"):
        run(make(tmp_path), say=lambda text: None)
