"""Ctrl-C and SIGTERM (`ray job stop`, Slurm, Kubernetes) as one exception, in every thread that waits.

The first signal raises `Stopped` in the main thread, and wherever `check` is called; the second ends the process at
once. What can end by itself in good order is given time to: `deferred`, `until`.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import ClassVar

SOON = 1.0
"""Seconds."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Somebody asked the process to end. A KeyboardInterrupt, for which libraries clean up."""

    told: ClassVar[bool] = False
    """Whether it was said how to go on: once a process, whichever thread had something to stop."""

    def __init__(self, signum: int = signal.SIGINT) -> None:
        super().__init__()
        self.signum = signum

    @property
    def code(self) -> int:
        """What a process exits with that was ended by a signal."""
        return 128 + self.signum


_heeded: list[signal.Signals] = []
_asked: list[int] = []
_deferrals: list["_Deferral"] = []


class _Deferral:
    """What is at work under `deferred`."""

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.looks = (-math.inf, -math.inf)

    def look(self) -> str:
        self.looks = self.looks[1], time.monotonic()
        return "stopped" if _asked else ""

    def looks_soon(self) -> bool:
        """Whether it may be expected to: it did, not much longer ago than between the two times before."""
        before, last = self.looks
        return before > -math.inf and time.monotonic() - last < 2 * (last - before) + SOON


def heed() -> None:
    """Raise `Stopped` at signals from now on. For jobs, in the main thread; what is ignored (nohup) stays ignored."""
    _heeded[:] = [one for one in SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
    heed_again()


def heed_again() -> None:
    """After a library that may have put its own handlers in place; nothing where `heed` was not called."""
    if _asked or threading.current_thread() is not threading.main_thread():
        return
    for one in _heeded:
        signal.signal(one, _stop)


def check() -> None:
    """Raise `Stopped` if a signal came, which is raised by itself in the main thread alone."""
    if _asked:
        raise Stopped(_asked[0])


def asked() -> Stopped | None:
    """The signal that came, if one did."""
    return Stopped(_asked[0]) if _asked else None


@contextmanager
def deferred(grace: float) -> Generator[Callable[[], str]]:
    """Within, a signal raises nothing for `grace` seconds: what runs calls what this gives, and ends if it says a word.

    Not so where that was not called for longer than usual: what runs is then about something else, and `Stopped` is
    raised at once, as it is after the seconds and at the end of the block. In other threads nothing is raised anyway.
    """
    deferral = _Deferral(grace)
    if not grace or not _heeded or threading.current_thread() is not threading.main_thread():
        yield deferral.look
        return
    _deferrals.append(deferral)
    before = signal.signal(signal.SIGALRM, _late)
    try:
        yield deferral.look
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _deferrals.clear()
        signal.signal(signal.SIGALRM, before)
    if _asked:  # an error of the block's own, such as a full disk, is told instead
        raise Stopped(_asked[0])


def until(done: Callable[[float], bool], ask: Callable[[], float]) -> None:
    """Wait until `done(seconds)`, which waits no longer than those, is true.

    At a signal, `ask` what is waited for to end, and give it as many seconds as that says.

    Raises:
        Stopped: there was a signal.
    """
    try:
        while not done(0.5):
            check()
    except KeyboardInterrupt as error:
        deadline = time.monotonic() + ask()
        while (left := deadline - time.monotonic()) > 0 and not done(min(left, 0.5)):
            pass
        raise stop_of(error) or error from None


def stop_of(error: BaseException) -> Stopped | None:
    """The request to stop that an exception is; None where it is something else."""
    if isinstance(error, Stopped):
        return error
    if isinstance(error, KeyboardInterrupt):  # what Ray makes of any signal while it waits
        return asked() or Stopped()
    # What Ray's handler makes of a SIGTERM while it starts.
    return Stopped(signal.SIGTERM) if isinstance(error, SystemExit) and error.code == signal.SIGTERM else None


def _stop(signum: int, frame: FrameType | None) -> None:
    _asked.append(signum)
    for one in _heeded:
        signal.signal(one, signal.SIG_DFL)
    if _deferrals and _deferrals[0].looks_soon():
        signal.setitimer(signal.ITIMER_REAL, _deferrals[0].grace)
        return
    raise Stopped(signum)


def _late(signum: int, frame: FrameType | None) -> None:
    raise Stopped(_asked[0])
