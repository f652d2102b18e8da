"""Seconds from `python jobs/pretrain.py` to the first training step, through Ray, with two workers.

On a Ray cluster that the job starts itself, and on one that is already running; in turns. Read from the moments at
which the job's lines appear. The net and the images are tiny: what is measured is everything but the training.

With `--processes` one job on a cluster of its own, and what each of its processes had worked until the first step: on
few cores that is what the seconds are made of, and a busy machine changes it less than it changes the clock.
"""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from results import parser, spread, write

ROOT = Path(__file__).parents[1]
RECIPE = """
model: {net: cifar_resnet, depth: 8, shortcut: A}
data: {train_images: 64, val_images: 16, size: 32, workers: 0, augment: {kind: cifar}}
optim: {batch: 16}
schedule: {unit: iterations, total: 2}
compute: {precision: fp32}
run: {log_every: 1, precise_bn: 0}
"""
MARKS = {"Ray dashboard": "Ray reached", " worker(s) on ": "workers ready", "  step 1/": "first step"}
"""What a line of the job's holds -> what has been done when it appears."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def submit(
    folder: Path, workers: int, env: dict[str, str], first_step: Callable[[str], None] = lambda mark: None
) -> dict[str, float]:
    """Seconds from the start of the job to each mark; `first_step` is called at the last.

    Raises:
        RuntimeError: the job failed; holds its output.
    """
    (folder / "recipe.yaml").write_text(RECIPE)
    name = secrets.token_hex(4)
    words = [sys.executable, "-u", "jobs/pretrain.py", "--config", str(folder / "recipe.yaml"), "--name", name]
    words += ["--run.storage", str(folder), "--scaling.num_workers", str(workers)]
    began, began_clock = time.perf_counter(), time.time()
    job = subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    marks: dict[str, float] = {}
    output = []
    for line in job.stdout or ():
        output.append(line)
        for text, mark in MARKS.items():
            if text in line and mark not in marks:
                marks[mark] = time.perf_counter() - began
                if mark == "first step":
                    first_step(mark)
    if job.wait() or set(marks) != set(MARKS.values()):
        raise RuntimeError(f"the job failed ({job.returncode}):\n{''.join(output)}")
    # The run's file is the last thing written before workers are asked for.
    marks = {"imported and checked": (folder / name / "run.json").stat().st_mtime - began_clock, **marks}
    assert list(marks.values()) == sorted(marks.values()), marks
    return marks


def worked(word: str) -> dict[str, float]:
    """Processor seconds of all processes whose environment holds `word`, by process, as Linux names them."""
    seconds: dict[str, float] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if word not in (process / "environ").read_bytes().decode(errors="replace"):
                continue
            _, _, told = (process / "stat").read_text().rpartition(")")
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # ended meanwhile, or another user's
            continue
        user, system = told.split()[11:13]
        scripts = [Path(one).name for one in words[1:] if one.endswith(".py")]
        name = words[0].split(".")[0] if words[0].startswith("ray::") else (scripts or [Path(words[0]).name])[0]
        name = f"{name} {process.name}"
        seconds[name] = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return seconds


def processes(folder: Path, workers: int, env: dict[str, str]) -> list[dict[str, Any]]:
    """A row for each process of a job on its own cluster that worked for a tenth of a second, the busiest first."""
    at: dict[str, float] = {}
    marks = submit(folder, workers, env, lambda mark: at.update(worked(env["RAY_AUTH_TOKEN"])))
    rows = [{"process": "all", "CPU s": sum(at.values())}]
    busiest = sorted(at.items(), key=lambda one: -one[1])
    rows += [{"process": name.rsplit(" ", 1)[0], "CPU s": seconds} for name, seconds in busiest if seconds >= 0.1]
    return [row | {"first step, s": marks["first step"]} for row in rows]


def start_cluster(workers: int, env: dict[str, str], log: Path) -> tuple[subprocess.Popen, str]:
    """`ray start` in the foreground of a process of its own, and the cluster's address."""
    port = free_port()
    ray = Path(sys.executable).with_name("ray")
    words = [str(ray), "start", "--head", "--block", f"--port={port}", f"--num-cpus={workers}"]
    words += [f"--dashboard-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"]
    with log.open("w") as file:
        cluster = subprocess.Popen(words, env=env, stdout=file, stderr=subprocess.STDOUT)
    while "Ray runtime started" not in log.read_text():
        if cluster.poll() is not None:
            raise RuntimeError(f"ray start failed:\n{log.read_text()}")
        time.sleep(0.2)
    time.sleep(5)  # its agents are still starting
    return cluster, f"127.0.0.1:{port}"


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--repeats", type=int, default=5, help="jobs on each kind of cluster")
    words.add_argument("--workers", type=int, default=2)
    words.add_argument("--processes", action="store_true", help="one job, by process")
    given = words.parse_args()
    times: dict[str, list[dict[str, float]]] = {"starts its own": [], "already running": []}
    with tempfile.TemporaryDirectory(prefix="rb", ignore_cleanup_errors=True) as folder:
        # RAY_TMPDIR: other clusters of this machine are left alone, and not found.
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": folder}
        env = {**os.environ, **own}
        if given.processes:
            write(given.output, processes(Path(folder), given.workers, {**env, "RAY_ADDRESS": "local"}))
            return
        for _ in range(given.repeats + 1):
            times["starts its own"].append(submit(Path(folder), given.workers, {**env, "RAY_ADDRESS": "local"}))
            cluster, address = start_cluster(given.workers, env, Path(folder, "cluster.log"))
            try:
                # The second job of a cluster: its first also waits for the pool of idle workers to fill.
                for _ in range(2):
                    marks = submit(Path(folder), given.workers, {**env, "RAY_ADDRESS": address})
                times["already running"].append(marks)
            finally:
                cluster.terminate()
                cluster.wait()
    rows = []
    for kind, all_marks in times.items():
        counted = all_marks[1:]  # the first warms the disk's cache
        first_step, low, high = spread([marks["first step"] for marks in counted])
        medians = {mark: spread([marks[mark] for marks in counted])[0] for mark in counted[0]}
        rows.append(
            {"cluster": kind, **{f"{mark}, s": value for mark, value in medians.items()}}
            | {"first step, s": first_step, "quartiles, s": f"{low:.1f} to {high:.1f}", "repeats": len(counted)}
        )
    write(given.output, rows)


if __name__ == "__main__":
    main()
