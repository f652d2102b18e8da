"""Order, room and failures of tasks that need each other."""

import threading

import pytest

from backbone.parallel import Task, run_all


def test_each_begins_as_soon_as_what_it_needs_is_done() -> None:
    """The detector of the quick backbone is made while the slow backbone still trains."""
    quick_ended = threading.Event()
    order: list[str] = []

    def slow() -> None:
        assert quick_ended.wait(20)
        order.append("slow")

    def of_quick() -> None:
        order.append("of quick")
        quick_ended.set()

    tasks = {
        "slow": Task(slow),
        "of slow": Task(lambda: order.append("of slow"), ["slow"]),
        "quick": Task(lambda: order.append("quick")),
        "of quick": Task(of_quick, ["quick"]),
    }
    assert run_all(tasks, 2) == ({}, [])
    assert order == ["quick", "of quick", "slow", "of slow"]


@pytest.mark.parametrize("parallel", [1, 2, 3, 9])
def test_no_more_at_a_time_than_there_is_room_for(parallel: int) -> None:
    lock, together = threading.Lock(), threading.Barrier(min(parallel, 6))
    now, most = 0, 0

    def one() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        together.wait(20)  # so many do run at once
        with lock:
            now -= 1

    assert run_all({str(i): Task(one) for i in range(6)}, parallel) == ({}, [])
    assert most == min(parallel, 6)


def test_one_at_a_time_goes_row_by_row_in_the_calling_thread() -> None:
    order: list[tuple[str, bool]] = []

    def task(name: str, *after: str) -> Task:
        here = threading.main_thread
        return Task(lambda: order.append((name, threading.current_thread() is here())), after)

    names = {"a": (), "a0": ("a",), "b": (), "b0": ("b",), "c0": ("a",)}
    run_all({name: task(name, *after) for name, after in names.items()}, 1)
    assert order == [(name, True) for name in names]


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_failure_stops_what_needs_it_and_nothing_else(parallel: int) -> None:
    done: list[str] = []

    def fail() -> None:
        raise ValueError("bad")

    tasks = {
        "a": Task(fail),
        "of a": Task(lambda: done.append("of a"), ["a"]),
        "of that": Task(lambda: done.append("of that"), ["of a"]),
        "b": Task(lambda: done.append("b")),
        "of b": Task(lambda: done.append("of b"), ["b"]),
    }
    failed, left_out = run_all(tasks, parallel)
    assert [(name, str(error)) for name, error in failed.items()] == [("a", "bad")]
    assert left_out == ["of a", "of that"]
    assert done == ["b", "of b"]


def test_a_stop_goes_through() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    for parallel in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            run_all({"a": Task(stop), "b": Task(lambda: None, ["a"])}, parallel)
