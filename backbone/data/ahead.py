"""What is on its way from an object store while what came before is decoded: a request takes tens of milliseconds."""

import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

AT_A_TIME: int = 16
"""Requests of one process under way together."""


class Ahead:
    """Reads that were begun before they are asked for. Safe in threads and after a fork, and so without a lock, which a
    fork may leave closed: threads that begin let go of each other's reads, and what was let go is read by who asks."""

    def __init__(self) -> None:
        self._begun: dict[int, Future[bytes]] = {}
        self._process = 0

    def begin(self, ids: Iterable[int], read: Callable[[int], bytes]) -> None:
        """Begin to read these, in this order, by `read` in threads; what was begun before and not taken is let go."""
        if self._process != os.getpid():  # a parent's threads are not here
            self._begun, self._process = {}, os.getpid()
        for future in list(self._begun.values()):  # whole in one step: other threads take from it meanwhile
            future.cancel()
        pool = _pool(os.getpid())
        self._begun = {i: pool.submit(read, i) for i in dict.fromkeys(ids)}

    def take(self, i: int, read: Callable[[int], bytes]) -> bytes:
        """One, begun or not; raises what reading it does."""
        future = self._begun.pop(i, None) if self._process == os.getpid() else None
        if future is None:
            return read(i)
        try:
            return future.result()
        except CancelledError:
            return read(i)


def read_ahead(source: Any, ids: Iterable[int]) -> None:
    """Tell a source of images which are going to be asked for, where that is of use to it."""
    if hasattr(source, "ahead"):
        source.ahead(ids)


@functools.lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="read-ahead")
