"""A sweep as a user runs it: stopped trials, a failed one, killed and continued, and its best trained again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.tune import ExperimentAnalysis

from backbone.artifact import load
from backbone.storage import filesystem
from backbone.sweep.record import Record, read
from tests.conftest import ROOT, TINY
from tests.object_store import Bucket

pytestmark = pytest.mark.ray

SWEEP: dict[str, Any] = {
    "name": "s",
    "base_with": {
        "scaling": {"num_workers": 1},
        "schedule": {"total": 30},  # three epochs
        "run": {"checkpoint_every": 2, "log_every": 2},
    },
    # 1e30 is beyond all measure: its loss is soon not finite. After an epoch 0.05 is better than 0.1, so that one of
    # them goes on whenever the driver is killed, and 0.02 is the worst.
    "space": {"optim.lr": {"choice": [0.1, 1e30, 0.05, 0.02]}},
    "search": "grid",
    "objectives": ["val_error", "macs", "latency_ms"],
    "scheduler": {"kind": "asha", "grace": 1, "reduction": 2},
    "budget": {"trials": 0},
}


def start(folder: Path) -> subprocess.Popen:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    tree = {**SWEEP, "base": str(folder / "tiny.yaml"), "storage": str(folder)}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(tree))
    return subprocess.Popen(
        [sys.executable, "jobs/sweep.py", "--config", str(folder / "sweep.yaml")],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": "local"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(folder: Path, ready: Callable[[Record], Any], process: subprocess.Popen) -> Record:
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "s" / "sweep.json").exists() and ready(read(folder / "s")):
            return read(folder / "s")
        time.sleep(0.1)
    raise AssertionError(process.communicate()[0] if process.poll() is not None else read(folder / "s"))


def one_ended_and_one_on_its_way(record: Record) -> bool:
    return bool(record.of_state("finished", "stopped") and [t for t in record.of_state("running") if t.history])


@pytest.mark.timeout(1200)
def test_killed_and_continued(tmp_path: Path) -> None:
    """No trial is lost and none repeated; ASHA stops, a failure is told, and what Tune saw is what is written down."""
    process = start(tmp_path)
    killed = wait_for(tmp_path, one_ended_and_one_on_its_way, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    ended = {t.id: (t.ended, t.history) for t in killed.trials if t.ended}
    under_way = [t for t in killed.of_state("running") if t.history]

    process = start(tmp_path)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    record = read(tmp_path / "s")
    assert record.state == "finished"
    assert sorted(t.point["optim.lr"] for t in record.trials) == [0.02, 0.05, 0.1, 1e30]
    states = {t.point["optim.lr"]: t.state for t in record.trials}
    assert states.pop(1e30) == "failed"
    assert states.pop(0.02) == "stopped"
    assert set(states.values()) <= {"finished", "stopped"}
    for trial_id, before in ended.items():
        trial = record.trial(trial_id)
        assert (trial.ended, trial.history) == before
    for trial in under_way:
        after = record.trial(trial.id)
        assert after.history[: len(trial.history)] == trial.history
        log = Path(record.place(after), "log.txt").read_text()
        if log.count("1 worker(s) on cpu") > 1:  # else its last step was done when the driver was killed
            assert "resuming at step" in log
    (failed,) = record.of_state("failed")
    assert "is not finite at step" in failed.why
    assert "FloatingPointError" in Path(record.place(failed), "log.txt").read_text()

    for trial in record.of_state("stopped"):
        assert trial.share(trial.history[-1]) == pytest.approx(record.rungs[trial.rung])
        at_rung = [t.history[trial.rung]["val_error"] for t in record.trials if len(t.history) > trial.rung]
        assert trial.history[-1]["val_error"] > min(at_rung)
        assert not Path(record.place(trial), "checkpoints").exists()
    for trial in record.of_state("finished"):
        assert trial.epoch == trial.epochs == 3
        assert set(trial.values) == {"params", "macs", "val_error", "latency_ms", "device_hours"}
        _, _, about = load(Path(record.place(trial), "artifact"))
        assert about["provenance"]["metrics"]["val_error"] == trial.values["val_error"]
    best = record.trial(record.best)
    assert best.values["val_error"] == min(t.values["val_error"] for t in record.of_state("finished"))

    last = ExperimentAnalysis(str(max((tmp_path / "s" / "tune").iterdir())))
    for one in last.trials:
        table = last.trial_dataframes[one.trial_id]
        if "val_error" in table:
            seen = table["val_error"].dropna().tolist()
            assert seen == [row["val_error"] for row in record.trial(str(one)).history][-len(seen) :]

    page = (tmp_path / "s" / "report.html").read_text()
    assert all(trial.id in page for trial in record.trials)


def test_a_sweep_that_the_cluster_cannot_hold_is_refused(tmp_path: Path, run_job: Any, joined: dict[str, str]) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    tree = {**SWEEP, "base": str(tmp_path / "tiny.yaml"), "storage": str(tmp_path)}
    tree["base_with"] = {"scaling": {"num_workers": 16, "cpus_per_worker": 64}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree))
    done = run_job("sweep", "--config", str(tmp_path / "sweep.yaml"), **joined)
    assert done.returncode == 2, done.stderr
    assert "error: scaling: 16 workers of 64 CPU each do not fit on the cluster, which has room for 0" in done.stderr


def test_a_sweep_in_a_bucket(tmp_path: Path, run_job: Any, s3: Bucket) -> None:
    """Record, report, Tune's own state and the best trial's artifact are in the bucket; nothing of it is local."""
    storage = f"s3a{s3.url.removeprefix('s3')}/runs"  # a name for s3 that Ray does not know
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    tree: dict[str, Any] = {**SWEEP, "base": str(tmp_path / "tiny.yaml"), "storage": storage}
    tree |= {"space": {"optim.lr": {"choice": [0.05, 0.02]}}, "scheduler": {"kind": "none"}}
    tree["base_with"] = {**SWEEP["base_with"], "schedule": {"total": 10}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree))
    before = {*tmp_path.iterdir()}
    done = run_job("sweep", "--config", str(tmp_path / "sweep.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {*tmp_path.iterdir()} == before
    record = read(f"{storage}/s")
    assert [trial.state for trial in record.trials] == ["finished", "finished"]
    _, _, about = load(f"{record.place(record.trial(record.best))}/artifact")
    assert about["provenance"]["metrics"]["val_error"] == min(trial.values["val_error"] for trial in record.trials)
    fs, path = filesystem(f"{storage}/s")
    names = {Path(entry).name for entry in fs.find(path)}
    assert {"sweep.json", "report.html", "best.yaml"} <= names
    assert any("/tune/" in entry for entry in fs.find(path))
