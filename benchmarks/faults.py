"""What befalls hosts: faults as generators, which begin one, and end it when they are asked for more."""

import contextlib
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from hosts import Host, cpu_group, move, own_group
from raylets import TRAINS, Cluster


def kill_node(cluster: Cluster, host: Host, seconds: float) -> Iterator[None]:
    """SIGKILL to all processes of a host; after some seconds a new node comes in its place."""
    host.kill()
    yield


def freeze_node(cluster: Cluster, host: Host, seconds: float) -> Iterator[None]:
    """SIGSTOP to all processes of a host, for a time."""
    host.signal(signal.SIGSTOP)
    yield
    host.signal(signal.SIGCONT)


def cut_link(cluster: Cluster, host: Host, seconds: float) -> Iterator[None]:
    """Nothing comes through to or from a host, for a time."""
    cluster.wire.cut = cluster.wire.cut | {host.name}
    yield
    cluster.wire.cut = cluster.wire.cut - {host.name}


def cut_from_head(cluster: Cluster, host: Host, seconds: float) -> Iterator[None]:
    """Nothing comes through between a host and the cluster's head, for a time; the others it reaches."""
    pair = frozenset({cluster.hosts[0].name, host.name})
    cluster.wire.apart = cluster.wire.apart | {pair}
    yield
    cluster.wire.apart = cluster.wire.apart - {pair}


def slow_wire(cluster: Cluster, host: Host, seconds: float) -> Iterator[None]:
    """50 ms each way between all hosts, and 1 % of the packets lost."""
    cluster.wire.delay, cluster.wire.loss = 0.05, 0.01
    yield
    cluster.wire.delay, cluster.wire.loss = 0.0, 0.0


def full_disk(cluster: Cluster, host: Host, seconds: float) -> Iterator[None]:
    """The file system of the runs has no space, for a time."""
    ballast = cluster.folder / "disk" / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    yield
    ballast.unlink()


def kill_worker(cluster: Cluster, host: Host, seconds: float) -> Iterator[None]:
    """SIGKILL to the process of a host that trains."""
    for pid in host.pids():
        with contextlib.suppress(OSError):
            if any(name in Path(f"/proc/{pid}/cmdline").read_bytes() for name in TRAINS):
                os.kill(pid, signal.SIGKILL)
    yield


def slow_node(cluster: Cluster, host: Host, seconds: float) -> Iterator[None]:
    """A tenth of a processor for all processes of a host, for a time."""
    group = cpu_group(f"{host.name}-slow", 10_000)
    move(host.pids(), group)
    yield
    move(map(int, (group / "cgroup.procs").read_text().split()), own_group())
    group.rmdir()


def wrong_clock(cluster: Cluster, host: Host, seconds: float) -> Iterator[None]:
    """A node whose clock is an hour ahead takes a host's place, for a time."""
    cluster.ahead[host.name] = 3600
    host.kill()
    yield
    del cluster.ahead[host.name]
    host.kill()


Plan = list[tuple[float, str, int, float]]
"""(seconds after training was seen to run, fault, which of the hosts that train, seconds it lasts), by time."""

FAULTS: dict[str, Callable[[Cluster, Host, float], Iterator[None]]] = {
    "kill node": kill_node,
    "freeze node": freeze_node,
    "cut link": cut_link,
    "cut from head": cut_from_head,
    "slow wire": slow_wire,
    "full disk": full_disk,
    "kill worker": kill_worker,
    "slow node": slow_node,
    "wrong clock": wrong_clock,
}

CASES: dict[str, Plan] = {
    "nothing": [],
    "50 ms and 1 % loss": [(0, "slow wire", 1, 60)],
    "link cut for 5 s": [(0, "cut link", 0, 5)],
    "link cut for 30 s": [(0, "cut link", 0, 30)],
    "link cut for 120 s": [(0, "cut link", 0, 120)],
    "head cut from one worker for 30 s": [(0, "cut from head", 0, 30)],
    "node killed": [(0, "kill node", 1, 5)],
    "node frozen for 20 s": [(0, "freeze node", 0, 20)],
    "node frozen for 90 s": [(0, "freeze node", 0, 90)],
    "disk full": [(0, "full disk", 0, 20)],
    "a tenth of a processor for 30 s": [(0, "slow node", 1, 30)],
    "clock an hour ahead for 60 s": [(0, "wrong clock", 1, 60)],
}


DRAWN = ("kill node", "freeze node", "cut link", "slow wire", "full disk", "kill worker")
"""Faults of random sequences: what more is added would change those that seeds stand for."""


def drawn(seed: int, minutes: float) -> Plan:
    """A sequence of faults, as those of `CASES`, one after the other, for as many minutes."""
    draw, at, faults = random.Random(seed), 0.0, []
    while at < 60 * minutes:
        lasts = draw.choice([3.0, 8.0, 20.0, 45.0])
        faults.append((at, draw.choice(DRAWN), draw.randrange(3), lasts))
        at += lasts + draw.uniform(5, 30)
    return faults
