"""Several hosts on this machine: network namespaces, joined by a wire that can be slow, lossy or cut. Needs root.

The wire is this process: each host's network card is a TUN device whose packets it passes on, late or not at all. So it
needs no netem, which many kernels lack, and the hosts' own TCP meets what it would meet on such a network.
"""

import contextlib
import fcntl
import heapq
import os
import random
import selectors
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from backbone.errors import UserError

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 60_000
"""Large, as the wire costs processor time by the packet."""


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise UserError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def why_not() -> str:
    """Why there can be no hosts here; empty: there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    try:
        name = f"rb{os.getpid()}"
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except (UserError, OSError) as error:
        return f"no network namespaces: {error}"
    return ""


@dataclass
class Host:
    """A namespace with one network card, `eth0`."""

    name: str
    address: str
    fd: int

    def start(self, words: list[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a command on this host; what it says is added to `log`."""
        with log.open("ab") as file:
            command = ["ip", "netns", "exec", self.name, *words]
            return subprocess.Popen(command, env=dict(env), stdout=file, stderr=file, start_new_session=True)

    def pids(self) -> list[int]:
        """All its processes."""
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    def signal(self, signum: int) -> None:
        """Send all its processes a signal."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def kill(self) -> None:
        """As a power cut."""
        deadline = time.monotonic() + 30
        while self.pids() and time.monotonic() < deadline:
            self.signal(signal.SIGKILL)
            time.sleep(0.1)


def own_group() -> Path:
    """The control group of this process that bounds its processor time; UserError where there is none."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        root = Path("/sys/fs/cgroup/cpu" if "cpu" in controllers.split(",") else "/sys/fs/cgroup")
        if (not controllers or "cpu" in controllers.split(",")) and (root / "cgroup.procs").exists():
            return root / path.lstrip("/")
    raise UserError("no control group bounds processor time here")


def cpu_group(name: str, microseconds: int) -> Path:
    """A control group whose processes get so much of a processor in each 100 ms."""
    group = own_group() / name
    group.mkdir()
    if (group / "cpu.max").exists():
        (group / "cpu.max").write_text(f"{microseconds} 100000")
    else:  # version 1
        (group / "cpu.cfs_quota_us").write_text(str(microseconds))
    return group


def move(pids: Iterable[int], group: Path) -> None:
    """Put processes into a control group; those that are gone are passed over."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            (group / "cgroup.procs").write_text(str(pid))


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long ahead(void) { const char *s = getenv("CLOCK_AHEAD"); return s ? atol(s) : 0; }
int clock_gettime(clockid_t id, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, t);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) t->tv_sec += ahead();
    return failed;
}
int gettimeofday(struct timeval *t, void *zone) {
    struct timespec now;
    int failed = clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec; t->tv_usec = now.tv_nsec / 1000;
    return failed;
}
time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}
"""
"""What a process loads before its libraries to read a clock that is off: the kernel has one for all namespaces."""


def clock_library(folder: Path) -> Path:
    """`CLOCK`, compiled; UserError without a C compiler."""
    library = folder / "clock.so"
    if not library.exists():
        if not (compiler := shutil.which("cc")):
            raise UserError("a clock that is off needs a C compiler, cc")
        (folder / "clock.c").write_text(CLOCK)
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-o", library, folder / "clock.c", "-ldl"], check=True, timeout=60
        )
    return library


class Wire(threading.Thread):
    """Passes packets on between hosts. Its attributes may be set at any time."""

    def __init__(self, hosts: list[Host], seed: int) -> None:
        super().__init__(daemon=True)
        self.hosts = {host.address: host for host in hosts}
        self.delay, self.loss = 0.0, 0.0
        """Seconds one way, and the share of packets that are lost."""

        self.cut: set[str] = set()
        """Names of hosts from and to which nothing comes."""

        self.apart: set[frozenset[str]] = set()
        """Pairs of hosts between which nothing comes."""

        self.passed = self.dropped = 0
        self._random, self._over = random.Random(seed), False

    def run(self) -> None:
        ready = selectors.DefaultSelector()
        for host in self.hosts.values():
            ready.register(host.fd, selectors.EVENT_READ, host)
        late: list[tuple[float, int, int, bytes]] = []
        while not self._over:
            wait = max(0.0, late[0][0] - time.monotonic()) if late else 0.2
            for key, _ in ready.select(min(wait, 0.2)):
                for _ in range(64):
                    try:
                        packet = os.read(key.fd, 65536)
                    except BlockingIOError:
                        break
                    to = self.hosts.get(".".join(map(str, packet[16:20]))) if packet[0] >> 4 == 4 else None
                    if to is None:
                        continue
                    lost = self.loss and self._random.random() < self.loss
                    ends = frozenset({key.data.name, to.name})
                    if lost or self.cut & ends or ends in self.apart:
                        self.dropped += 1
                        continue
                    self.passed += 1
                    heapq.heappush(late, (time.monotonic() + self.delay, self.passed, to.fd, packet))
            while late and late[0][0] <= time.monotonic():
                _, _, fd, packet = heapq.heappop(late)
                with contextlib.suppress(OSError):  # its queue is full: lost, as on any network
                    os.write(fd, packet)

    def end(self) -> None:
        """Stop passing on."""
        self._over = True
        self.join(5)


@contextlib.contextmanager
def network(count: int, seed: int = 0) -> Generator[tuple[list[Host], Wire]]:
    """So many hosts, 10.77.0.1 and up, and their wire; at the end all of their processes are killed."""
    hosts: list[Host] = []
    try:
        for number in range(1, count + 1):
            name, card = f"rb{os.getpid()}-{number}", f"rb{os.getpid() % 10**6}t{number}"
            _ip("netns", "add", name)
            try:
                fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            except OSError:
                _ip("netns", "del", name)
                raise
            hosts.append(Host(name, f"10.77.0.{number}", fd))  # whatever fails from here on, it is closed
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", card.encode(), IFF_TUN | IFF_NO_PI))
            _ip("link", "set", card, "netns", name, "name", "eth0")
            _ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "mtu", str(MTU), "up")
            _ip("-n", name, "link", "set", "lo", "up")
        wire = Wire(hosts, seed)
        wire.start()
        try:
            yield hosts, wire
        finally:
            wire.end()  # before what it reads from is closed
    finally:
        for host in hosts:
            host.kill()
            os.close(host.fd)
            with contextlib.suppress(UserError):
                _ip("netns", "del", host.name)
