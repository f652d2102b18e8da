"""Notice to leave: all ranks go at the same step, the state is saved, and the run that goes on has the same bits."""

import dataclasses
import os
import re
import socket
from collections.abc import Callable
from typing import Any

import pytest
import torch

from backbone.training.notice import Leaving, Lookout
from backbone.training.pretrain import prepare, pretrain
from backbone.training.recipe import Recipe
from backbone.training.state import Store
from backbone.training.world import local_world
from tests.backbone.training.test_engine import ALONE, assert_equal, run, weights

Make = Callable[..., Recipe]


def after(looks: int) -> Callable[[], str]:
    """A notice that comes at the look with this number."""
    left = iter(range(looks))
    return lambda: "" if next(left, None) is not None else "node 7 will be taken away"


def leave(recipe: Recipe, looks: int) -> int:
    """Train until the notice; the step it was saved at."""
    world = dataclasses.replace(ALONE, notice=after(looks))
    with pytest.raises(Leaving) as left:
        pretrain(prepare(recipe), world, lambda record: None)
    found = re.fullmatch(r"node 7 will be taken away; saved at step (\d+)", str(left.value))
    assert found
    return int(found[1])


OPTIONS = {"scaling.notice_every": 1e-9, "run.checkpoint_every": 0, "schedule.total": 24}
"""Looks after each step but those that evaluate, of which steps 10 and 20 are."""


@pytest.mark.parametrize("options", [{}, {"optim.ema": 0.9, "schedule.kind": "plateau"}])
def test_left_twice_it_ends_in_the_same_bits(tiny: Make, options: dict[str, Any]) -> None:
    whole, parts = tiny({**OPTIONS, **options, "name": "whole"}), tiny({**OPTIONS, **options, "name": "parts"})
    run(whole)
    store = Store(f"{parts.run.storage}/parts/checkpoints")
    assert (leave(parts, 6), store.steps()) == (7, [7])
    assert leave(parts, 4) == 13  # 8, 9, 11, 12, 13: the step that evaluates is saved anyway
    records = run(parts)
    assert records[0]["text"] == "resuming at step 13 of 24"
    assert_equal(weights(whole), weights(parts))


def test_a_rate_that_reads_the_log_is_left_at_the_logs_own_windows(tiny: Make) -> None:
    """hold_lr goes by the training error since the last record, which a checkpoint in between would cut short."""
    recipe = tiny({**OPTIONS, "schedule.hold_lr": 0.01, "run.log_every": 4})
    assert leave(recipe, 0) == 4


def test_nobody_looks_where_it_is_switched_off(tiny: Make) -> None:
    def notice() -> str:
        raise AssertionError

    recipe = tiny({**OPTIONS, "scaling.notice_every": 0, "schedule.total": 3})
    pretrain(prepare(recipe), dataclasses.replace(ALONE, notice=notice), lambda record: None)


def test_looks_are_seconds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 0.1 s, looks about every 2 s: counted in steps, and carefully so at first."""
    now = [0.0]
    monkeypatch.setattr("backbone.training.notice.time.perf_counter", lambda: now[0])
    looked: list[int] = []
    world = dataclasses.replace(ALONE, notice=lambda: looked.append(step) or "")
    lookout = Lookout(world, 2.0, 100)
    for step in range(101, 200):
        now[0] += 10.0 if step == 101 else 0.1  # the first step compiles
        assert lookout.look(step) == ""
    assert looked[:5] == [101, 102, 106, 122, 142]


def _rank(rank: int, port: int, out: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with local_world(False, 1) as world:
        lookout = Lookout(dataclasses.replace(world, notice=after(3) if rank else lambda: ""), 1e-9, 0)
        for step in range(1, 100):
            if reason := lookout.look(step):
                out.put((rank, step, reason))
                return


def test_ranks_leave_together() -> None:
    """Only the second is told; both go, after the same step."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["backbone.training.pretrain"])
    out = context.SimpleQueue()
    ranks = [context.Process(target=_rank, args=(rank, port, out)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in ranks] == [0, 0]  # else the queue has less than is waited for
    assert sorted(out.get() for _ in ranks) == [
        (0, 4, "another worker was told to leave"),
        (1, 4, "node 7 will be taken away"),
    ]
