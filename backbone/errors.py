"""The one error a user can cause and mend, and the one that going on mends."""

import os
import re

SURROGATES = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    """Text that any terminal, log or JSON takes: bytes of a file name that are not UTF-8 become \\xff, as in Python."""
    return SURROGATES.sub(lambda one: f"\\x{ord(one[0]) - 0xDC00:02x}" if "\udc80" <= one[0] <= "\udcff" else "?", text)


def _told(kind: type, message: str) -> str:
    """torch's loader processes hand an error over as the text of its traceback, which ends with the message."""
    return printable(message.rpartition(f"\n{kind.__module__}.{kind.__name__}: ")[2].rstrip())


class UserError(ValueError):
    """Something the user gave is wrong. The message names the file, field or value, and the fix.

    Jobs print it without a traceback and exit with code 2. Everything else is a bug and keeps its traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_told(type(self), message))


class BadImage(UserError):
    """One image cannot be used: names it and says why. Policy (`data.on_bad`) decides whether the run stops."""


class Lost(UserError):
    """What the work ran on is gone: processes, nodes, a cluster. Nobody's mistake: submitted again it goes on."""


class StorageError(OSError, UserError):
    """A store of objects refuses what it is asked: credentials, bucket, region, rights. Names the URL and what to do.

    An OSError as those of disks are, so that what knows more about the place may say it.
    """

    def __init__(self, message: str) -> None:
        OSError.__init__(self, _told(type(self), message))

    def __reduce__(self) -> tuple:
        return type(self), (str(self),)


class StorageLost(StorageError, Lost):
    """A store of objects does not answer, after all patience: submitted again the work goes on."""


LOST = os.EX_TEMPFAIL
"""What a job exits with that was lost."""


def last_line(error: BaseException) -> str:
    """What an error says in the end, short enough for a message; its kind where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
