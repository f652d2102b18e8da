"""Who is at work in a folder: `lease.json` in it, so that no two processes train, search or prepare under one name.

    with lease(url, "trained") as mine:
        ...
        mine.check()  # before something is written

The holder writes the file anew every RENEWED seconds. It is taken over from a holder that is dead, which its own
machine tells by the process, and any other by the file: unchanged for BOUND seconds of the watcher's own clock, because
two machines' clocks need not agree. A holder that comes back then finds another's name in the file, and stops.

Locally a lease is begun by creating the file, which only one can do. Taking over, and object stores where nothing can
be created exclusively, go by the last one who wrote: write, wait a moment, read back.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from backbone.errors import StorageError, UserError
from backbone.storage import filesystem, is_local, join
from backbone.supervise import HELD

FILE = "lease.json"
RENEWED = 10.0
CHECKED = 5.0
"""How often `Lease.check` looks, at most."""

BOUND = 60.0
"""Longer than the longest time a file's text can hold up Python's other threads, and than any cache of NFS."""

SETTLE = 0.5
"""Seconds in which another's write of the same moment shows."""

POLL = 1.0

PATIENCE = 120.0
"""Seconds that a process may still need to end whose work was given to another, as Tune does with trials."""


@dataclass(frozen=True)
class Holder:
    """A process with a lease, as it says of itself. The defaults are of a file that says nothing."""

    token: str = ""
    host: str = "an unknown machine"
    pid: int = 0
    place: str = ""
    """Processes with the same place see each other's pids."""

    born: str = ""
    """When the process started, as its kernel counts: pids are used again."""

    job: str = ""
    """Ray's name of the submitted job it runs in."""

    since: float = 0.0
    """Unix time."""

    renewed: float = 0.0

    @property
    def who(self) -> str:
        """For a message: `pid 12 on node-3`."""
        return f"pid {self.pid} on {self.host}" + (f" (Ray job {self.job})" if self.job else "")


@dataclass
class Lease:
    """A hold on a folder. May be sent to other processes, which check it there."""

    url: str
    token: str
    checked: float = 0.0

    def check(self) -> None:
        """UserError if the folder is another's by now. Looks no oftener than is worth it."""
        now = time.time()  # not a monotonic clock: that stands still while a machine sleeps
        if abs(now - self.checked) < CHECKED:
            return
        by = ""
        with suppress(Exception):  # the store, whose errors are of many kinds, does not answer: nothing can be written
            if self.lost():
                data = _read(self.url)
                by = f"{_parse(data).who} took over" if data else f"another took over and has ended, or removed {FILE}"
        if by:
            raise UserError(f"{self.url}: {by}; this one, of which no sign had been seen, has stopped")
        self.checked = now

    def lost(self) -> bool:
        """Whether the file is not this holder's any more; OSError where it cannot be read now."""
        data = _read(self.url)
        if data is None:
            time.sleep(POLL)  # seen from another machine, a file that is being replaced may be missing for a moment
            data = _read(self.url)
        return data is None or _parse(data).token != self.token


@contextmanager
def lease(
    url: str,
    doing: str = "trained",
    option: str = "--name",
    patience: float = 0.0,
    say: Callable[[str], None] = print,
) -> Generator[Lease]:
    """Hold the folder at `url`, which is made if need be, until the block ends.

    Args:
        url: local path or URL.
        doing: what becomes of it, for messages.
        option: what names another folder.
        patience: seconds to wait for a holder that is alive.
        say: told of waiting.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    token = os.environ.get(HELD)
    if token and (data := _read(url)) and _parse(data).token == token:
        yield Lease(url, token, time.time())
        return
    try:
        made = _make(url)
        mine = _acquire(url, doing, option, patience, say)
    except StorageError:
        raise
    except OSError as error:
        raise UserError(
            f"{url}: cannot be written ({error.strerror or error}); name another: --output FOLDER, or of a run "
            "--run.storage FOLDER"
        ) from error
    held, stop = Lease(url, mine.token, time.time()), threading.Event()
    renewing = threading.Thread(target=_renew, args=(held, mine, stop), daemon=True)
    renewing.start()
    try:
        yield held
    finally:
        stop.set()
        renewing.join()
        _release(url, mine, made)


def at_work(url: str) -> Holder | None:
    """Who is at work in a folder, as far as can be told without waiting; None: nobody.

    A holder on this machine is asked after by its process. Of any other the file's time has to do, by both clocks: what
    must be certain takes the lease.
    """
    data = _read(url)
    if data is None:
        return None
    holder = _parse(data)
    alive = _lives(holder) if holder.place == _myself().place else time.time() - holder.renewed < BOUND
    return holder if alive else None


def _acquire(url: str, doing: str, option: str, patience: float, say: Callable[[str], None]) -> Holder:
    mine = _myself()
    began, waited = time.monotonic(), False
    while True:
        data = _read(url)
        if data is None:
            if _create(url, mine):
                return mine
            continue
        holder = _parse(data)
        if mine.place != holder.place:
            if not waited:
                say(
                    f"{url} was last {doing} by {holder.who}, which cannot be seen from here: waiting {BOUND:.0f} s "
                    "for a sign of it, then going on in its place"
                )
                waited = True
            now = _when_changed(url, data)
            dead = now == data
            if not dead and (now is None or _parse(now).token != holder.token):
                continue  # it ended, or yet another took over
        else:
            dead = not _lives(holder)
        if dead:
            if _take_over(url, mine):
                return mine
        elif time.monotonic() - began >= patience:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
            raise UserError(
                f"{url} is being {doing} by {holder.who} since {since}; wait for it, stop it, or give this one "
                f"another {option}"
            )
        else:
            time.sleep(POLL / 2)


def _myself() -> Holder:
    now = time.time()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        place = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux: the machine's name has to do
        place = socket.gethostname()
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("metadata", {})
    return Holder(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        pid=os.getpid(),
        place=place,
        born=_born(os.getpid()),
        job=job.get("job_submission_id", ""),
        since=now,
        renewed=now,
    )


def _lives(holder: Holder) -> bool:
    """Whether a holder on this machine still runs."""
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return _born(holder.pid) in (holder.born, "?")


def _born(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty: it has ended; "?": the kernel does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "?"
    return "" if fields[0] in "ZX" else fields[19]  # what is dead may wait for its parent to notice


def _make(url: str) -> list[Path]:
    """Make the folder; returns the local ones that were not there, the innermost first."""
    fs, path = filesystem(url)
    made = [folder for folder in (Path(path), *Path(path).parents) if not folder.exists()] if is_local(url) else []
    fs.makedirs(path, exist_ok=True)
    return made


def _read(url: str) -> bytes | None:
    """The lease's text; None where there is none."""
    fs, path = filesystem(url)
    place = join(path, FILE)
    deadline = time.monotonic() + 2
    while True:
        try:
            data = fs.cat_file(place)
        except FileNotFoundError:
            return None
        if data or time.monotonic() > deadline:
            return data
        time.sleep(0.01)  # it has been created and is not written yet


def _parse(data: bytes) -> Holder:
    try:
        tree: dict[str, Any] = json.loads(data)
        return Holder(**tree)
    except (ValueError, TypeError):
        return Holder()


def _text(holder: Holder) -> bytes:
    return json.dumps(asdict(holder), indent=1).encode()


def _create(url: str, mine: Holder) -> bool:
    """Begin a lease where there is none; False: another was faster."""
    fs, path = filesystem(url)
    if not is_local(url):
        return _take_over(url, mine)
    try:
        fs.makedirs(path, exist_ok=True)  # another's end may just have removed it
        with Path(path, FILE).open("xb") as file:
            file.write(_text(mine))
    except (FileExistsError, FileNotFoundError):
        return False
    return True


def _take_over(url: str, mine: Holder) -> bool:
    """Write, wait a moment, and see whether nobody else did the same."""
    _write(url, mine)
    time.sleep(SETTLE)
    data = _read(url)
    return data is not None and _parse(data).token == mine.token


def _write(url: str, mine: Holder) -> None:
    """Replace the file, locally as a whole."""
    fs, path = filesystem(url)
    if not is_local(url):
        fs.pipe_file(join(path, FILE), _text(mine))
        return
    aside = Path(path, f".{FILE}.{mine.token}")
    try:
        aside.write_bytes(_text(mine))
        aside.replace(Path(path, FILE))
    finally:
        aside.unlink(missing_ok=True)


def _when_changed(url: str, before: bytes) -> bytes | None:
    """What the file holds once it is no longer `before`; after BOUND seconds what it held before."""
    deadline = time.monotonic() + BOUND
    while time.monotonic() < deadline:
        with suppress(Exception):  # as in `check`
            if (data := _read(url)) != before:
                return data
        time.sleep(POLL)
    return before


def _renew(held: Lease, mine: Holder, stop: threading.Event) -> None:
    while not stop.wait(RENEWED):
        with suppress(Exception):  # as in `check`; tried again the next time
            if held.lost():
                return
            _write(held.url, replace(mine, renewed=time.time()))


def _release(url: str, mine: Holder, made: list[Path]) -> None:
    """End the lease, and remove the folders it made where nothing was put into them."""
    fs, path = filesystem(url)
    with suppress(Exception):  # as in `check`
        data = _read(url)
        if data and _parse(data).token == mine.token:
            fs.rm_file(join(path, FILE))
        for folder in made:
            folder.rmdir()
