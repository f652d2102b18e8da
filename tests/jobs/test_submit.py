"""`ray start --head` and `ray job submit`, with token authentication, as the README says."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backbone.artifact import load
from backbone.sweep.record import read

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A head node of its own, ports and token included: (dashboard address, environment of its users)."""
    home = tmp_path_factory.mktemp("home")
    dashboard = free_port()
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    # The entrypoint's `python` is found on the PATH of the process that started the cluster.
    env |= {"RAY_AUTH_MODE": "token", "HOME": str(home), "PATH": f"{BIN}:{env['PATH']}", "RAY_worker_niceness": "0"}
    env["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="rb")  # short, for sockets; and no trace of this cluster in /tmp/ray
    subprocess.run(["ray", "get-auth-token", "--generate"], env=env, check=True, capture_output=True)
    ports = {"port": free_port(), "dashboard-port": dashboard, "dashboard-agent-listen-port": free_port()}
    words = [f"--{name}={port}" for name, port in ports.items()]
    words += ["--dashboard-host=127.0.0.1", "--num-cpus=2", "--object-store-memory=200000000", "--block"]
    with (home / "head.log").open("w") as log:
        process = subprocess.Popen(["ray", "start", "--head", *words], env=env, stdout=log, stderr=log)
        deadline = time.monotonic() + 300
        while "Ray runtime started" not in (home / "head.log").read_text():
            assert time.monotonic() < deadline, (home / "head.log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{dashboard}", env
        process.send_signal(signal.SIGTERM)
        process.wait(300)
    shutil.rmtree(env["RAY_TMPDIR"], ignore_errors=True)


def test_submit_with_a_token(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, env = head
    submit = ["ray", "job", "submit", "--address", address, "--working-dir", "."]
    job = "python jobs/pretrain.py --config jobs/recipes/quickstart/residual.yaml --name submitted".split()
    job += ["--scaling.num_workers", "2", "--schedule.total", "0.1"]
    job += ["--schedule.warmup", "0", "--data.val_images", "64", "--run.log_every", "4", "--run.precise_bn", "128"]
    done = subprocess.run(
        [*submit, "--", *job, "--run.storage", str(tmp_path / "runs")],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 4/7" in done.stdout  # logs follow
    assert "succeeded" in done.stdout
    load(tmp_path / "runs" / "submitted" / "artifact")

    packages = list(Path(env["RAY_TMPDIR"], "ray").glob("session_*/runtime_resources/working_dir_files/_ray_pkg_*"))
    uploaded = max(packages, key=lambda path: path.stat().st_mtime)
    assert uploaded.is_dir()
    # what the job compiled there is not what was sent
    files = [file for file in uploaded.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert sum(file.stat().st_size for file in files) < 3 * 2**20  # no data, no .git, no .venv
    assert not {".git", ".venv", "tests"} & {entry.name for entry in uploaded.iterdir()}

    # a mistake of the user's reaches the submitter as one line, before any worker starts
    bad = subprocess.run(
        [*submit, "--", *job[:4], "--data.source", "imagefolder"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert bad.returncode != 0
    assert "data.val: source imagefolder needs it" in bad.stdout + bad.stderr

    stranger = {**env, "RAY_AUTH_TOKEN": "0" * 32}
    refused = subprocess.run([*submit[:5], "--", "true"], cwd=ROOT, env=stranger, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "Invalid authentication token" in refused.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_sweep_is_submitted_likewise(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, env = head
    submit = ["ray", "job", "submit", "--address", address, "--working-dir", ".", "--"]
    job = "python jobs/sweep.py --config jobs/recipes/quickstart/sweep.yaml --budget.trials 1".split()
    job += "--base_with.data.train_images 128 --base_with.data.val_images 64 --base_with.run.precise_bn 64".split()
    relative = subprocess.run([*submit, *job], cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)
    assert "storage 'runs' is relative" in relative.stdout + relative.stderr
    done = subprocess.run(
        [*submit, *job, "--storage", str(tmp_path)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[0000] epoch" in done.stdout  # what happens is seen as it happens
    record = read(tmp_path / "quickstart-sweep")
    assert record.dashboard == address
    assert len(record.of_state("finished")) == 1
    load(Path(record.place(record.trial(record.best)), "artifact"))
    assert (tmp_path / "quickstart-sweep/best.yaml").exists()
