"""A job whose process is lost is begun again, so often and no oftener; one that met an error is not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backbone.errors import LOST
from tests.conftest import ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from backbone.cli import run_main
from backbone.errors import Lost, UserError
from backbone.lease import lease
from backbone.supervise import is_watched, keep_going

folder = sys.argv[1]

def main():
    if not is_watched():
        with lease(folder) as held:
            raise SystemExit(keep_going(2, held.token))
    with lease(folder):
        attempts = Path(folder, 'attempts')
        attempts.write_text(attempts.read_text() + '.' if attempts.exists() else '.')
        attempt = len(attempts.read_text())
        {body}

run_main(main, 'go on')
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
ENDS = [
    pytest.param(f"if attempt < 3: {KILL}", 3, 0, ["killed by SIGKILL", "1 of 2", "killed", "2 of 2"], id="killed"),
    pytest.param("if attempt < 2: os._exit(1)", 2, 0, ["its process was lost", "1 of 2"], id="ended by Ray"),
    pytest.param("if attempt < 2: raise Lost('gone')", 2, 0, ["gone", "1 of 2"], id="lost"),
    pytest.param(KILL, 3, LOST, ["1 of 2", "2 of 2", "more often than scaling.max_failures 2; submit"], id="always"),
    pytest.param("raise UserError('depth')", 1, 2, ["error: depth"], id="mistake"),
    pytest.param("raise KeyError('bug')", 1, 70, ["KeyError: 'bug'"], id="bug"),
    pytest.param("raise SystemExit(5)", 1, 5, [], id="its own code"),
]


@pytest.mark.parametrize(("body", "attempts", "code", "said"), ENDS)
def test_what_is_lost_is_begun_again(tmp_path: Path, body: str, attempts: int, code: int, said: list[str]) -> None:
    (tmp_path / "job.py").write_text(SCRIPT.format(body=body))
    words = [sys.executable, str(tmp_path / "job.py"), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=400, env=ENVIRONMENT)
    assert done.returncode == code, done.stderr
    assert len((tmp_path / "attempts").read_text()) == attempts
    output = done.stdout + done.stderr
    assert all(one in output for one in said), output
    assert ("Traceback" in output) == (code == 70)
    assert not (tmp_path / "lease.json").exists()


@pytest.mark.parametrize("to_both", [True, False])
def test_a_signal_stops_both(tmp_path: Path, to_both: bool) -> None:
    """Ctrl-C comes to all processes of a terminal, `kill` to one; either way it is one line."""
    (tmp_path / "job.py").write_text(SCRIPT.format(body="print('at work')\n        time.sleep(60)"))
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "job.py"), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout
    assert process.stdout.readline() == "at work\n"
    (os.killpg if to_both else os.kill)(process.pid, signal.SIGINT)
    assert process.communicate(timeout=300)[0] == "stopped; submit again to go on\n"
    assert process.returncode == 130
    assert not (tmp_path / "lease.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_worker_ends_with_the_one_that_watches(tmp_path: Path) -> None:
    """Whoever holds the lease may be killed: nobody goes on without it."""
    (tmp_path / "job.py").write_text(SCRIPT.format(body="print('at work')\n        time.sleep(600)"))
    words = [sys.executable, str(tmp_path / "job.py"), str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stdout
    assert process.stdout.readline() == "at work\n"
    process.kill()
    assert process.stdout.read() == ""  # which ends when no process has the pipe any more
