"""One process at a folder: the second is refused by name, the dead are followed at once, the silent after a bound."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from backbone import lease as leases
from backbone.errors import UserError
from backbone.lease import FILE, Holder, Lease, lease
from backbone.storage import filesystem, join

PLACES = [pytest.param("{}/runs/mine", id="local"), pytest.param("memory://{}/mine", id="remote")]


@pytest.fixture(params=PLACES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.param.format(tmp_path)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"RENEWED": 0.04, "CHECKED": 0.0, "BOUND": 0.5, "SETTLE": 0.02, "POLL": 0.01}.items():
        monkeypatch.setattr(leases, name, seconds)


def text(url: str) -> bytes:
    fs, path = filesystem(url)
    return fs.cat_file(join(path, FILE))


def leave(url: str, holder: Holder | bytes) -> None:
    """What a process that ended without a word has left in the folder."""
    fs, path = filesystem(url)
    fs.makedirs(path, exist_ok=True)
    fs.pipe_file(join(path, FILE), holder if isinstance(holder, bytes) else json.dumps(asdict(holder)).encode())


def wait_until(ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def elsewhere(url: str) -> Iterator[Holder]:
    """A holder on another machine that is alive: its lease changes now and then."""
    holder = Holder("theirs", "node-7", 4321, "another place", since=1e9)
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(0.02):
            leave(url, replace(holder, renewed=time.time()))

    leave(url, holder)
    thread = threading.Thread(target=renew)
    thread.start()
    yield holder
    stop.set()
    thread.join()


def test_the_second_is_refused_and_told_by_whom(url: str) -> None:
    with lease(url), pytest.raises(UserError) as refused, lease(url):
        pass
    said = str(refused.value)
    assert said.startswith(f"{url} is being trained by pid {os.getpid()} on {os.uname().nodename} since 20")
    assert said.endswith("; wait for it, stop it, or give this one another --name")
    with lease(url, "prepared", "--output"):  # it has ended
        pass


def test_nothing_is_left_behind_and_what_is_written_stays(tmp_path: Path) -> None:
    with lease(str(tmp_path / "runs" / "mine")):
        assert (tmp_path / "runs" / "mine" / FILE).exists()
    assert list(tmp_path.iterdir()) == []
    with lease(str(tmp_path / "runs" / "mine")):
        (tmp_path / "runs" / "mine" / "run.json").touch()
    assert [file.name for file in (tmp_path / "runs" / "mine").iterdir()] == ["run.json"]


def test_a_lease_is_renewed(url: str) -> None:
    with lease(url) as mine:
        before = json.loads(text(url))
        wait_until(lambda: json.loads(text(url))["renewed"] > before["renewed"])
        assert {**json.loads(text(url)), "renewed": 0} == {**before, "renewed": 0}
        mine.check()


def test_the_dead_are_followed_at_once(url: str) -> None:
    """Told by the process, not by the age of the lease: a fresh one of a dead process holds nobody up."""
    myself = leases._myself()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    wait_until(lambda: leases._born(zombie.pid) == "")
    for dead in (
        replace(myself, token="dead", pid=ended.pid),
        replace(myself, token="dead", pid=zombie.pid),
        replace(myself, token="dead", born="1"),  # this pid, but of another process
    ):
        leave(url, dead)
        said: list[str] = []
        with lease(url, say=said.append) as mine:
            mine.check()
            assert b"dead" not in text(url)
        assert said == []
    zombie.wait()


def test_a_process_of_this_machine_that_lives_is_never_followed(url: str) -> None:
    """However old its lease: it may be stopped by hand for an hour."""
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    myself = leases._myself()
    leave(url, replace(myself, pid=living.pid, born=leases._born(living.pid), since=1e9, renewed=1e9))
    with pytest.raises(UserError, match=rf"by pid {living.pid} on"), lease(url):
        pass
    assert living.communicate(b"\n", timeout=120)
    with lease(url):
        pass


def test_another_machine_is_refused_by_while_it_gives_signs(url: str) -> None:
    said: list[str] = []
    refused = pytest.raises(UserError, match="is being trained by pid 4321 on node-7 since 2001")
    with elsewhere(url), refused, lease(url, say=said.append):
        pass
    assert len(said) == 1
    assert "pid 4321 on node-7, which cannot be seen from here: waiting" in said[0]


@pytest.mark.parametrize("damaged", [False, True])
def test_another_machine_that_is_silent_is_followed_after_the_bound(url: str, damaged: bool) -> None:
    future = time.time() + 1e6  # its clock does not matter
    leave(url, b'{"half' if damaged else Holder("theirs", "node-7", 4321, "another place", renewed=future))
    began = time.monotonic()
    with lease(url, say=lambda text: None) as mine:
        assert time.monotonic() - began >= leases.BOUND
        mine.check()


def test_one_that_ends_while_it_is_watched_is_followed(url: str) -> None:
    leave(url, Holder("theirs", "node-7", 4321, "another place"))
    fs, path = filesystem(url)
    ends = threading.Timer(0.05, lambda: fs.rm_file(join(path, FILE)))
    ends.start()
    with lease(url, say=lambda text: None) as mine:
        mine.check()
    ends.join()


def test_a_patient_one_waits_for_the_living(url: str) -> None:
    first = lease(url)
    first.__enter__()
    ends = threading.Timer(0.1, lambda: first.__exit__(None, None, None))
    ends.start()
    with lease(url, patience=20) as mine:
        mine.check()
    ends.join()


def test_a_holder_that_was_taken_over_stops(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEWED", 3600.0)
    with lease(url) as mine:
        theirs = Holder("theirs", "node-7", 4321)
        leave(url, theirs)
        monkeypatch.setattr(leases, "RENEWED", 0.0)
        leases._renew(mine, Holder(mine.token), threading.Event())  # it ends by itself
        sent = Lease(mine.url, mine.token)  # as its workers have it
        for _ in range(2):
            with pytest.raises(UserError, match=r"pid 4321 on node-7 took over.*has stopped"):
                sent.check()
    assert json.loads(text(url)) == asdict(theirs)  # neither renewed nor removed by the one that lost it
    fs, path = filesystem(url)
    fs.rm_file(join(path, FILE))
    with pytest.raises(UserError, match="another took over and has ended"):
        sent.check()


def test_of_many_that_begin_or_take_over_at_once_one_holds(tmp_path: Path) -> None:
    """Processes, not threads: what one may do at a time is what is asked."""
    script = (
        "import sys; from backbone import lease; from backbone.errors import UserError\n"
        "lease.SETTLE = 1\n"
        "print('ready', flush=True); input()\n"
        "try:\n"
        "    with lease.lease(sys.argv[1]): print('held', flush=True); input()\n"
        "except UserError as error: print(error, flush=True)\n"
    )
    for left in (None, replace(leases._myself(), token="dead", born="1")):
        url = str(tmp_path / str(bool(left)))
        if left:
            leave(url, left)
        words = [sys.executable, "-c", script, url]
        pipe = subprocess.PIPE
        those = [subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
        for one in those:
            assert one.stdout
            assert one.stdout.readline() == "ready\n"
        for one in those:
            assert one.stdin
            one.stdin.write("\n")
            one.stdin.flush()
        said = [one.stdout.readline() for one in those if one.stdout]
        assert sorted(line.split(" by ")[0].removesuffix("\n") for line in said) == [
            *[f"{url} is being trained"] * 3,
            "held",
        ]
        for one in those:
            one.communicate("\n", timeout=120)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/x: cannot be written \(Not a directory\)"), lease(f"{tmp_path}/file/x"):
        pass


def test_a_submitted_job_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = {"metadata": {"job_submission_id": "raysubmit_7"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    with lease(str(tmp_path)), pytest.raises(UserError, match=r"\(Ray job raysubmit_7\) since"), lease(str(tmp_path)):
        pass


def test_errors_of_a_stores_own_kind_end_no_renewing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class HttpError(Exception):
        """As gcsfs has it: no OSError."""

    read, left = leases._read, [HttpError("503")] * 5

    def fails(place: str) -> bytes | None:
        if left:
            raise left.pop()
        return read(place)

    with lease(url) as held:
        before = text(url)
        monkeypatch.setattr(leases, "_read", fails)
        held.check()
        wait_until(lambda: text(url) != before)
        held.check()
