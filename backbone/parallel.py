"""Functions in threads, and functions that wait for each other."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """Something to do once others are done."""

    do: Callable[[], None]
    after: Sequence[str] = ()
    """Names of the tasks it needs."""


def run_all(tasks: dict[str, Task], parallel: int) -> tuple[dict[str, Exception], list[str]]:
    """Do every task as soon as those it comes after are done and there is room for it; the first of several that could.

    One that fails stops none but those that come after it. With `parallel` 1 all are done in the calling thread.

    Returns:
        What went wrong, by name, and the names of those that were left out because of it; both in the order given.
    """
    waiting, done = dict(tasks), set[str]()
    failed: dict[str, Exception] = {}
    running: dict[Future[None], str] = {}
    with ThreadPoolExecutor(parallel) as pool:
        while True:
            ready = [name for name, task in waiting.items() if done.issuperset(task.after)]
            for name in ready[: parallel - len(running)]:
                task = waiting.pop(name)
                running[_done(task.do) if parallel == 1 else pool.submit(task.do)] = name
            if not running:
                return {name: failed[name] for name in tasks if name in failed}, list(waiting)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, error = running.pop(future), future.exception()
                if error is None:
                    done.add(name)
                elif isinstance(error, Exception):
                    failed[name] = error
                else:  # somebody stopped it all
                    raise error


def _done(do: Callable[[], T]) -> Future[T]:
    """What has been done here and now."""
    future = Future[T]()
    _do(do, future)
    return future


def in_thread(do: Callable[[], T]) -> Future[T]:
    """What a thread of its own does, which keeps no process from ending."""
    future = Future[T]()
    threading.Thread(target=_do, args=(do, future), daemon=True).start()
    return future


def _do(do: Callable[[], T], future: Future[T]) -> None:
    try:
        future.set_result(do())
    except BaseException as error:
        future.set_exception(error)
