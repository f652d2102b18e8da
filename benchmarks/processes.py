"""Runs of jobs/ as processes of their own, one thread each, and what they cost."""

import os
import subprocess
import sys
import threading
from pathlib import Path

from backbone.errors import UserError

JOBS = Path(__file__).parents[1] / "jobs"


class Processes:
    """Starts jobs and adds up what they cost. `seconds` is the processor time of all that have ended."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds, self._lock = folder, 0.0, threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, job: str, name: str, words: list[str]) -> None:
        """Run `python jobs/<job>.py *words` to its end; what it says goes to `<folder>/<name>.log`.

        Raises:
            UserError: it failed.
        """
        log = self.folder / f"{name}.log"
        with log.open("w") as file:
            started = subprocess.Popen(
                [sys.executable, str(JOBS / f"{job}.py"), *words],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            _, status, used = os.wait4(started.pid, 0)
        if status:
            raise UserError(f"{name} failed: {log.read_text()[-500:]}")
        with self._lock:
            self.seconds += used.ru_utime + used.ru_stime
