"""A cluster on hosts of `hosts.py`: its raylets, or ranks without Ray, and the job that is submitted to it."""

import contextlib
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from hosts import Host, Wire, clock_library

from backbone.errors import UserError

PORT = 6379
TRAINS = (b"RayTrainWorker", b"LoneWorker", b"num_workers\x000")
"""What the command of a process that trains has in it."""


@dataclass
class Cluster:
    """Raylets, one a host, and the job that is submitted until it is finished."""

    hosts: list[Host]
    wire: Wire
    folder: Path
    env: dict[str, str]
    raylets: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    ahead: dict[str, int] = field(default_factory=dict)
    """Name of a host -> seconds by which its clock is ahead."""

    def env_of(self, host: Host) -> dict[str, str]:
        """What a process on this host is given."""
        if host.name not in self.ahead:
            return self.env
        library = str(clock_library(self.folder))
        return {**self.env, "LD_PRELOAD": library, "CLOCK_AHEAD": str(self.ahead[host.name])}

    def submit(self, words: list[str], log: Path) -> list[subprocess.Popen[bytes]]:
        """The job, on the head."""
        return [self.hosts[0].start(words, self.env_of(self.hosts[0]), log)]

    def note(self, text: str) -> None:
        self.events.append(f"{time.monotonic() - self.began:.0f} s: {text}")
        print(self.events[-1], flush=True)

    def start(self, host: Host) -> None:
        """Start its part of the cluster; does not wait for it."""
        words = ["start", "--block", f"--node-ip-address={host.address}", "--disable-usage-stats"]
        words += ["--object-store-memory=100000000", "--include-log-monitor=false"]
        if host is self.hosts[0]:
            words += ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"]
        else:
            words += [f"--address={self.hosts[0].address}:{PORT}", "--num-cpus=1"]
        log = self.folder / f"{host.name}.log"
        log.write_text("")
        command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", *words]
        self.raylets[host.name] = host.start(command, self.env_of(host), log)

    def is_up(self, host: Host) -> bool:
        """Whether its part has come up and lives."""
        lives = host.name in self.raylets and self.raylets[host.name].poll() is None
        return lives and "Ray runtime started" in (self.folder / f"{host.name}.log").read_text(errors="replace")

    def bring_up(self) -> None:
        """All hosts, one after the other, as they share a folder of sockets; UserError where one does not come."""
        deadline = time.monotonic() + 900
        for host in self.hosts:
            while not self.is_up(host):
                if time.monotonic() > deadline:
                    raise UserError(
                        f"Ray does not start on {host.address}: {last_said(self.folder / f'{host.name}.log')}"
                    )
                if host.name not in self.raylets or self.raylets[host.name].poll() is not None:
                    host.kill()
                    self.start(host)
                time.sleep(0.5)

    def heal(self) -> None:
        """Start again what is gone: a raylet that was declared dead while it was cut off ends itself."""
        for host in self.hosts[1:]:
            if self.raylets[host.name].poll() is not None:
                self.note(f"raylet of {host.address} is gone; started again")
                host.kill()
                self.start(host)


class Ranks(Cluster):
    """No Ray: each of the first two hosts has one rank, and when one ends the other is ended, as torchrun does."""

    def bring_up(self) -> None:
        pass

    def heal(self) -> None:
        pass

    def submit(self, words: list[str], log: Path) -> list[subprocess.Popen[bytes]]:
        port = random.randrange(20_000, 30_000)
        world = {"WORLD_SIZE": "2", "MASTER_ADDR": self.hosts[0].address, "MASTER_PORT": str(port)}
        words = [*words, "--scaling.num_workers", "0", "--scaling.min_workers", "0"]
        return [
            host.start(words, {**self.env_of(host), **world, "RANK": str(rank)}, log)
            for rank, host in enumerate(self.hosts[:2])
        ]


def trainers(cluster: Cluster) -> list[Host]:
    """Hosts on which a worker of the training runs."""

    def trains(pid: int) -> bool:
        with contextlib.suppress(OSError):
            return any(name in Path(f"/proc/{pid}/cmdline").read_bytes() for name in TRAINS)
        return False

    return [host for host in cluster.hosts if any(map(trains, host.pids()))]


def last_said(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
