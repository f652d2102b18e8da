"""Reads that were begun ahead, by threads that know nothing of each other."""

import sys
import threading
from collections.abc import Iterator

import pytest

from backbone.data.ahead import Ahead

COUNT = 64


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_that_begin_and_take_disturb_no_other(hasty: None) -> None:
    """One lets go of what another is about to take, or takes from what it goes through."""
    ahead, wrong = Ahead(), list[object]()

    def read(i: int) -> bytes:
        return bytes([i])

    def work() -> None:
        try:
            for _ in range(60):
                ahead.begin(range(COUNT), read)
                wrong.extend(i for i in range(COUNT) if ahead.take(i, read) != bytes([i]))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
