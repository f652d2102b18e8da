"""Ctrl-C and SIGTERM (`ray job stop`, Slurm, Kubernetes) as one exception, in every thread that waits.

The first signal raises `Stopped` in the main thread, and wherever `check` is called; the second ends the process at
once (under torchrun, see `TWICE`). What can end by itself in good order is given time to: `deferred`, `until`.

Python's handlers run in the main thread and there between two of its own instructions: while that is in C, in a
collective whose partner is gone or in a long kernel, a signal is not heard, nor is an alarm. For the time of `deferred`
another thread therefore gets a byte at each signal, by C's own handler (`signal.set_wakeup_fd`), and ends the process
where the main thread has not heard of the signal, or of the end of its grace, `MARGIN` seconds after that. A thread is
enough: torch gives up Python's lock while it computes and waits.
"""

import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import ClassVar

SOON = 1.0
"""Seconds."""

MARGIN = 5.0
"""Seconds beyond its grace after which a process that does not hear is ended."""

TWICE = 5.0
"""Seconds in which a second signal is the first one: what ends a job signals torchrun and its processes, and torchrun
signals these, too."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)
END = b"\0"


class Stopped(KeyboardInterrupt):
    """Somebody asked the process to end. A KeyboardInterrupt, for which libraries clean up."""

    told: ClassVar[bool] = False
    """Whether it was said how to go on: once a process, whichever thread had something to stop."""

    def __init__(self, signum: int = signal.SIGINT, final: bool = False) -> None:
        """`final`: what is stopped shall not go on later."""
        super().__init__()
        self.signum, self.final = signum, final

    @property
    def code(self) -> int:
        """What a process exits with that was ended by a signal."""
        return 128 + self.signum


UNREAD = 141
"""What a process exits with whose output nobody reads any longer, as one that SIGPIPE ended."""


def unread() -> bool:
    """Whether nobody reads what this process says any longer, as after `| head`. What is still to be said goes nowhere
    then."""
    try:
        said = sys.stdout.fileno()
    except (AttributeError, OSError):  # no file of the system's
        return False
    with suppress(BrokenPipeError):
        sys.stdout.flush()  # or Python would at its end, and complain
    look = select.poll()
    look.register(said, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in look.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), said)
    return True


def is_of_a_pipe(error: BaseException | None) -> bool:
    """Whether it came of a pipe that nobody reads; Tune hands on the text of a traceback."""
    while error is not None:
        if isinstance(error, BrokenPipeError) or "BrokenPipeError" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


_heeded: list[signal.Signals] = []
_asked: list[int] = []
_deferrals: list["_Deferral"] = []


class _Deferral:
    """What is at work under `deferred`."""

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.looks = (-math.inf, -math.inf)
        self.signalled = math.inf
        """When a signal came, which the main thread may hear of later."""

        self.heard = threading.Event()
        """Whether the main thread knows that it is to end, or has ended."""

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
    Where the main thread hears nothing, the process ends `MARGIN` seconds after those, with the code of the signal.
    """
    deferral = _Deferral(grace)
    if not _heeded or threading.current_thread() is not threading.main_thread():
        yield deferral.look
        return
    _deferrals.append(deferral)
    before = signal.signal(signal.SIGALRM, _late)
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    wakes = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(deferral, ours), daemon=True, name="grace")
    watcher.start()
    try:
        yield deferral.look
    finally:
        deferral.heard.set()  # first: a signal from here on is raised, and nothing is broken off
        _deferrals.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.set_wakeup_fd(wakes)
        with suppress(BlockingIOError):  # full of signals, of which the watcher has taken the first
            os.write(theirs, END)
        os.close(theirs)
        watcher.join()
        os.close(ours)
        signal.signal(signal.SIGALRM, before)
    if _asked:  # an error of the block's own, such as a full disk, is told instead
        raise Stopped(_asked[0])


def until(done: Callable[[float], bool], ask: Callable[[], float]) -> None:
    """Wait until `done(seconds)`, which waits no longer than those, is true.

    At a signal, `ask` what is waited for to end, and give it as many seconds as that says.

    Raises:
        Stopped: there was a signal. Also where all is done by then: whoever waits was asked to end, and by `ask` it was
            said already; submitted again a run that is finished says so.
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
        signal.signal(one, _again(time.monotonic()) if "TORCHELASTIC_RUN_ID" in os.environ else signal.SIG_DFL)
    if not _deferrals:
        raise Stopped(signum)
    deferral = _deferrals[0]
    if deferral.grace and deferral.looks_soon():
        ago = max(0.0, time.monotonic() - deferral.signalled)
        signal.setitimer(signal.ITIMER_REAL, max(1e-3, deferral.grace - ago))
        return
    deferral.heard.set()
    raise Stopped(signum)


def _again(first: float) -> Callable[[int, FrameType | None], None]:
    """What hears a second signal after one that came at `first`."""

    def again(signum: int, frame: FrameType | None) -> None:
        if time.monotonic() - first > TWICE:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    return again


def _late(signum: int, frame: FrameType | None) -> None:
    for deferral in _deferrals:
        deferral.heard.set()
    raise Stopped(_asked[0])


def _watch(deferral: _Deferral, fd: int) -> None:
    """The thread of `deferred`; `fd` gives a byte for each signal, and `END` with the block: not its end alone, since
    forked children have the other end, too."""
    while (byte := os.read(fd, 1)) not in (b"", END):
        if byte[0] in _heeded:
            deferral.signalled = time.monotonic()
            break
    else:
        return
    if not deferral.heard.wait(deferral.grace + MARGIN):
        told = f"stopped; a computation that did not end within {deferral.grace + MARGIN:g} s was broken off\n"
        teller = threading.Thread(target=_tell, args=(told.encode(),), daemon=True)  # nobody may be reading
        teller.start()
        teller.join(1)
        os._exit(128 + byte[0])


def _tell(line: bytes) -> None:
    with suppress(OSError):
        os.write(1, line)


def _forked() -> None:
    """Signals of a child are no parent's."""
    if _deferrals:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forked)
