"""Ctrl-C and SIGTERM (`ray job stop`, Slurm, Kubernetes) as one exception, in every thread that waits.

The first signal raises `Stopped` in the main thread, and wherever `check` is called; the second ends the process at
once. What can end by itself in good order is given time to: `deferred`, `until`.
"""

import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import ClassVar

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
_grace: list[float] = []
"""Seconds for what is at work under `deferred`."""


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
def deferred(seconds: float) -> Generator[None]:
    """Within, a signal raises nothing for so many seconds: what runs looks at `asked`, and ends by itself.

    After them, or at the end of the block, `Stopped` is raised. In the main thread; elsewhere nothing is raised anyway.
    """
    if not seconds or not _heeded or threading.current_thread() is not threading.main_thread():
        yield
        return
    _grace.append(seconds)
    before = signal.signal(signal.SIGALRM, _late)
    try:
        yield
    finally:
        _grace.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if _asked:
            raise Stopped(_asked[0])


def until(done: Callable[[float], bool], ask: Callable[[], None], grace: float) -> None:
    """Wait until `done(seconds)`, which waits no longer than those, is true.

    At a signal, `ask` what is waited for to end, and give it `grace` seconds.

    Raises:
        Stopped: there was a signal.
    """
    try:
        while not done(0.5):
            check()
    except KeyboardInterrupt as error:
        ask()
        deadline = time.monotonic() + grace
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
    if _grace:
        signal.setitimer(signal.ITIMER_REAL, _grace[0])
        return
    raise Stopped(signum)


def _late(signum: int, frame: FrameType | None) -> None:
    raise Stopped(_asked[0])
