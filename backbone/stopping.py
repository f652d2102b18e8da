"""Ctrl-C and SIGTERM (`ray job stop`, Slurm, Kubernetes) as one exception, in every thread that waits.

The first signal raises `Stopped` in the main thread, and wherever `check` is called; the second ends the process at
once.
"""

import signal
import threading
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
    raise Stopped(signum)
