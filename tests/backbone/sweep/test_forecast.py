"""What a sweep will take: epochs counted, hours against the cost model, the rungs against Ray's own scheduler."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import ASHAScheduler

from backbone.errors import UserError
from backbone.nets import build
from backbone.nets.count import macs, parameters
from backbone.sweep.ahead import Ahead
from backbone.sweep.board import Board
from backbone.sweep.forecast import describe, reached
from backbone.sweep.space import recipe_at
from backbone.training.cost import predict
from backbone.training.plan import shape_of
from tests.backbone.sweep.sweeps import ON_RAY, make
from tests.backbone.training.test_cost import RATES

GRID = {"model.depth": {"choice": [8, 14]}, "optim.lr": {"choice": [0.01, 0.1, 0.3]}}
TOTAL = {"schedule": {"unit": "epochs", "total": 8}}


def lines(text: str) -> dict[str, str]:
    return {line[:11].strip(): line[11:] for line in text.splitlines()}


def test_trials_epochs_hours_and_disk(tmp_path: Path) -> None:
    sweep = make(
        tmp_path,
        GRID,
        base_with={**ON_RAY, **TOTAL},
        search="grid",
        scheduler={"kind": "none"},
        budget={"trials": 0, "hours": 2},
    )
    told = lines(describe(sweep))
    assert told["space"] == "model.depth, optim.lr: 6 points"
    assert told["trials"] == "6, search grid: 3 of cifar_resnet8, 3 of cifar_resnet14"
    assert told["budget"] == "ends it after 2 hours"
    assert "cost_model.py" in told["time"]
    assert "rung" not in told
    ahead = Ahead(sweep)
    costs, multiply_adds = [], 0
    for depth in (8, 14):
        recipe = recipe_at(sweep, ahead.tree, {"model.depth": depth})
        net = build(recipe.model, 12)
        costs.append(predict(shape_of(recipe, macs(net, 32), parameters(net), 0, 160, 50), RATES))
        multiply_adds += 3 * 3 * macs(net, 32) * 16 * 80  # forward and backward, three rates, 80 steps of 16 images
    assert told["in full"] == f"48 epochs, {multiply_adds:.3g} multiply-adds"
    told = lines(describe(sweep, RATES))
    assert told["rates"].startswith(RATES.measured)
    assert f"{3 * sum(c.total for c in costs) / 3600:.3g} h one trial after another" in told["in full"]
    assert f"{3 * sum(c.device_hours for c in costs):.3g} device-hours" in told["in full"]
    assert not (tmp_path / "s").exists()
    board = Board(sweep, lambda text: None)
    assert told["disk"].startswith(f"at most {board.ahead.disk_bytes(1) / 2**30:.2f} GiB")
    assert [board.next() for _ in range(7)][-1] is None
    assert lines(describe(sweep))["there"].startswith("6 waiting")


def test_rungs(tmp_path: Path) -> None:
    sweep = make(
        tmp_path,
        base_with={**ON_RAY, **TOTAL},
        scheduler={"kind": "asha", "grace": 2, "reduction": 2},
        budget={"trials": 9},
    )
    text = describe(sweep)
    told = lines(text)
    begun = reached(9, 2, 2)
    assert begun[0] == 9
    assert told["in full"].startswith("72 epochs")
    assert "up to 25 % of its schedule: 9 trials, 18 epochs" in text
    assert f"up to 50 % of its schedule: about {begun[1]:.2g} trials, {2 * begun[1]:.3g} epochs" in text
    assert told["likely"].startswith(f"{18 + 2 * begun[1] + 4 * begun[2]:.3g} epochs")


def test_as_many_go_on_as_with_rays_own_scheduler() -> None:
    """Ranks that stay as they are, in 300 random orders."""
    rng, trials, went = np.random.default_rng(1), 8, np.zeros(3)
    for _ in range(300):
        scheduler = ASHAScheduler("share", "good", "max", max_t=100, grace_period=25, reduction_factor=3)
        for number, quality in enumerate(rng.random(trials)):
            trial: Any = SimpleNamespace(trial_id=str(number))
            scheduler.on_trial_add(None, trial)
            for part, share in enumerate((25, 75, 100)):
                went[part] += 1
                if scheduler.on_trial_result(None, trial, {"share": share, "good": float(quality)}) == "STOP":
                    break
    assert reached(trials, 2, 3) == pytest.approx(list(went / 300), rel=0.08)
    assert reached(5, 0, 1) == [5.0]


def test_a_forecast_refuses_what_the_sweep_would(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scaling\.num_workers 0"):
        describe(make(tmp_path, base_with={}))
    with pytest.raises(UserError, match=r"recipes have no such field; perhaps model\.depth"):
        describe(make(tmp_path, {"model.depht": {"choice": [8, 14]}}))


def test_the_job_says_it(run_job: Callable[..., subprocess.CompletedProcess], tmp_path: Path) -> None:
    words = ["--config", "jobs/recipes/quickstart/sweep.yaml", "--storage", tmp_path, "--dry-run"]
    done = run_job("sweep", *words, "--rates", "docs/results/cost_model.json")
    assert done.returncode == 0, done.stderr
    assert "trials     8, search random: " in done.stdout
    assert "device-hours" in done.stdout
    assert not list(tmp_path.iterdir())
