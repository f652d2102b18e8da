"""Training through Ray: two workers, a killed one, a user's mistake in one, requests that cannot be met."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from backbone.artifact import load
from backbone.cluster import WATCHING, check_resources
from backbone.compute import Scaling
from backbone.errors import UserError
from backbone.training.pretrain import prepare, pretrain
from backbone.training.ray_parts import trainer_class
from backbone.training.ray_train import launch
from backbone.training.recipe import Recipe
from backbone.training.world import Payload
from tests.conftest import ROOT

pytestmark = pytest.mark.ray
Make = Callable[..., Recipe]


WARN = "RAY_TRAIN_COLLECTIVE_WARN_INTERVAL_S"


def tensors(recipe: Recipe) -> dict[str, torch.Tensor]:
    return load(f"{recipe.run.storage}/{recipe.name}/artifact")[0].state_dict()


def test_a_killed_worker_changes_nothing(ray_cluster: Any, tiny: Make, capfd: pytest.CaptureFixture) -> None:
    """kill -9 one of two workers mid-run: the weights are those of one process that was never stopped."""
    options = {"optim.micro_batch": 8, "schedule.total": 60, "run.log_every": 2}
    whole, killed = tiny({**options, "name": "whole"}), tiny({**options, "name": "killed", "scaling.num_workers": 2})
    launch(pretrain, prepare(whole), whole.scaling)
    checkpoints = Path(killed.run.storage) / "killed" / "checkpoints"

    def kill() -> None:
        while not list(checkpoints.glob("step-*")):
            time.sleep(0.02)
        titles = [p for p in Path("/proc").glob("[0-9]*/cmdline") if b"RayTrainWorker" in p.read_bytes()]
        os.kill(int(titles[-1].parent.name), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    launch(pretrain, prepare(killed), killed.scaling)
    killer.join()
    assert "going on from the newest checkpoint" in (out := capfd.readouterr().out)
    assert "resuming at step" in out
    expected, found = tensors(whole), tensors(killed)
    assert [k for k, v in found.items() if "running" not in k and not torch.equal(v, expected[k])] == []
    for name in (k for k in found if "running" in k):  # sums over ranks, in double precision
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-7)


def ranks_there(payload: Payload, world: Any, report: Any) -> dict[str, Any]:
    """How many."""
    return {"ranks": len(world.gather(None))}


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_worker_that_dies_as_it_is_told_what_to_run_is_a_failure_as_any_other(allowed: int, tmp_path: Path) -> None:
    """Ray takes the end of one that was set up for its controller's, and leaves the workers' places taken: here there
    are no others."""
    script = Path(__file__).parent / "dies_early.py"
    words = [sys.executable, str(script), str(tmp_path), str(allowed)]
    env = {**os.environ, "RAY_TMPDIR": "/tmp", "RAY_ADDRESS": "local"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a worker was killed or its node was lost, before it trained; going on" in done.stdout
    last = "{'ranks': 2}"
    if not allowed:
        last = (
            "Lost: a worker was killed or its node was lost, before it trained, for want of memory perhaps, more often"
        )
    assert done.stdout.splitlines()[-1].startswith(last)


def kill_one_that_is_set_up() -> None:
    """kill -9 a worker of Ray Train's as it imports what it needs."""
    while True:
        for title in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if b"RayTrainWorker.init_train_context" in title.read_bytes():
                    os.kill(int(title.parent.name), signal.SIGKILL)
                    return


def test_a_worker_killed_while_it_is_set_up_is_told_of(
    ray_cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """Ray begins it again for ever, without a word."""
    (tmp_path / "run.json").write_text("{}")
    killer = threading.Thread(target=kill_one_that_is_set_up)
    killer.start()
    found = launch(ranks_there, Payload(str(tmp_path)), Scaling(num_workers=2, max_failures=1))
    killer.join()
    assert found == {"ranks": 2}
    assert "a worker was killed or its node was lost, before it trained; going on" in capfd.readouterr().out


def mistake(payload: Payload, world: Any, report: Any) -> dict[str, Any]:
    """A worker function in which the second rank meets a mistake of the user's while the first waits for it."""
    if world.rank == 1:
        raise UserError("shard-7.tar:cat.jpg: truncated")
    world.sum(torch.ones(1))
    return {}


@pytest.mark.parametrize("lasts", ["1", "0"])
def test_no_process_of_rays_is_started_that_has_nothing_to_do(
    lasts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are Ray's own: one that is no longer there would come back, and take its two seconds, without a word."""
    from ray.train import RunConfig
    from ray.train.torch import TorchTrainer

    monkeypatch.setenv(WATCHING, lasts)
    whole, ours = (
        {
            type(one).__name__
            for one in kind(print, run_config=RunConfig(storage_path=str(tmp_path)))._create_default_callbacks()
        }
        for kind in (TorchTrainer, trainer_class(lambda died: None))
    )
    left_out = {"DatasetsCallback"} | ({"PlacementGroupCleanerCallback"} if lasts == "0" else set())
    assert left_out <= whole
    assert ours == whole - left_out


def surroundings(payload: Payload, world: Any, report: Any) -> dict[str, Any]:
    """What the second worker was started with."""
    import ray

    return world.gather({"set": os.environ.get(WARN), "runtime": dict(ray.get_runtime_context().runtime_env)})[-1]


def test_settings_of_ray_train_reach_workers_without_an_environment_of_their_own(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a runtime environment Ray starts Python twice a process, and takes none that it keeps ready."""
    (tmp_path / "run.json").write_text("{}")
    monkeypatch.setenv(WARN, "77")
    found = launch(surroundings, Payload(str(tmp_path)), Scaling(num_workers=2, max_failures=0))
    assert found == {"set": "77", "runtime": {}}


def test_a_mistake_ends_the_run_at_once(ray_cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"shard-7.tar:cat.jpg: truncated"):
        launch(mistake, Payload(str(tmp_path / "run")), Scaling(num_workers=2, max_failures=3))


@pytest.mark.parametrize(
    ("scaling", "complaint"),
    [
        (
            Scaling(num_workers=2, use_gpu=True),
            r"2 workers of 1 CPU, 1 GPU each do not fit.*room for 0: 1 node\(s\) with 4 CPU, 0 GPU",
        ),
        (Scaling(num_workers=9), r"9 workers of 1 CPU each.*room for 4"),
        (Scaling(num_workers=2, cpus_per_worker=3), "room for 1"),
    ],
)
def test_what_the_cluster_lacks_is_refused(ray_cluster: Any, scaling: Scaling, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        check_resources(scaling)
    check_resources(scaling.model_copy(update={"autoscales": True}))
    check_resources(Scaling(num_workers=9, min_workers=2))


def test_storage_a_node_does_not_see(ray_cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run.json is not seen by node .*run.storage must be a shared folder or a URL"):
        launch(pretrain, Payload(str(tmp_path / "elsewhere")), Scaling(num_workers=1, max_failures=0))


def test_a_lost_node_changes_nothing(tmp_path: Path) -> None:
    """Two nodes (two raylets), one worker each; one node is killed; the elastic run ends with the same weights."""
    script = Path(__file__).parent / "two_nodes.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=550,
        env={**os.environ, "RAY_TMPDIR": "/tmp"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 on 127.0.0.2, 1 on 127.0.0.3" in done.stdout
    assert "killed a node" in done.stdout
    assert "weights equal" in done.stdout


@pytest.mark.slow
def test_a_node_taken_away_with_notice_costs_one_step(tmp_path: Path) -> None:
    """`ray drain-node` on the second of two nodes, with no failure allowed and no checkpoint due: the same bits."""
    words = ["--cases", "two workers", "one worker", "--ranks", "--output", str(tmp_path / "found.json")]
    done = subprocess.run(
        [sys.executable, "benchmarks/preemption.py", *words],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=ROOT,
        env={**os.environ, "RAY_TMPDIR": "/tmp"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    two, one = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert "1 on 127.0.0.2, 1 on 127.0.0.3" in two["said"][0]
    assert one["said"][0] == "1 worker(s) on cpu: 1 on 127.0.0.3"
    for row in (two, one):
        assert row["steps lost"] == 1
        assert row["saved at step"] == row["went on from step"] > 0
        assert row["trained tensors that differ"] == 0
    assert two["statistics"] == 0  # of as many workers
