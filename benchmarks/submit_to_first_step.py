"""Seconds from `python jobs/pretrain.py` to the first training step, through Ray, with two workers.

On a Ray cluster that the job starts itself, and on one that is already running; in turns. Read from the moments at
which the job's lines appear. The net and the images are tiny: what is measured is everything but the training.
"""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import parser, spread, write

ROOT = Path(__file__).parents[1]
RECIPE = """
model: {net: cifar_resnet, depth: 8, shortcut: A}
data: {train_images: 64, val_images: 16, size: 32, workers: 0, augment: {kind: cifar}}
optim: {batch: 16}
schedule: {unit: iterations, total: 2}
run: {log_every: 1, precise_bn: 0}
"""
MARKS = {"Ray dashboard": "Ray reached", " worker(s) on ": "workers ready", "  step 1/": "first step"}
"""What a line of the job's holds -> what has been done when it appears."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def submit(folder: Path, workers: int, env: dict[str, str]) -> dict[str, float]:
    """Seconds from the start of the job to each mark.

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
            if text in line:
                marks.setdefault(mark, time.perf_counter() - began)
    if job.wait() or set(marks) != set(MARKS.values()):
        raise RuntimeError(f"the job failed ({job.returncode}):\n{''.join(output)}")
    # The run's file is the last thing written before workers are asked for.
    return {"imported and checked": (folder / name / "run.json").stat().st_mtime - began_clock, **marks}


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
    given = words.parse_args()
    times: dict[str, list[dict[str, float]]] = {"starts its own": [], "already running": []}
    with tempfile.TemporaryDirectory(prefix="rb", ignore_cleanup_errors=True) as folder:
        # RAY_TMPDIR: other clusters of this machine are left alone, and not found.
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": folder}
        env = {**os.environ, **own}
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
