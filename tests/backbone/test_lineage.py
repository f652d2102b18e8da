"""What is told of a storage, against runs that really were trained, stopped, killed and broken there."""

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import yaml
from fsspec.implementations.local import LocalFileSystem

import backbone
import detection
from backbone.artifact import read_config
from backbone.cli import validate
from backbone.errors import StorageLost, UserError
from backbone.lease import lease
from backbone.lineage import Held, Origin, how_it_ended, linked, read_storage
from backbone.pruning import Listing, Removal, choose, remove, table
from backbone.training.recipe import Recipe
from tests.conftest import TINY, StartedJob
from tests.detection.conftest import SMALL

DAY = 86_400
PATIENCE = 300
"""Seconds after which a job hangs: on a loaded machine one that ends takes more than a minute."""


def recipe(runs: Path, name: str, **overrides: object) -> Recipe:
    quick = {"schedule.total": 8, "run.storage": str(runs), "name": name}
    return validate(Recipe, TINY, "tiny", {**quick, **overrides})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, a comparison of it with the same net from scratch, and a run whose loss became infinite."""
    runs = tmp_path_factory.mktemp("storage") / "runs"
    first = backbone.pretrain(recipe(runs, "first"))
    detection.gains(
        {
            "name": "compare",
            "baseline": "none",
            "finetune": _file(runs.parent / "detector.yaml"),
            "rows": {"one": {"artifact": first.artifact}, "none": {"scratch": "one"}},
            "storage": str(runs),
            "finetune_with": {"schedule": {"total": 3}, "detector": {"anchor_sizes": [8, 16, 24, 32]}},
            "resamples": 100,
        }
    )
    with pytest.raises(FloatingPointError):
        backbone.pretrain(recipe(runs, "broken", **{"optim.lr": 1e30, "run.log_every": 1}))
    return runs


def _file(path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(SMALL))
    return str(path)


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A storage of one's own."""
    return Path(shutil.copytree(trained, tmp_path / "runs"))


def named(storage: Path | str) -> dict[str, Held]:
    return {run.name: run for run in read_storage(str(storage))}


def test_kinds_states_and_what_came_from_what(trained: Path) -> None:
    found = named(trained)
    assert {name: (run.kind, run.state) for name, run in found.items()} == {
        "first": ("backbone", "finished"),
        "compare": ("comparison", "finished"),
        "compare-one-seed0": ("detector", "finished"),
        "compare-none-seed0": ("detector", "finished"),
        "broken": ("backbone", "failed"),
    }
    first = read_config(trained / "first" / "artifact")["raybone"]
    assert found["first"].sha256 == first["weights_sha256"]
    assert found["first"].best["val_error"] == first["provenance"]["metrics"]["val_error"]
    (pretrained,), (scratch,) = (found[f"compare-{row}-seed0"].origins for row in ("one", "none"))
    assert (pretrained.run, pretrained.sha256) == ("first", first["weights_sha256"])
    assert (scratch.run, scratch.sha256) == ("first", None)  # its net, and none of its weights
    shown = {line.split()[0]: "first (net alone)" in line for line in table(list(found.values())).splitlines() if line}
    assert [name for name, alone in shown.items() if alone] == ["compare-none-seed0"]
    detectors = ("compare-one-seed0", "compare-none-seed0")
    assert {one.run: one.sha256 for one in found["compare"].origins} == {run: found[run].sha256 for run in detectors}
    assert found["broken"].why.startswith("FloatingPointError: loss is not finite at step")


def test_sizes_are_those_of_the_files(trained: Path) -> None:
    found = named(trained)
    for name, run in found.items():
        files = [path for path in (trained / name).rglob("*") if path.is_file()]
        assert run.size == sum(path.stat().st_size for path in files)
        states = [path for path in files if "checkpoints" in path.parts]
        assert run.checkpoints == sum(path.stat().st_size for path in states)
        assert run.updated == max(path.stat().st_mtime for path in files)
    assert found["first"].checkpoints > 0
    text = table(list(found.values()))
    assert f"{sum(run.size for run in found.values()) / 1e6:.1f} MB" in text


def test_a_backbone_elsewhere_is_found_by_its_hash_alone(runs: Path) -> None:
    (runs / "first").rename(runs / "another-name")
    one = named(runs)["compare-one-seed0"]
    assert one.origins[0].run == "another-name"


def test_running_stopped_and_killed(tmp_path: Path, start_job: Callable[..., StartedJob]) -> None:
    words = ["--config", "jobs/recipes/quickstart/residual.yaml", "--run.storage", tmp_path, "--scaling.num_workers", 0]
    words += ["--data.train_images", 64, "--data.val_images", 16, "--run.eval_every", 2, "--run.checkpoint_every", 3]
    words += ["--run.log_every", 1, "--schedule.total", 10_000]
    for name, how, code in (("stopped", signal.SIGTERM, 143), ("killed", signal.SIGKILL, -9)):
        job = start_job("pretrain", *words, "--name", name)
        deadline = time.monotonic() + PATIENCE
        while not list(tmp_path.glob(f"{name}/checkpoints/step-*/manifest.json")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        run = named(tmp_path)[name]
        assert run.state == "running"
        assert run.why.startswith(f"pid {job.pid} on ")
        chosen, _ = choose([run], Listing(prune=("failed", "stopped", "checkpoints")))
        assert not chosen
        os.kill(job.pid, how)
        assert job.wait(PATIENCE).returncode == code
    found = named(tmp_path)
    assert {run.state for run in found.values()} == {"stopped"}
    assert found["stopped"].why.endswith("submit again to go on")
    assert found["killed"].why.startswith(("without a word, after: epoch ", "without a word, after: step "))
    assert found["stopped"].headline.startswith("top-1 ")
    assert "at step " in found["stopped"].headline


def test_checkpoints_of_finished_runs_go_and_nothing_else(runs: Path) -> None:
    before = named(runs)
    chosen, kept = choose(list(before.values()), Listing(prune=("checkpoints",)))
    assert [one.run.name for one in chosen] == ["compare-none-seed0", "compare-one-seed0", "first"]
    assert (runs / "first" / "checkpoints").exists()  # choosing removes nothing
    gone = remove(chosen, print)
    after = named(runs)
    assert gone == sum(before[name].size - after[name].size for name in before) > 0
    assert all(after[one.run.name].checkpoints == 0 for one in chosen)
    assert kept == []
    for name in ("first", "compare-one-seed0"):
        assert {*before[name].files} - {*after[name].files} == {
            file for file in before[name].files if file.startswith("checkpoints/")
        }
    again = backbone.pretrain(recipe(runs, "first"))  # it is finished as before
    assert again.seconds is None
    backbone.load(again.artifact)


def test_failed_and_stopped_runs_go_whole(runs: Path) -> None:
    (runs / "first" / "artifact" / "config.json").unlink()  # now it is stopped, and a detector is made of it
    chosen, kept = choose(read_storage(str(runs)), Listing(prune=("failed", "stopped")))
    assert [(one.run.name, one.whole) for one in chosen] == [("broken", True)]
    assert kept == ["first: stays, compare-none-seed0 came from it"]
    remove(chosen, print)
    assert not (runs / "broken").exists()
    assert (runs / "first" / "run.json").exists()


def test_only_old_ones_go(runs: Path) -> None:
    asked = Listing(prune=("failed",), older_than=30)
    assert choose(read_storage(str(runs)), asked) == ([], [])
    chosen, _ = choose(read_storage(str(runs)), asked, now=time.time() + 31 * DAY)
    assert [one.run.name for one in chosen] == ["broken"]


def test_what_has_changed_since_or_is_held_stays(runs: Path) -> None:
    chosen, _ = choose(read_storage(str(runs)), Listing(prune=("failed", "checkpoints")))
    said: list[str] = []
    (runs / "broken" / "checkpoints" / "new").mkdir(parents=True)
    (runs / "broken" / "checkpoints" / "new" / "state.pt").write_bytes(b"1")
    with lease(str(runs / "first")):
        remove(chosen, said.append)
    assert "broken: stays, it has changed since it was looked at" in said
    assert any(line.startswith("first: stays (") and "is being trained by pid" in line for line in said)
    assert (runs / "broken" / "run.json").exists()
    assert (runs / "first" / "checkpoints").exists()


def test_what_was_written_over_since_stays(runs: Path) -> None:
    """The same names, other bytes: somebody went on with it meanwhile, and has ended."""
    chosen, _ = choose(read_storage(str(runs)), Listing(prune=("failed",)))
    recipe = runs / "broken" / "recipe.yaml"
    size, time_before = recipe.stat().st_size, recipe.stat().st_mtime
    said: list[str] = []
    recipe.write_bytes(recipe.read_bytes() + b"\n")
    remove(chosen, said.append)
    recipe.write_bytes(b"#" * size)
    os.utime(recipe, (time_before + 1, time_before + 1))
    remove(chosen, said.append)
    assert said == 2 * ["broken: stays, it has changed since it was looked at"]
    os.utime(recipe, (time_before, time_before))
    remove(chosen, said.append)
    assert not (runs / "broken").exists()


def test_a_run_that_was_removed_in_part_is_listed_and_goes_the_next_time(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (runs / "broken" / "checkpoints" / "step-00000002").mkdir(parents=True)
    (runs / "broken" / "checkpoints" / "step-00000002" / "state.pt").write_bytes(b"1")
    (run,) = (one for one in read_storage(str(runs)) if one.name == "broken")
    remove_files = LocalFileSystem.rm
    left = iter(range(1))

    def once(self: LocalFileSystem, path: str, **how: bool) -> None:
        if next(left, None) is None:
            raise OSError(errno.EIO, "the disk fails")
        remove_files(self, path, **how)

    said: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(LocalFileSystem, "rm", once)
        remove([Removal(run, True)], said.append)
    assert said == ["broken: stays ([Errno 5] the disk fails)"]
    assert not (runs / "broken" / "checkpoints").exists()  # of another recipe's run of that name it would be the start
    chosen, _ = choose(read_storage(str(runs)), Listing(prune=("failed", "stopped")))
    assert "broken" in [one.run.name for one in chosen]
    remove([one for one in chosen if one.run.name == "broken"], print)
    assert not (runs / "broken").exists()


def test_a_store_that_fails_ends_it(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the code that says so, and not as often as there are runs."""
    chosen, _ = choose(read_storage(str(runs)), Listing(prune=("checkpoints",)))

    def lost(*_: object, **__: object) -> None:
        raise StorageLost("s3://bucket/runs: does not answer")

    monkeypatch.setattr(LocalFileSystem, "rm", lost)
    said: list[str] = []
    with pytest.raises(StorageLost):
        remove(chosen, said.append)
    assert not said


def test_what_a_url_says_behind_its_question_mark_is_no_part_of_the_place() -> None:
    first = Held("first", "s3://b/runs/first", "backbone", "finished", sha256="12")
    place = "s3://b/runs/first/artifact?region=eu-central-1"
    second = Held("second", "s3://b/runs/second", "detector", "stopped", origins=(Origin(place),))
    results = Origin("s3://b/runs/first/results?region=eu-central-1")
    third = Held("third", "s3://b/runs/third", "comparison", "finished", origins=(results,))
    assert [[one.run for one in run.origins] for run in linked([first, second, third])] == [[], ["first"], ["first"]]
    assert linked([first, third])[1].origins[0].sha256 == "12"


def test_trials_of_an_unfinished_sweep_keep_what_it_may_go_on_from(trained: Path) -> None:
    first = named(trained)["first"]
    sweep = Held("sweep", "sweep", "sweep", "stopped")
    trial = Held("sweep/trials/0001", first.url, "backbone", "finished", checkpoints=10)
    failed = Held("sweep/trials/0002", first.url, "backbone", "failed")
    asked = Listing(prune=("checkpoints", "failed"))
    assert choose([sweep, trial], asked) == ([], ["sweep/trials/0001: stays, sweep is not finished"])
    done = Held("sweep", "sweep", "sweep", "finished")
    chosen, kept = choose([done, trial, failed], asked)
    assert [(one.run.name, one.whole) for one in chosen] == [("sweep/trials/0001", False)]
    assert kept == ["sweep/trials/0002: stays, it is part of another"]


def test_an_object_store_is_told_alike(trained: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(trained), "/lineage", recursive=True)
    local, remote = named(trained), named("memory://lineage")
    for name, run in local.items():
        there = remote[name]
        assert (run.state, run.headline, run.size, run.checkpoints) == (
            there.state,
            there.headline,
            there.size,
            there.checkpoints,
        )
        assert [o.run for o in run.origins] == [o.run for o in there.origins]
    chosen, _ = choose(list(remote.values()), Listing(prune=("checkpoints", "failed")))
    remove(chosen, print)
    assert named("memory://lineage").keys() == local.keys() - {"broken"}
    assert not memory.exists("/lineage/first/checkpoints")
    assert memory.exists("/lineage/first/artifact/config.json")


def test_the_end_of_a_log() -> None:
    traceback = "2026-01-01 00:00:00 Traceback (most recent call last):\n  File\nbackbone.errors.{}: gone; why\n"
    assert how_it_ended("") == ("stopped", "")
    assert how_it_ended("2026-01-01 00:00:00 epoch 1\n" + traceback.format("UserError")) == (
        "failed",
        "UserError: gone; why",
    )
    assert how_it_ended(traceback.format("Lost"))[0] == "stopped"  # submitted again it goes on
    again = traceback.format("UserError") + "2026-01-01 00:01:00 stopped at step 4; submit again to go on\n"
    assert how_it_ended(again) == ("stopped", "stopped at step 4; submit again to go on")


def test_mistakes(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(UserError, match=r"is not there; it is the folder or URL given as run.storage"):
        read_storage(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=f"is the run first itself; give the folder it lies in: {trained}"):
        read_storage(str(trained / "first"))
    with pytest.raises(ValueError, match="may be checkpoints, failed, stopped"):
        Listing(prune=("everything",))


def test_an_evaluation_belongs_to_its_run(runs: Path) -> None:
    before = named(runs)
    folder = runs / "first" / "evaluation-1-crop-01234567"
    folder.mkdir()
    for name in ("run.json", "results.json"):
        (folder / name).write_text("{}")
    after = named(runs)
    assert {name: run.state for name, run in after.items()} == {name: run.state for name, run in before.items()}
    assert after["first"].size == before["first"].size + 4
    shutil.move(folder, runs / "elsewhere")  # of a submission, or with --output
    assert (named(runs)["elsewhere"].kind, named(runs)["elsewhere"].state) == ("unknown", "finished")
