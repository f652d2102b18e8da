"""A run is its name: what may go on in its folder and what may not."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from backbone.errors import UserError
from backbone.training.recipe import Recipe
from backbone.training.run import check_split, first_micro_batch, open_run, run_url

Make = Callable[..., Recipe]
DATA = {"train": "f" * 64, "val": "e" * 64}


def test_the_same_recipe_goes_on_and_keeps_its_micro_batch(tiny: Make) -> None:
    first = open_run(tiny({"scaling.num_workers": 2}), DATA, 1)
    assert first.optim.micro_batch == 8
    # on one worker the micro-batch, the unit of batch statistics, stays; it accumulates instead
    assert open_run(tiny({"scaling.num_workers": 1}), DATA, 1).optim.micro_batch == 8
    assert open_run(tiny({"data.workers": 3, "run.keep": 5, "scaling.use_gpu": True}), DATA, 1).optim.micro_batch == 8


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"optim.lr": 0.3}, r"optim.lr: the run has 0.05, this recipe 0.3"),
        ({"model.depth": 14}, r"model.depth: the run has 8, this recipe 14"),
        ({"seed": 1}, "seed: the run has 0, this recipe 1"),
        ({"optim.micro_batch": 2}, "optim.micro_batch: the run has 16, this recipe 2"),
    ],
)
def test_another_recipe_under_the_name_is_refused(tiny: Make, change: dict, complaint: str) -> None:
    open_run(tiny(), DATA, 1)
    with pytest.raises(UserError, match=complaint):
        open_run(tiny(change), DATA, 1)


def test_another_kind_is_the_one_difference_and_old_records_of_all_kinds_go_on(tiny: Make) -> None:
    recipe = tiny()
    open_run(recipe, DATA, 1)
    steps = {"schedule.kind": "steps", "schedule.milestones": [1], "schedule.total": recipe.schedule.total}
    with pytest.raises(UserError, match=r"run:\n  schedule.kind: the run has '\w+', this recipe 'steps'\ngive"):
        open_run(tiny(steps), DATA, 1)
    file = Path(run_url(recipe)) / "run.json"
    record = json.loads(file.read_text())
    record["identity"]["schedule.milestones"] = []  # as all kinds had it once
    file.write_text(json.dumps(record))
    open_run(recipe, DATA, 1)
    record["identity"]["optim.rho"] = 0.1  # an option there is no more
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"optim.rho: the run has 0.1, this recipe None"):
        open_run(recipe, DATA, 1)


def test_other_data_under_the_name_is_refused(tiny: Make) -> None:
    open_run(tiny(), DATA, 1)
    with pytest.raises(UserError, match=r"train: another one \(fingerprint ffffffffffff, now aaaaaaaaaaaa"):
        open_run(tiny(), {**DATA, "train": "a" * 64}, 1)


def test_the_recipe_written_into_the_run_resumes_it(tiny: Make) -> None:
    from backbone.cli import load

    recipe = tiny({"name": ""})
    opened = open_run(recipe, DATA, 1)
    written = load(Recipe, Path(run_url(recipe)) / "recipe.yaml")
    assert written == opened
    assert run_url(written) == run_url(recipe)
    assert open_run(written, DATA, 1) == opened


@pytest.mark.parametrize(
    ("batch", "workers", "complaint"),
    [(16, 3, r"one of \[1, 2, 4, 8, 16\] workers, or batch 15 or 18"), (2, 4, "batch 4")],
)
def test_a_batch_that_does_not_split_names_what_would(tiny: Make, batch: int, workers: int, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        first_micro_batch(tiny({"optim.batch": batch, "scaling.num_workers": workers}))


def test_processes_of_torchrun_share_a_batch_as_workers_do(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one of them would have no micro-batch at all, and the others' sums would wait for it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert open_run(tiny(), DATA, 1).optim.micro_batch == 8
    with pytest.raises(UserError, match="15 does not split over 2 processes: take one of"):
        first_micro_batch(tiny({"optim.batch": 15}))
    with pytest.raises(UserError, match="1 micro-batches of 16, which do not split over 2 processes"):
        check_split(tiny({"optim.micro_batch": 16}))
    with pytest.raises(UserError, match="norm sync over several workers needs"):
        tiny({"model.norm": "sync"})


def test_micro_batches_must_split_over_workers_unless_elastic(tiny: Make) -> None:
    options = {"optim.micro_batch": 4, "scaling.num_workers": 3}
    with pytest.raises(UserError, match=r"4 micro-batches of 4.*one of \[1, 2, 4\] workers"):
        open_run(tiny(options), DATA, 1)
    open_run(tiny({**options, "scaling.min_workers": 1}), DATA, 1)
    on_gpus = {"scaling.min_workers": 1, "scaling.use_gpu": True, "model.norm": "sync"}
    with pytest.raises(UserError, match="norm sync needs equal shares"):
        open_run(tiny({**options, **on_gpus}), DATA, 1)


def test_storage_that_cannot_be_used(tiny: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        open_run(tiny({"run.storage": str(tmp_path / "file")}), DATA, 1)
    with pytest.raises(UserError, match=r"MiB free, but checkpoints take .* MiB"):
        open_run(tiny(), DATA, 2**60)
    with pytest.raises(UserError, match="cannot open nothing://x"):
        open_run(tiny({"run.storage": "nothing://x"}), DATA, 1)


def test_a_relative_storage_in_a_submitted_job_is_refused(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match=r"run.storage 'runs' is relative"):
        run_url(tiny({"run.storage": "runs"}))


def test_run_json_shows_what_the_run_is(tiny: Make) -> None:
    recipe = tiny()
    open_run(recipe, DATA, 1)
    record = json.loads((Path(run_url(recipe)) / "run.json").read_text())
    assert record["data"] == DATA
    assert record["identity"]["optim.batch"] == 16


def test_its_own_checkpoints_are_not_asked_for_again(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = open_run(tiny({"run.keep": 2}), DATA, 1000)
    monkeypatch.setattr("backbone.training.run.shutil.disk_usage", lambda path: SimpleNamespace(free=1500))
    with pytest.raises(UserError, match="free, but checkpoints take"):
        open_run(recipe, DATA, 1000)
    state = Path(run_url(recipe), "checkpoints/step-00000001/state.pt")
    state.parent.mkdir(parents=True)
    state.write_bytes(bytes(3000))
    open_run(recipe, DATA, 1000)
    state.unlink()
    finished = Path(run_url(recipe), "artifact/config.json")
    finished.parent.mkdir()
    finished.touch()
    open_run(recipe, DATA, 1000)


def test_a_run_that_a_bad_image_stopped_goes_on_without_it(tiny: Make) -> None:
    open_run(tiny(), DATA, 1)
    open_run(tiny({"data.on_bad": "skip", "data.max_bad": 3}), DATA, 1)


def test_synchronised_statistics_keep_their_workers(tiny: Make) -> None:
    sync = {"model.norm": "sync", "scaling.use_gpu": True}
    open_run(tiny({**sync, "scaling.num_workers": 2}), DATA, 1)
    with pytest.raises(UserError, match=r"this run has 2: go on with --scaling\.num_workers 2"):
        open_run(tiny({**sync, "scaling.num_workers": 1}), DATA, 1)
    opened = open_run(tiny({**sync, "scaling.num_workers": 2}), DATA, 1)
    artifact = Path(run_url(opened), "artifact")
    artifact.mkdir()
    (artifact / "config.json").touch()
    open_run(tiny({**sync, "scaling.num_workers": 1}), DATA, 1)  # finished: it is looked at alone
