"""Hosts that fail: trainings over a network under faults, and whether their weights are those of an undisturbed one.

    python benchmarks/chaos.py                         # each fault once
    python benchmarks/chaos.py --cases --seeds 0 1 2 --minutes 3 --output docs/results/chaos_seeds.json

Four hosts, each a network namespace: the cluster's head, where the job runs, and three with one CPU each, of which the
training takes two, elastically. A watchman does what a platform does: a raylet that is gone is started again, and a job
that ended without being finished is submitted again. Nothing else is mended. The weights are compared, bit by bit, with
those of one process that nobody disturbed; batch statistics, which are sums over workers, to 1e-6.

With `--seeds` each seed draws faults and their times for as many minutes. Needs root; elsewhere it says so and ends.
"""

import argparse
import contextlib
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from hosts import Host, Wire, network, why_not
from results import parser, save, write

from backbone.artifact import load
from backbone.errors import UserError

ROOT = Path(__file__).parents[1]
PORT = 6379
TRAINS = (b"RayTrainWorker", b"LoneWorker", b"num_workers\x000")
"""What the command of a process that trains has in it."""

QUIET_S = 300
"""A job that says nothing for so long hangs, and is killed and counted."""

RECIPE: dict[str, Any] = {
    "model": {"net": "cifar_resnet", "depth": 8, "shortcut": "A"},
    "data": {"train_images": 160, "val_images": 50, "size": 32, "crop_pct": 1.0, "workers": 0},
    "optim": {"batch": 16, "micro_batch": 8, "lr": 0.05, "lr_batch": 16},
    "compute": {"precision": "fp32"},
    "scaling": {"num_workers": 2, "min_workers": 1, "placement": "SPREAD", "max_failures": 50},
    "run": {"log_every": 10, "checkpoint_every": 10, "eval_every": 1000, "precise_bn": 64},
}


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

    def submit(self, words: list[str], log: Path) -> list[subprocess.Popen[bytes]]:
        """The job, on the head."""
        return [self.hosts[0].start(words, self.env, log)]

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
        self.raylets[host.name] = host.start(command, self.env, log)

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
            host.start(words, {**self.env, **world, "RANK": str(rank)}, log) for rank, host in enumerate(self.hosts[:2])
        ]


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


Plan = list[tuple[float, str, int, float]]
"""(seconds after training was seen to run, fault, which of the hosts that train, seconds it lasts), by time."""

FAULTS: dict[str, Callable[[Cluster, Host, float], Iterator[None]]] = {
    "kill node": kill_node,
    "freeze node": freeze_node,
    "cut link": cut_link,
    "slow wire": slow_wire,
    "full disk": full_disk,
    "kill worker": kill_worker,
}

CASES: dict[str, Plan] = {
    "nothing": [],
    "50 ms and 1 % loss": [(0, "slow wire", 1, 60)],
    "link cut for 5 s": [(0, "cut link", 0, 5)],
    "link cut for 30 s": [(0, "cut link", 0, 30)],
    "link cut for 120 s": [(0, "cut link", 0, 120)],
    "node killed": [(0, "kill node", 1, 5)],
    "node frozen for 20 s": [(0, "freeze node", 0, 20)],
    "node frozen for 90 s": [(0, "freeze node", 0, 90)],
    "disk full": [(0, "full disk", 0, 20)],
}


def drawn(seed: int, minutes: float) -> Plan:
    """A sequence of faults, as those of `CASES`, one after the other, for as many minutes."""
    draw, at, faults = random.Random(seed), 0.0, []
    while at < 60 * minutes:
        lasts = draw.choice([3.0, 8.0, 20.0, 45.0])
        faults.append((at, draw.choice(list(FAULTS)), draw.randrange(3), lasts))
        at += lasts + draw.uniform(5, 30)
    return faults


def train(cluster: Cluster, recipe: Path, name: str, plan: Plan, limit: float) -> dict:
    """Submit the training until it is finished, while the faults of `plan` come to pass."""
    log = cluster.folder / f"{name}.log"
    words = [sys.executable, str(ROOT / "jobs" / "pretrain.py"), "--config", str(recipe), "--name", name]
    submissions, ends, hung, first = 0, list[str](), 0, None
    todo, under_way = list(plan), list[tuple[float, Iterator[None], str]]()
    job: list[subprocess.Popen[bytes]] = []
    deadline, quiet_since, size = time.monotonic() + limit, time.monotonic(), 0
    while time.monotonic() < deadline:
        now = time.monotonic()
        if not job:
            submissions += 1
            quiet_since, size = now, 0
            job = cluster.submit(words, log)
        codes = [one.poll() for one in job]
        if any(codes) or None not in codes:
            if not any(codes):
                break
            end_all(job)
            ends.append(f"exit {[one.poll() for one in job]}: {last_said(log)}")
            cluster.note(ends[-1])
            job = []
            time.sleep(2)
            continue
        if log.exists() and log.stat().st_size != size:
            size, quiet_since = log.stat().st_size, now
            if first is None and b"  step " in log.read_bytes():
                first = now
        if now - quiet_since > QUIET_S:
            hung += 1
            cluster.note(f"nothing said for {QUIET_S} s; killed")
            end_all(job)
        while todo and first is not None and now - first >= todo[0][0]:
            _, kind, which, lasts = todo.pop(0)
            training = trainers(cluster) or cluster.hosts[1:]
            host = training[which % len(training)]
            cluster.note(f"{kind} on {host.address} for {lasts:.0f} s")
            fault = FAULTS[kind](cluster, host, lasts)
            next(fault)
            under_way.append((now + lasts, fault, kind))
        for one in [one for one in under_way if one[0] <= now]:
            next(one[1], None)
            cluster.note(f"{one[2]} is over")
            under_way.remove(one)
        if not any(kind == "kill node" for _, _, kind in under_way):
            cluster.heal()
        time.sleep(0.2)
    for _, fault, _ in under_way:
        next(fault, None)
    if any(one.poll() is None for one in job):
        end_all(job)
        ends.append("not finished in time; killed")
    return {
        "submissions": submissions,
        "silent for too long": hung,
        "faults": len(plan) - len(todo),
        "seconds": round(time.monotonic() - (first or deadline)),
        "said": notable(log),
        "ends": ends,
    }


def end_all(job: list[subprocess.Popen[bytes]]) -> None:
    """At once."""
    for one in job:
        if one.poll() is None:
            os.killpg(one.pid, signal.SIGKILL)
            one.wait(30)


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


def notable(log: Path) -> list[str]:
    """What a run said beside its progress."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    seen: dict[str, None] = {}
    for line in lines:
        if line.strip() and not re.match(r"epoch |step \d+/\d+  validation|warning: |Ray dashboard", line):
            seen.setdefault(line.strip()[:400])
    return list(seen)[:40]


def compare(quiet: Path, disturbed: Path) -> str:
    """Of two artifacts: whether their weights are equal."""
    if not (disturbed / "config.json").exists():
        return "no artifact"
    a, b = (load(str(one))[0].state_dict() for one in (quiet, disturbed))
    statistics = [k for k in a if "running" in k or "tracked" in k]
    different = [k for k in a if k not in statistics and not torch.equal(a[k], b[k])]
    far = [k for k in statistics if not torch.allclose(a[k].double(), b[k].double(), rtol=1e-5, atol=1e-6)]
    return "equal" if not different + far else f"{len(different)} tensors differ, {len(far)} statistics are far"


@contextlib.contextmanager
def disk(folder: Path, megabytes: int) -> Generator[Path]:
    """A small file system of its own."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True, timeout=30)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, timeout=30)


def environment(temporary: str) -> dict[str, str]:
    """What all processes of the cluster are given."""
    return {
        **{key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        "RAY_TMPDIR": temporary,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
        "RAY_agent_register_timeout_ms": "600000",  # a machine with few cores starts them slowly
        "GLOO_SOCKET_IFNAME": "eth0",  # by itself gloo takes the address of the host's name, here 127.0.0.1
        "OMP_NUM_THREADS": "1",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }


def run_all(plans: dict[str, Plan], folder: Path, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One training after the other, each under its plan, on one cluster; what came of each."""
    # Short: Ray's sockets lie below it.
    temporary = tempfile.mkdtemp(prefix="rb", dir="/tmp")
    env = environment(temporary)
    try:
        with disk(folder / "disk", 24) as storage, network(2 if given.without_ray else 4) as (hosts, wire):
            recipe = folder / "recipe.yaml"
            tree = {**RECIPE, "schedule": {"kind": "cosine", "unit": "iterations", "total": given.steps}}
            tree["run"] = {**RECIPE["run"], "storage": str(storage)}
            recipe.write_text(yaml.safe_dump(tree))
            job = [sys.executable, str(ROOT / "jobs" / "pretrain.py"), "--config", str(recipe)]
            alone = ["--name", "quiet", "--scaling.num_workers", "0", "--scaling.min_workers", "0"]
            subprocess.run([*job, *alone], check=True, capture_output=True, env=env, timeout=given.limit)
            cluster = (Ranks if given.without_ray else Cluster)(
                hosts, wire, folder, {**env, "RAY_ADDRESS": f"{hosts[0].address}:{PORT}"}
            )
            for number, (case, plan) in enumerate(plans.items()):
                print(f"== {case}", flush=True)
                cluster.bring_up()
                cluster.began, cluster.events = time.monotonic(), []
                before = wire.passed, wire.dropped
                found = train(cluster, recipe, f"run{number}", plan, given.limit)
                weights = compare(storage / "quiet" / "artifact", storage / f"run{number}" / "artifact")
                packets = {"packets": wire.passed - before[0], "packets lost": wire.dropped - before[1]}
                yield {"case": case, "weights": weights, **found, **packets, "events": cluster.events}
                shutil.rmtree(storage / f"run{number}", ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    words.add_argument("--seeds", nargs="*", type=int, default=[], help="of random sequences of faults")
    words.add_argument("--minutes", type=float, default=3, help="that a random sequence lasts")
    words.add_argument("--steps", type=int, default=1500, help="of each training")
    words.add_argument("--limit", type=float, default=900, help="seconds until a training is given up")
    words.add_argument("--without-ray", action="store_true", help="two ranks as torchrun starts them")
    given = words.parse_args()
    if reason := why_not():
        print(f"skipped: {reason}")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # namespaces and mounts are removed
    torch.set_num_threads(1)
    plans = {name: CASES[name] for name in given.cases}
    plans |= {f"seed {seed}": drawn(seed, given.minutes) for seed in given.seeds}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="chaos", ignore_cleanup_errors=True) as folder:
        for row in run_all(plans, Path(folder), given):
            rows.append(row)
            save(given.output, rows)
    table = [{k: v for k, v in row.items() if not isinstance(v, list)} for row in rows]
    write(given.output, table, details=rows)


if __name__ == "__main__":
    main()
