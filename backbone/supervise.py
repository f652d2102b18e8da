"""A job in a process of its own, begun again where that process is lost. Imports nothing slow.

When the kernel is out of memory it kills what it likes, and without some of its parts Ray ends the process that uses
it, past any `except`. The watching process needs next to no memory and does not use Ray.
"""

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress

from backbone.errors import LOST
from backbone.stopping import Stopped

WATCHED = "RAYBONE_WATCHED"
"""In the environment of the process that does the work: the process that watches."""

HELD = "RAYBONE_HELD"
"""Likewise, the token of the lease it works under."""

BUG = 70
"""What that process exits with where Python met an error: it would come again. 1 is what Ray ends it with."""

FORWARD = 2.5
"""Seconds after which a signal is handed on to a process that did not get it. Ray kills a job 3 s after it."""


def is_watched() -> bool:
    """Whether this is the process that does the work."""
    return WATCHED in os.environ


def end_with_watcher() -> None:
    """In a process that is watched: Linux ends it with the one that watches, whose lease it has."""
    if not is_watched():
        return
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != int(os.environ[WATCHED]):
            raise SystemExit(LOST)


def keep_going(times: int, token: str) -> int:
    """Run this process' own command in another one, as often as `times` again where it is lost.

    `token` is of the lease that the other one works under.

    Returns:
        Its exit code.

    Raises:
        Stopped: somebody stopped it.
    """
    command = [sys.executable, *sys.argv]
    environment = {**os.environ, WATCHED: str(os.getpid()), HELD: token}
    for attempt in range(times + 1):
        process = subprocess.Popen(command, env=environment)
        try:
            code = process.wait()
        except Stopped as stop:
            with suppress(subprocess.TimeoutExpired):
                process.wait(FORWARD)
            process.send_signal(stop.signum)
            process.wait()
            Stopped.told = True  # by that process
            raise
        if not _is_lost(code):
            return code
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else "lost"
        if attempt < times:
            print(f"its process was {how}; going on from what is written down, {attempt + 1} of {times}")
    print(f"error: its process was {how}, more often than scaling.max_failures {times}; submit again to go on")
    return LOST


def _is_lost(code: int) -> bool:
    return code in (1, LOST) or (code < 0 and -code not in (signal.SIGINT, signal.SIGTERM))
