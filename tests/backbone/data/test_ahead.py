"""Reads that were begun ahead, by threads that know nothing of each other."""

import threading
from concurrent.futures import Future

import pytest

from backbone.data.ahead import AT_A_TIME, Ahead


def test_what_one_thread_lets_go_of_another_may_be_taking(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another thread takes in the middle of `begin` is taken there, after each read that is let go of."""
    ahead, go_on, cancel = Ahead(), threading.Event(), Future.cancel
    begun = threading.Semaphore(0)
    waiting = range(AT_A_TIME, AT_A_TIME + 4)  # for the others, which are being read

    def slowly(i: int) -> bytes:
        begun.release()
        go_on.wait(60)
        return bytes([i])

    def at_once(i: int) -> bytes:
        return bytes([i])

    taken: list[bytes] = []

    def cancel_and_take(future: Future) -> bool:
        done = cancel(future)
        if done:
            taken.append(ahead.take(waiting[len(taken)], at_once))
        return done

    ahead.begin(range(waiting.stop), slowly)
    for _ in range(AT_A_TIME):  # else those could be let go of, too
        assert begun.acquire(timeout=60)
    with monkeypatch.context() as patched:
        patched.setattr(Future, "cancel", cancel_and_take)
        try:
            ahead.begin([1], slowly)
        finally:
            go_on.set()
    assert taken == [bytes([i]) for i in waiting]
    assert ahead.take(1, at_once) == bytes([1])
