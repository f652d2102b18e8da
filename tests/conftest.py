"""Shared by all tests: one thread, one small Ray cluster, a recipe that trains in seconds."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when ray is imported, which some tests do themselves

import pytest

from backbone.cli import validate
from backbone.training.recipe import Recipe

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


@pytest.fixture
def run_job() -> Callable[..., subprocess.CompletedProcess]:
    """`run_job("pretrain", "--config", ...)`: run a job as a user would, in the repository's root; output as text."""

    def run(job: str, *words: str, timeout: float = 550, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, f"jobs/{job}.py", *map(str, words)],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": "local", **env},  # a cluster of its own, not one that happens to run here
            capture_output=True,
            text=True,
            timeout=timeout,
        )

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
    from backbone.cluster import DEFAULTS

    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
    yield ray
    ray.shutdown()
