"""Imported first by every job: Ctrl-C and SIGTERM end it in one line while Python is still importing, too.

From `backbone.cli.run_main` on `backbone.stopping` heeds them.
"""

import os
import signal
from types import FrameType


def _end(signum: int, frame: FrameType | None) -> None:
    os.write(1, b"stopped\n")
    os._exit(128 + signum)


for _one in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(_one) is not signal.SIG_IGN:
        signal.signal(_one, _end)
