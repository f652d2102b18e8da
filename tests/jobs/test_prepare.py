"""`python jobs/prepare.py` as a user meets it: killed and run again, refused, and on real images."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backbone.data.sources import open_source
from tests.conftest import ROOT

Run = Callable[..., subprocess.CompletedProcess]
REAL = os.environ.get("RAYBONE_TEST_DATA", "")


def make(root: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    for i in range(count):
        path = root / f"class {i % 3}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(path)
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kill_at(words: list[str], output: Path, records: int, timeout: float = 120) -> None:
    """Run the job, and kill its process without a warning once so many shards are done."""
    env = {**os.environ, "RAY_ADDRESS": "local"}
    command = [sys.executable, "jobs/prepare.py", *words]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + timeout
    while len(list(output.glob("*.tar.json"))) < records and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "index.json").exists()
    assert len(list(output.glob("*.tar.json"))) >= records


def killed_twice(run_job: Run, tmp_path: Path, words: list[str], shards: int) -> subprocess.CompletedProcess:
    whole, output = tmp_path / "whole", tmp_path / "out"
    assert run_job("prepare", *words, "--output", whole).returncode == 0
    kill_at([*words, "--output", str(output)], output, shards // 4)
    kill_at([*words, "--output", str(output)], output, shards // 2)
    done = run_job("prepare", *words, "--output", output)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{output}: goes on; verifying" in done.stdout
    assert contents(output) == contents(whole)
    return done


def test_killed_twice_and_resumed(run_job: Run, tmp_path: Path) -> None:
    words = ["--images", str(make(tmp_path / "in", 96)), "--num_workers", "0"]
    words += ["--images_per_shard", "4", "--shorter_side", "200"]
    done = killed_twice(run_job, tmp_path, words, shards=24)
    assert "shards    24 with 96 images" in done.stdout
    assert "      96  reduced\n" in done.stdout
    source = open_source("webdataset", str(tmp_path / "out"))
    assert len(source) == 96
    assert source.classes == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--images", "/nowhere", "--output", "{}/out"], "/nowhere: no such directory"),
        (["--images", "/nowhere"], "output is empty"),
        (["--source", "tfrecord", "--output", "x", "--images", "x"], "source"),
        (["--images", "x", "--output", "y", "--shorter_sid", "3"], "perhaps you meant --shorter_side"),
    ],
)
def test_wrong_usage(run_job: Run, tmp_path: Path, words: list[str], says: str) -> None:
    done = run_job("prepare", *(word.format(tmp_path) for word in words))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.data
@pytest.mark.skipif(not REAL, reason="RAYBONE_TEST_DATA, the folder of real data, is not set")
@pytest.mark.parametrize("format", ["jpeg", "raw"])
def test_real_images_killed_twice(run_job: Run, tmp_path: Path, format: str) -> None:
    words = ["--images", f"{REAL}/imagenet_sample", "--num_workers", "0", "--images_per_shard", "10"]
    killed_twice(run_job, tmp_path, [*words, "--shorter_side", "256", "--format", format], shards=20)
    assert len(open_source("webdataset", str(tmp_path / "out"))) == 200
