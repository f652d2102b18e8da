"""Functions that wait for each other, several at a time."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass


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


def _done(do: Callable[[], None]) -> Future[None]:
    """What has been done here and now."""
    future = Future[None]()
    try:
        future.set_result(do())
    except Exception as error:
        future.set_exception(error)
    return future
