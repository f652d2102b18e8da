"""What a window of steps has shown."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from backbone.training import meter as meters
from backbone.training.meter import Meter
from backbone.training.state import Progress
from backbone.training.world import World


def test_unreadable_images_are_kept_by_position() -> None:
    """Whatever rank met them, each with the step it was first met by; sets of names have another order each time."""
    meter, progress = Meter(World(0, 1, torch.device("cpu")), 8), Progress(step=3)
    places = {16: [f"picture {i}: torn" for i in range(20)], 8: ["b: torn", "a: torn"], 24: ["picture 3: torn"]}
    for position, names in places.items():
        meter.add(torch.ones(4), {}, {"position": position, "bad": names})
    meter.record(progress, str)
    assert list(progress.bad) == ["b: torn", "a: torn", *places[16]]
    progress.step = 5
    meter.add(torch.ones(4), {}, {"position": 40, "bad": ["a: torn", "late: torn"]})
    meter.record(progress, str)
    assert list(progress.bad.items())[-1] == ("late: torn", 5)
    assert progress.bad["a: torn"] == 3


BATCH: dict[str, Any] = {"position": 0, "bad": []}


@pytest.mark.parametrize(("after", "rate"), [(3, 6 / 3), (0, 2 / 100)])
def test_the_time_of_compiling_is_no_speed(monkeypatch: pytest.MonkeyPatch, after: int, rate: float) -> None:
    """A step of 100 s that compiles, then some of 1 s, 2 images each; alone, the first one tells what it can."""
    now = 1000.0
    monkeypatch.setattr(meters.time, "perf_counter", lambda: now)
    meter = Meter(World(0, 1, torch.device("cpu")), 2)
    now += 100
    meter.add(torch.tensor([1.0, 2.0]), {}, BATCH)
    assert meter.set_apart() == 100
    for _ in range(after):
        now += 1
        meter.add(torch.tensor([3.0, 3.0]), {}, BATCH)
    record = meter.record(Progress(), str)
    assert record["images_per_second"] == pytest.approx(rate)
    assert record["loss"] == pytest.approx((3 + 6 * after) / (2 + 2 * after))  # all of them count here
    now += 2
    meter.add(torch.tensor([3.0, 3.0]), {}, BATCH)
    assert meter.record(Progress(), str)["images_per_second"] == pytest.approx(1)  # the next window is as any


def test_what_is_compiled_in_the_middle_is_no_speed_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of a window, and another: 100 s each, between steps of a second, half of which is waited."""
    now = 1000.0
    monkeypatch.setattr(meters.time, "perf_counter", lambda: now)
    meter = Meter(World(0, 1, torch.device("cpu")), 2)

    def batches() -> Iterator[dict[str, Any]]:
        nonlocal now
        while True:
            now += 0.5
            yield BATCH

    waiting = batches()
    for compiles in (True, False, False, True, False):
        if compiles:
            meter.begin_apart()
        meter.wait_for(waiting)
        now += 99.5 if compiles else 0.5
        meter.add(torch.tensor([1.0, 2.0]), {}, BATCH)
        if compiles:
            assert meter.set_apart() == 100
    record = meter.record(Progress(), str)
    assert record["images_per_second"] == pytest.approx(2)
    assert record["data_wait"] == pytest.approx(0.5)
