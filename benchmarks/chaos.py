"""Hosts that fail: trainings over a network under faults, and whether their weights are those of an undisturbed one.

    python benchmarks/chaos.py                         # each fault once
    python benchmarks/chaos.py --cases --seeds 0 1 2 --minutes 3
    python benchmarks/chaos.py --without-ray           # two ranks, as torchrun starts them, and no raylets

Four hosts, each a network namespace: the cluster's head, where the job runs, and three with one CPU each, of which the
training takes two, elastically. A watchman does what a platform does: a raylet that is gone is started again, and a job
that ended without being finished is submitted again. Nothing else is mended. The weights are compared, bit by bit, with
those of one process that nobody disturbed; batch statistics, which are sums over workers, to 1e-6.

With `--seeds` each seed draws faults and their times for as many minutes. Rows of other cases stay in the file. Needs
root; elsewhere it says so and ends.
"""

import argparse
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from faults import CASES, FAULTS, Plan, drawn
from hosts import network, why_not
from raylets import PORT, Cluster, Ranks, last_said, trainers
from results import parser, save

from backbone.artifact import load

ROOT = Path(__file__).parents[1]
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


def notable(log: Path) -> list[str]:
    """What a run said beside its progress and its results; of a traceback the error alone."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    usual = r"\[W|epoch |warning: |Ray dashboard|trained in|accuracy |curves |artifact |next |.*Traceback|\(\w+ pid="
    seen: dict[str, None] = {}
    for line in lines:
        told = re.sub(r"^\[rank\d+\]: ?", "", line)
        if told.strip() and not told.startswith(" ") and not re.match(usual, told):
            seen.setdefault(re.sub(r"/tmp/chaos\w+/disk", "STORAGE", told.strip())[:400])
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


def others(output: Path, by: str, cases: list[str]) -> list[dict[str, Any]]:
    """Rows of cases that were run by other commands: they stay in the file."""
    old = json.loads(output.read_text())["rows"] if output.exists() else []
    # Rows from before it was said are of --without-ray.
    return [row for row in old if row["case"] not in cases or row.get("ranks by", "torchrun's rules") != by]


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
    by, rows = "torchrun's rules" if given.without_ray else "Ray Train", list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="chaos", ignore_cleanup_errors=True) as folder:
        for row in run_all(plans, Path(folder), given):
            rows.append({"ranks by": by, **row, "options": " ".join(sys.argv[1:])})
            save(given.output, others(given.output, by, list(plans)) + rows)
            print({name: value for name, value in row.items() if not isinstance(value, list)}, flush=True)


if __name__ == "__main__":
    main()
