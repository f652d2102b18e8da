"""Shared by all tests: one thread, one small Ray cluster, a recipe that trains in seconds."""

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
# Processes of Ray Train's that no test looks at, each seconds of a run's start: one for its dashboard, one for nodes
# that are about to be taken away.
os.environ |= {"RAY_TRAIN_ENABLE_STATE_TRACKING": "0", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
os.environ |= {"RAY_worker_niceness": "0"}  # with Ray's 15 workers starve beside any other process, also a test's
os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when ray is imported, which some tests do themselves

import pytest

from backbone.cli import validate
from backbone.training.recipe import Recipe
from tests.object_store import KEYS, Bucket, Proxy, moto

Run = Callable[..., subprocess.CompletedProcess]
ROOT = Path(__file__).parents[1]

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {"net": "cifar_resnet", "depth": 8, "shortcut": "A"},
    "data": {
        "train_images": 160,
        "val_images": 50,
        "size": 32,
        "crop_pct": 1.0,
        "workers": 0,
        "augment": {"kind": "cifar"},
    },
    "optim": {"batch": 16, "lr": 0.05, "lr_batch": 16},
    "schedule": {"kind": "cosine", "unit": "iterations", "total": 24},
    "compute": {"precision": "fp32"},
    "scaling": {"num_workers": 0},
    "run": {"log_every": 5, "checkpoint_every": 4, "precise_bn": 64},
}


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Recipe]:
    """`tiny({"optim.lr": 0.1}, ...)`: a recipe of 24 steps on 160 rendered images, stored under tmp_path/runs."""

    def make(overrides: dict[str, Any] | None = None) -> Recipe:
        tree = {key: dict(value) if isinstance(value, dict) else value for key, value in TINY.items()}
        return validate(Recipe, tree, "tiny", {"run.storage": str(tmp_path / "runs"), **(overrides or {})})

    return make


@pytest.fixture(scope="session")
def job_server() -> Iterator[subprocess.Popen]:
    """See `job_server.py`."""
    words = [sys.executable, str(ROOT / "tests" / "job_server.py")]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield server
        server.kill()


class StartedJob:
    """A job that runs in a process of its own."""

    def __init__(self, server: subprocess.Popen, folder: Path, job: str, words: tuple[Any, ...], env: dict) -> None:
        self.server, self.folder = server, folder
        self.args = ["python", f"jobs/{job}.py", *map(str, words)]
        asked = {
            "path": self.args[1],
            "words": self.args[2:],
            "env": {**os.environ, "RAY_ADDRESS": "local", **env},  # a cluster of its own, not one that runs here
            "cwd": str(ROOT),
            "out": str(folder / "out"),
            "err": str(folder / "err"),
        }
        assert server.stdin
        print(json.dumps(asked), file=server.stdin, flush=True)
        self.pid = int(self._answer())

    def _answer(self) -> str:
        assert self.server.stdout
        return self.server.stdout.readline()

    def wait(self, timeout: float) -> subprocess.CompletedProcess:
        """What became of it. One that has not ended after `timeout` seconds is killed, and is a failure of the test."""
        late = threading.Event()

        def kill() -> None:
            late.set()
            os.kill(self.pid, signal.SIGKILL)

        killer = threading.Timer(timeout, kill)
        killer.start()
        code = int(self._answer())
        killer.cancel()
        out, err = ((self.folder / name).read_text() for name in ("out", "err"))
        assert not late.is_set(), f"did not end within {timeout} s, and was killed by the test; it said: {out}{err}"
        return subprocess.CompletedProcess(self.args, code, out, err)


Start = Callable[..., StartedJob]


@pytest.fixture
def start_job(job_server: subprocess.Popen, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """`start_job("pretrain", "--config", ...)`, as `run_job`; the next one may be started when this one has ended."""

    def start(job: str, *words: Any, **env: str) -> StartedJob:
        return StartedJob(job_server, tmp_path_factory.mktemp("job"), job, words, env)

    return start


@pytest.fixture
def run_job(start_job: Start) -> Run:
    """`run_job("pretrain", "--config", ...)`: run a job as a user would, in the repository's root; output as text."""

    def run(job: str, *words: Any, timeout: float = 550, **env: str) -> subprocess.CompletedProcess:
        return start_job(job, *words, **env).wait(timeout)

    return run


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Nets this small wait for threads longer than they compute, on a loaded machine by far."""
    if "torch" not in sys.modules:  # nothing to hold back, and its import takes seconds
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """One cluster of four CPUs for every test that trains through Ray."""
    from backbone.cluster import DEFAULTS, init

    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import ray

    init(ray, "local", print, num_cpus=4, include_dashboard=False, object_store_memory=200 * 2**20)
    yield ray
    ray.shutdown()


@pytest.fixture
def joined(ray_cluster: Any) -> dict[str, str]:
    """For `run_job(..., **joined)`: the job joins the tests' own cluster."""
    return {"RAY_ADDRESS": ray_cluster.get_runtime_context().gcs_address}


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of an S3 server, see `object_store.py`."""
    with moto() as url:
        yield url


@pytest.fixture(scope="session")
def s3_proxy(s3_server: str) -> Iterator[Proxy]:
    """What stands before the server, and can be told to misbehave."""
    proxy = Proxy(s3_server)
    yield proxy
    proxy.close()


@pytest.fixture
def s3(s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket of its own, reached through a proxy that behaves, and by a client that is made once: it takes long."""
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": s3_proxy.url, "AWS_MAX_ATTEMPTS": "4"}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    from backbone.storage import filesystem

    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    s3_proxy.behave()
    filesystem("s3://x")[0].mkdir(bucket)
    yield Bucket(f"s3://{bucket}", s3_proxy)
    s3_proxy.behave()


@pytest.fixture
def new_s3_client() -> Iterator[Callable[[], None]]:
    """To be called when the variables that a client is made by have changed."""
    from backbone.storage import _s3

    yield _s3.cache_clear
    _s3.cache_clear()
