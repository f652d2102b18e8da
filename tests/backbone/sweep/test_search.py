"""What is tried next: TPE learns, nothing is tried twice, and a search that goes on proposes other points."""

import math
from pathlib import Path

import pytest

from backbone.sweep.record import Trial
from backbone.sweep.search import Search, _decoded
from backbone.sweep.space import key
from tests.backbone.sweep.sweeps import make

SPACE = {
    "optim.lr": {"loguniform": [0.001, 1.0]},
    "schedule": {"choice": [{"kind": "cosine"}, {"kind": "steps", "milestones": [8]}]},
    "optim.batch": {"integers": [8, 32, 8]},
}


def ended(i: int, point: dict) -> Trial:
    """As if 0.05 and batch 16 were the best there is."""
    error = 20 * abs(math.log10(point["optim.lr"] / 0.05)) + abs(point["optim.batch"] - 16)
    return Trial(id=f"{i:04d}", point=point, folder="", state="finished", values={"val_error": error, "macs": 1.0})


def searched(search: Search, count: int) -> list[Trial]:
    trials = []
    for i in range(count):
        point = search.next()
        assert point is not None
        trials.append(ended(i, point))
        search.learn(trials[-1])
    return trials


def test_tpe_finds_what_random_search_does_not(tmp_path: Path) -> None:
    found = {}
    for kind in ("random", "tpe"):
        sweep = make(tmp_path, SPACE, search=kind, budget={"trials": 60})
        late = sorted(trial.values["val_error"] for trial in searched(Search(sweep, []), 60)[30:])
        found[kind] = late[15]  # the median of the second half
    assert found["tpe"] < 0.5 * found["random"]


def test_tpe_takes_any_seed_of_a_recipe(tmp_path: Path) -> None:
    for seed in (2**32 - 1, 2**63 - 1):
        assert searched(Search(make(tmp_path, SPACE, search="tpe", seed=seed, budget={"trials": 9}), []), 7)


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_a_search_that_goes_on_repeats_nothing(tmp_path: Path, kind: str) -> None:
    space = {"optim.batch": {"integers": [8, 16, 8]}, "model.depth": {"choice": [8, 14, 20]}}
    sweep = make(tmp_path, space, search=kind, budget={"trials": 20})
    first = Search(sweep, [])
    done = [Trial(id=str(i), point=first.next() or {}, folder="") for i in range(3)]
    for i, trial in enumerate(done):
        trial.state, trial.values = "finished", {"val_error": 50.0 + i}
    rest = list(iter(Search(sweep, done).next, None))
    assert len({key(point) for point in [*(trial.point for trial in done), *rest]}) == 6  # all there are, once each


def test_the_budget_counts_all_trials(tmp_path: Path) -> None:
    sweep = make(tmp_path, SPACE, budget={"trials": 4})
    done = searched(Search(sweep, []), 3)
    search = Search(sweep, done)
    assert search.next() is not None
    assert search.next() is None


def test_tpe_takes_what_was_stopped_and_two_objectives(tmp_path: Path) -> None:
    sweep = make(tmp_path, SPACE, search="tpe", objectives=["val_error", "macs"], budget={"trials": 30})
    assert len(searched(Search(sweep, []), 12)) == 12
    one = make(tmp_path, SPACE, search="tpe", budget={"trials": 30})
    search = Search(one, [])
    for i in range(8):
        trial = ended(i, search.next() or {})
        trial.state, trial.history = "stopped", [{"step": 5, "epoch": 1.0, "val_error": trial.values["val_error"]}]
        search.learn(trial)
    assert search.next()


def test_tpe_stays_in_its_range(tmp_path: Path) -> None:
    high = 3.0517578125e-05  # of which four digits are more
    space = {"optim.weight_decay": {"loguniform": [1e-5, high]}}
    search = Search(make(tmp_path, space, search="tpe", budget={"trials": 300}), [])
    points = [point["optim.weight_decay"] for _ in range(200) if (point := search.next())]
    assert all(1e-5 <= point <= high for point in points)
    sweep = make(tmp_path, space)
    assert _decoded(sweep.space["optim.weight_decay"], 3.05172e-05) == high  # and not 3.052e-05
    beyond = Trial("0000", {"optim.weight_decay": 3.052e-05}, "", state="finished", values={"val_error": 1.0})
    Search(make(tmp_path, space, search="tpe", budget={"trials": 300}), [beyond])  # of a sweep that goes on


def test_trials_stopped_early_are_ranked_by_their_error_whatever_is_looked_for(tmp_path: Path) -> None:
    """Optuna negates what it is told where more is better."""
    for objective, told in (("val_error", 40.0), ("AP", -40.0)):
        more = {"finetune": "detector.yaml"} if objective == "AP" else {}
        search = Search(make(tmp_path, SPACE, search="tpe", objectives=[objective], **more), [])
        point = search.next()
        assert point
        row = {"step": 5.0, "epoch": 1.0, "val_error": 40.0}
        search.learn(Trial("0000", point, "", state="stopped", history=[row]))
        assert search._tpe
        assert search._tpe._study.trials[-1].intermediate_values == {5: told}
