"""Signals as a job meets them: one line and the code shells expect; the second at once."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = """
import signal, sys, threading, time
from backbone import stopping
from backbone.cli import run_main

def main():
    {body}

run_main(main, {again!r})
"""

FOREVER = "print('at work')\n    while True: time.sleep(0.01)"
OVERRIDDEN = f"signal.signal(signal.SIGTERM, lambda *_: sys.exit(15)); {{}}\n    {FOREVER}"
IN_A_THREAD = """
    def other():
        try:
            while True: stopping.check(); time.sleep(0.01)
        except stopping.Stopped as stop: print('the other thread too', stop.code)
    thread = threading.Thread(target=other)
    thread.start()
    try:
        print('at work')
        while True: time.sleep(0.01)
    finally:
        thread.join()
"""
STUCK = """
    try:
        print('at work')
        while True: time.sleep(0.01)
    finally:
        print('ending')
        while True: time.sleep(0.01)
"""

Start = Callable[..., subprocess.Popen]


@pytest.fixture
def start() -> Start:
    """A job with this body, once it has said, into a pipe, that it is at work."""

    def begin(body: str, again: str = "go on", ignored: bool = False) -> subprocess.Popen:
        before = signal.SIG_IGN if ignored else signal.SIG_DFL
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT.format(body=body, again=again)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, before),  # not what the tests' own shell left
        )
        assert process.stdout
        assert process.stdout.readline().startswith("at work")
        return process

    return begin


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(("again", "line"), [("go on", "stopped; submit again to go on\n"), ("", "stopped\n")])
def test_one_line_and_the_code(start: Start, signum: int, code: int, again: str, line: str) -> None:
    process = start(FOREVER, again)
    process.send_signal(signum)
    assert process.communicate(timeout=60)[0] == line
    assert process.returncode == code


@pytest.mark.parametrize("mends", ["pass", "stopping.heed_again()"])
def test_handlers_of_libraries_change_nothing(start: Start, mends: str) -> None:
    """Ray makes an exit with code 15 of a SIGTERM; before that is put right, and after."""
    process = start(OVERRIDDEN.format(mends))
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "stopped; submit again to go on\n"
    assert process.returncode == 143


def test_other_threads_learn_of_it(start: Start) -> None:
    process = start(IN_A_THREAD)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "the other thread too 130\nstopped; submit again to go on\n"


def test_the_second_ends_it_at_once(start: Start) -> None:
    process = start(STUCK)
    process.send_signal(signal.SIGINT)
    assert process.stdout
    assert process.stdout.readline() == "ending\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == -signal.SIGINT


def test_what_nohup_ignores_stays_ignored(start: Start) -> None:
    process = start(FOREVER, ignored=True)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == 143


WRAPPED = """
    try:
        print('at work')
        while True: time.sleep(0.01)
    except KeyboardInterrupt: raise {}
"""


@pytest.mark.parametrize("error", ["RuntimeError('Error calling __set_name__')", "KeyboardInterrupt() from None"])
def test_what_importing_or_ray_makes_of_it_is_the_signal(start: Start, error: str) -> None:
    process = start(WRAPPED.format(error))
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "stopped; submit again to go on\n"
    assert process.returncode == 143


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_line_while_a_job_is_importing(signum: int, code: int) -> None:
    for job in (ROOT / "jobs").glob("*.py"):
        imported = re.findall(r"^(?:from|import) (\S+)", job.read_text(), re.MULTILINE)
        assert (
            next(name for name in imported if name.split(".")[0] not in sys.stdlib_module_names) == "backbone.begin"
        ), job
    heeded = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # ignored where tests run behind &
    )
    script = f"{heeded}; import backbone.begin, time; print('importing', flush=True); time.sleep(300)"
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signum)
        assert process.communicate(timeout=60)[0] == "stopped\n"
    assert process.returncode == code


DEFERRED = """
    with stopping.deferred({grace}) as look:
        for _ in range({looks}): look(); time.sleep(0.01)
        print('at work')
        while not (said := {again}): time.sleep(0.01)
        print(said)
    print('never')
"""


@pytest.mark.parametrize(
    ("deferral", "told"),
    [
        ({"grace": 60, "looks": 3, "again": "look()"}, "stopped\nstopped; submit again to go on\n"),
        # It does not look again in its grace, or has not looked twice, so that nobody knows when it will.
        ({"grace": 0.2, "looks": 3, "again": "''"}, "stopped; submit again to go on\n"),
        ({"grace": 60, "looks": 1, "again": "''"}, "stopped; submit again to go on\n"),
    ],
)
def test_what_looks_for_it_may_end_by_itself(start: Start, deferral: dict, told: str) -> None:
    process = start(DEFERRED.format(**deferral))
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == told
    assert process.returncode == 143


COLLECTIVE = """
    import torch, torch.distributed as dist
    stopping.MARGIN = 0.5
    dist.init_process_group('gloo', init_method='file://{file}', rank={rank}, world_size=2)
    with stopping.deferred({grace}) as look:
        for _ in range({looks}): look(); time.sleep(0.01)
        if not {rank}: work = dist.all_reduce(torch.ones(1), async_op=True)
        print('at work')
        if {rank}: time.sleep(600)
        work.wait()
    print('never')
"""


@pytest.mark.parametrize(("grace", "looks"), [(0.3, 3), (0.3, 1), (0, 0)])
def test_the_grace_ends_inside_a_collective(start: Start, tmp_path: Path, grace: float, looks: int) -> None:
    """The other rank never comes, and Python's own handlers wait for the collective."""

    def rank(number: int) -> subprocess.Popen:
        return start(COLLECTIVE.format(file=tmp_path / "meeting", rank=number, grace=grace, looks=looks))

    with ThreadPoolExecutor(2) as pool:  # each waits for the other before it is at work
        waiting, absent = pool.map(rank, range(2))
    try:
        time.sleep(1)
        waiting.send_signal(signal.SIGTERM)
        told = f"stopped; a computation that did not end within {grace + 0.5:g} s was broken off\n"
        assert waiting.communicate(timeout=60)[0] == told
        assert waiting.returncode == 143
    finally:
        for process in (waiting, absent):
            process.kill()
            process.wait()


def test_children_signals_are_not_the_parents(start: Start) -> None:
    """A loader's process that is forked and ended."""
    process = start("""
    import os
    stopping.MARGIN = 0.2
    with stopping.deferred(0.1):
        child = os.fork()
        if not child:
            try: time.sleep(600)
            finally: os._exit(3)
        other = os.fork()  # is there when the block ends
        if not other: time.sleep(600)
        time.sleep(0.3)
        os.kill(child, 15)
        print('at work', os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        time.sleep(1)
    os.kill(other, 9)
    print('done')
""")
    assert process.communicate(timeout=60)[0] == "done\n"
    assert process.returncode == 0


SIGNALLED_TWICE = """
    import os
    os.environ['TORCHELASTIC_RUN_ID'] = 'of torchrun'
    stopping.TWICE = {within}
    with stopping.deferred(60) as look:
        for _ in range(3): look(); time.sleep(0.01)
        print('at work')
        while not look(): time.sleep(0.01)
        print('saving')
        for _ in range(6000):
            time.sleep(0.01)
            if os.path.exists({saved!r}): break
        print('saved')
"""


@pytest.mark.parametrize(
    ("within", "told", "code"), [(60, "saved\nstopped; submit again to go on\n", 143), (0.2, "", -signal.SIGTERM)]
)
def test_a_signal_that_torchrun_passes_on_is_the_one_it_got(
    start: Start, tmp_path: Path, within: float, told: str, code: int
) -> None:
    """Slurm signals all processes of a job, torchrun and those it started, and torchrun signals these again."""
    process = start(SIGNALLED_TWICE.format(within=within, saved=str(tmp_path / "saved")))
    process.send_signal(signal.SIGTERM)
    assert process.stdout
    assert process.stdout.readline() == "saving\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    if told:
        time.sleep(0.5)
        (tmp_path / "saved").touch()
    assert process.communicate(timeout=90)[0] == told
    assert process.returncode == code


UNTIL = """
    asked, begun = [], []
    def done(seconds):
        begun.append(0)
        if len(begun) == 1: print('at work')
        time.sleep(0.01)
        return len(asked) > {more}
    def ask():
        print('asked')
        asked.extend([0])
        return 0.3
    stopping.until(done, ask)
    print('never')
"""


@pytest.mark.parametrize("more", [0, 1])
def test_others_are_asked_to_end_and_waited_for_no_longer_than_the_grace(start: Start, more: int) -> None:
    process = start(UNTIL.format(more=more))
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "asked\nstopped; submit again to go on\n"
    assert process.returncode == 143
