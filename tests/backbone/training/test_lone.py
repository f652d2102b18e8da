"""One worker on Ray: killed it begins again, a mistake ends it at once, and others see what it holds."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from backbone.compute import Scaling
from backbone.errors import Lost, UserError
from backbone.training.ray_train import launch
from backbone.training.world import Payload

pytestmark = pytest.mark.ray


KILLED = "worker 0 was killed or its node was lost"


def fails(payload: Payload, world: Any, report: Any) -> dict[str, Any]:
    """By an error, a kill, a mistake of the user's, and a kill, in this order."""
    import ray

    with Path(payload.url, "tries").open("a") as file:
        file.write(".")
    tries = Path(payload.url, "tries").stat().st_size
    if tries == 1:
        raise RuntimeError("the disk hiccups")
    if tries in (2, 4):
        os.kill(os.getpid(), signal.SIGKILL)
    held = [group["bundles"][0] for group in ray.util.placement_group_table().values() if group["state"] == "CREATED"]
    raise UserError(f"cat.jpg: truncated, seen by {world.rank} of {world.size} on {world.device}, which holds {held}")


def test_it_begins_again_until_a_mistake(ray_cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "run.json").write_text("{}")
    payload = Payload(str(tmp_path))
    with pytest.raises(UserError, match=r"^cat.jpg: truncated, seen by 0 of 1 on cpu, which holds \[{'CPU': 1.0}\]$"):
        launch(fails, payload, Scaling(num_workers=1, max_failures=3))
    said = capfd.readouterr().out.splitlines()
    again = "going on from the newest checkpoint if restarts are left"
    assert f"worker 0 failed (RuntimeError: the disk hiccups); {again}" in said
    assert f"{KILLED}; {again}" in said
    assert len([line for line in said if "1 worker(s) on cpu: 1 on " in line]) == 3

    with pytest.raises(Lost, match=rf"^{KILLED}, for want of memory perhaps, more often than scaling.max_failures 0"):
        launch(fails, payload, Scaling(num_workers=1, max_failures=0))
    assert {group["state"] for group in ray_cluster.util.placement_group_table().values()} <= {"REMOVED"}


def pid(payload: Payload, world: Any, report: Any) -> dict[str, Any]:
    """Of the process; the second time it fails."""
    with Path(payload.url, "pids").open("a") as file:
        print(os.getpid(), file=file)
    if Path(payload.url, "pids").read_text().count("\n") == 2:
        raise UserError("cat.jpg: truncated")
    return {"threads": torch.get_num_threads()}


def test_a_process_goes_on_to_the_next_run(ray_cluster: Any, tmp_path: Path) -> None:
    """Also after one that failed, and with the threads that the next one asks for."""
    (tmp_path / "run.json").write_text("{}")
    payload = Payload(str(tmp_path))
    one, two = Scaling(num_workers=1), Scaling(num_workers=1, cpus_per_worker=2)
    assert launch(pid, payload, one) == {"threads": 1}
    with pytest.raises(UserError, match="truncated"):
        launch(pid, payload, one)
    assert launch(pid, payload, two) == {"threads": 2}
    assert len({*(tmp_path / "pids").read_text().split()}) == 1


def test_waiting_for_room_has_an_end(ray_cluster: Any, tmp_path: Path) -> None:
    """All four CPUs are others'; the line of the wait says so, and after the time that was given it is over."""
    (tmp_path / "run.json").write_text("{}")
    others = ray_cluster.util.placement_group([{"CPU": 4}])
    ray_cluster.get(others.ready(), timeout=60)
    try:
        with pytest.raises(
            Lost, match=r"^waited 0.001 h .* in vain for 1 worker\(s\) of 1 CPU each: others are at work"
        ):
            launch(pid, Payload(str(tmp_path)), Scaling(num_workers=1, wait_at_most=0.001))
    finally:
        ray_cluster.util.remove_placement_group(others)
