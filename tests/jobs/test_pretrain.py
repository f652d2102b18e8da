"""`python jobs/pretrain.py` as a user meets it: the quickstart, real formats, kills, and what it says to mistakes."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest

from backbone import load
from backbone.data.synthetic import CLASSES, SyntheticSource
from backbone.training.state import Store
from tests.conftest import Start

ROOT = Path(__file__).parents[2]
DATA = os.environ.get("RAYBONE_TEST_DATA", "")
Run = Callable[..., subprocess.CompletedProcess]

SMALL = (
    "--scaling.num_workers 0 --model.net cifar_resnet --model.depth 8 --model.shortcut A --data.size 32 "
    "--data.crop_pct 1 --data.workers 0 --data.augment.kind cifar --optim.batch 16 --optim.lr_batch 16 --optim.lr 0.05 "
    "--schedule.unit iterations --schedule.total 30 --run.log_every 5 --run.checkpoint_every 5 --run.precise_bn 64 "
    "--compute.precision fp32"
).split()
SYNTHETIC = [*SMALL, "--data.train_images", "200", "--data.val_images", "60"]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A small ImageFolder data set, `train` and `val`, of rendered scenes as PNG."""
    for split, count in (("train", 72), ("val", 24)):
        source = SyntheticSource(0, count, 32, split)
        for i in range(count):
            folder = tmp_path / "images" / split / CLASSES[source.labels[i]]
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{i}.png"), source.image(i)[:, :, ::-1])
    return tmp_path / "images"


def folder_words(folders: Path) -> list[str]:
    return ["--data.source", "imagefolder", "--data.train", str(folders / "train"), "--data.val", str(folders / "val")]


def test_kill_resume_kill_resume_is_bit_exact(tmp_path: Path, run_job: Run, start_job: Start) -> None:
    """kill -9, twice, at no particular moment; the artifact's weights are those of a run left alone."""
    words = [*SYNTHETIC, "--run.storage", str(tmp_path), "--schedule.total", "60"]
    assert run_job("pretrain", *words, "--name", "whole").returncode == 0
    checkpoints = tmp_path / "killed" / "checkpoints"
    for wanted in (10, 35):
        job = start_job("pretrain", *words, "--name", "killed")
        while not (checkpoints / f"step-{wanted:08d}").exists():
            os.kill(job.pid, 0)  # it has not ended
            time.sleep(0.005)
        os.kill(job.pid, signal.SIGKILL)
        assert job.wait(300).returncode == -signal.SIGKILL
    last = run_job("pretrain", *words, "--name", "killed")
    assert re.search(r"resuming at step (3[5-9]|4\d|5\d) of 60", last.stdout), last.stdout
    whole, killed = ((tmp_path / name / "artifact" / "model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed
    again = run_job("pretrain", *words, "--name", "killed")
    assert again.returncode == 0
    assert "is finished" in again.stdout


def test_another_recipe_under_the_name_is_refused(tmp_path: Path, run_job: Run) -> None:
    words = [*SYNTHETIC, "--run.storage", str(tmp_path), "--name", "mine"]
    assert run_job("pretrain", *words, "--schedule.total", "2").returncode == 0
    other = run_job("pretrain", *words, "--schedule.total", "3", "--optim.lr", "0.2")
    assert other.returncode == 2
    assert "optim.lr: the run has 0.05, this recipe 0.2" in other.stderr
    assert "schedule.total: the run has 2.0, this recipe 3.0" in other.stderr


def test_dry_run_writes_nothing(tmp_path: Path, run_job: Run) -> None:
    done = run_job("pretrain", *SYNTHETIC, "--run.storage", str(tmp_path), "--dry-run")
    assert done.returncode == 0
    assert "30 of 16 images" in done.stdout
    assert not list(tmp_path.iterdir())


def break_image(folders: Path) -> str:
    file = sorted((folders / "train").rglob("*.png"))[5]
    file.write_bytes(file.read_bytes()[:40])
    return str(file)


def test_a_broken_image_stops_or_is_skipped_as_the_recipe_says(tmp_path: Path, folders: Path, run_job: Run) -> None:
    name = break_image(folders)
    (folders / "val" / "notes.txt").write_text("not read, and said")
    words = [*SMALL, *folder_words(folders), "--run.storage", str(tmp_path / "runs")]
    stopped = run_job("pretrain", *words, "--name", "stops")
    assert stopped.returncode == 2
    assert name in stopped.stderr
    assert "Traceback" not in stopped.stderr
    skipped = run_job("pretrain", *words, "--name", "skips", "--data.on_bad", "skip", "--data.max_bad", "1")
    assert skipped.returncode == 0, skipped.stderr
    assert f"data.val: 1 files that are no images by their names ({folders}/val/notes.txt)" in skipped.stdout
    bad = load(tmp_path / "runs" / "skips" / "artifact")[2]["provenance"]["bad_images"]
    assert len(bad) == 1
    assert name in next(iter(bad))


def test_ranks_of_torchrun_all_end_well(tmp_path: Path) -> None:
    """The second has nothing to write, and reads the artifact for its last line: it must be there by then."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = [*SYNTHETIC, "--run.storage", str(tmp_path), "--name", "ranks", "--schedule.total", "2"]
    ranks = [
        subprocess.Popen(
            [sys.executable, "jobs/pretrain.py", *words, "--scaling.num_workers", "0"],
            cwd=ROOT,
            env={**os.environ, "RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=300)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], said
    assert all(f"artifact  {tmp_path}/ranks/artifact" in text for text in said)


@pytest.mark.parametrize(
    ("workers", "loaders"), [(0, 1), pytest.param(2, 0, marks=[pytest.mark.ray, pytest.mark.slow])]
)
def test_the_last_word_of_a_stopped_run_is_how_to_go_on(tmp_path: Path, workers: int, loaders: int) -> None:
    """Whatever its workers still send, and whatever Ray has to say of them. No checkpoint was due for long: it is the
    one of the stop. Without Ray the signal is for the whole group of processes, as Ctrl-C at a terminal is."""
    words = [
        *SYNTHETIC,
        "--run.eval_every",
        "1000",
        "--scaling.notice_every",
        "0.1",
        "--run.storage",
        str(tmp_path),
        "--name",
        "stopped",
        "--schedule.total",
        "100000",
    ]
    process = subprocess.Popen(
        [
            sys.executable,
            "jobs/pretrain.py",
            *words,
            "--scaling.num_workers",
            str(workers),
            "--data.workers",
            str(loaders),
        ],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": "local"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    assert any("step 10/" in line for line in process.stdout)
    if workers:
        process.send_signal(signal.SIGTERM)
    else:
        os.killpg(process.pid, signal.SIGTERM)
    *before, last = process.stdout.read().splitlines()
    assert process.wait() == 143
    assert re.fullmatch(r"stopped at step \d+; submit again to go on", last), last
    assert all("step" in line for line in before), before
    log = (tmp_path / "stopped" / "log.txt").read_text()
    assert log.endswith(f"{last}\n")
    assert "Traceback" not in log
    assert not (tmp_path / "stopped" / "lease.json").exists()
    assert Store(f"{tmp_path}/stopped/checkpoints").steps()[-1] >= 10


@pytest.mark.slow
@pytest.mark.ray
def test_a_cluster_that_is_gone_or_a_strangers_does_not_hold_it_up(tmp_path: Path, run_job: Run) -> None:
    """Ray finds the last cluster of a machine by a file; what crashed leaves it behind."""
    with tempfile.TemporaryDirectory(prefix="rb", ignore_cleanup_errors=True) as folder, socket.socket() as other:
        recorded = Path(folder, "ray", "ray_current_cluster")
        recorded.parent.mkdir()
        words = [
            *SYNTHETIC,
            "--run.storage",
            str(tmp_path / "runs"),
            "--schedule.total",
            "2",
            "--scaling.num_workers",
            "1",
        ]
        env = {"RAY_TMPDIR": folder, "HOME": str(tmp_path), "RAY_ADDRESS": ""}
        other.bind(("127.0.0.1", 0))
        recorded.write_text(f"127.0.0.1:{other.getsockname()[1]}")
        other.listen()
        refused = run_job("pretrain", *words, **env)  # somebody answers there, and this user has no token
        assert refused.returncode == 2
        assert "wants a token that is not yours" in refused.stderr
        other.close()
        done = run_job("pretrain", *words, **env)
        assert done.returncode == 0, done.stderr
        assert "is gone; starting another" in done.stdout


def missing(folders: Path) -> list[str]:
    return [*folder_words(folders), "--data.train", str(folders / "nowhere")]


def empty(folders: Path) -> list[str]:
    for file in (folders / "val").rglob("*.png"):
        file.unlink()
    return folder_words(folders)


def other_classes(folders: Path) -> list[str]:
    shutil.move(folders / "val" / "disc-dots", folders / "val" / "zebra")
    return folder_words(folders)


def unwritable(folders: Path) -> list[str]:
    (folders / "file").write_text("")
    return ["--run.storage", str(folders / "file")]


MISTAKES = [
    pytest.param(missing, "nowhere", id="missing data"),
    pytest.param(empty, "val", id="empty data"),
    pytest.param(other_classes, "zebra", id="splits whose classes differ"),
    pytest.param(unwritable, "cannot be written", id="unwritable storage"),
    pytest.param(lambda f: ["--optim.batch", "15", "--scaling.num_workers", "2"], "15 does not split", id="batch"),
    pytest.param(lambda f: ["--model.net", "resnext"], "model.net: Input should be", id="unknown net"),
    pytest.param(lambda f: ["--model.dept", "8"], "perhaps you meant --model.depth", id="unknown key"),
]


@pytest.mark.parametrize(("mistake", "complaint"), MISTAKES)
def test_mistakes_are_named_before_workers_start(
    tmp_path: Path, folders: Path, run_job: Run, mistake: Callable, complaint: str
) -> None:
    done = run_job("pretrain", *SMALL, "--run.storage", str(tmp_path / "runs"), *mistake(folders))
    assert done.returncode == 2, done.stdout + done.stderr
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert "step" not in done.stdout


@pytest.mark.ray
def test_workers_that_do_not_fit_are_named_before_they_start(
    tmp_path: Path, run_job: Run, joined: dict[str, str]
) -> None:
    scaling = ["--scaling.num_workers", "2", "--scaling.cpus_per_worker", "512"]
    words = [*SMALL, "--run.storage", str(tmp_path / "runs"), *scaling]
    done = run_job("pretrain", *words, **joined)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "2 workers of 512 CPU each do not fit on the cluster" in done.stderr
    assert "Traceback" not in done.stderr
    assert "step" not in done.stdout


@pytest.mark.data
@pytest.mark.skipif(not DATA, reason="RAYBONE_TEST_DATA names no folder of real images")
@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_real_images_of_both_formats_train(tmp_path: Path, run_job: Run, kind: str) -> None:
    places = {
        "webdataset": ("imagenette128/imagenette128-train-*.tar", "imagenette128/imagenette128-val-*.tar"),
        "parquet": ("cifar10/train-*.parquet", "cifar10/test-*.parquet"),
    }[kind]
    train, val = (f"{DATA}/{place}" for place in places)
    words = ["--data.source", kind, "--data.train", train, "--data.val", val, "--data.cache", str(tmp_path / "cache")]
    done = run_job("pretrain", *SMALL, *words, "--run.storage", str(tmp_path / "runs"), "--name", kind)
    assert done.returncode == 0, done.stderr
    about = load(tmp_path / "runs" / kind / "artifact")[2]
    assert about["provenance"]["metrics"]["val_images"] == {"webdataset": 3925, "parquet": 10000}[kind]
