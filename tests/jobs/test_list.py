"""`python jobs/list.py` as a user meets it. What it tells: tests/backbone/test_lineage.py."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import backbone
from backbone.training.recipe import Recipe

Run = Callable[..., subprocess.CompletedProcess]


def test_table_json_and_pruning(tiny: Callable[..., Recipe], tmp_path: Path, run_job: Run) -> None:
    runs = tmp_path / "runs"
    backbone.pretrain(tiny({"schedule.total": 8}))
    done = run_job("list", runs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[:3] == ["tiny", "backbone", "finished"]
    (row,) = json.loads(run_job("list", runs, "--json").stdout)
    assert (row["name"], row["state"], row["checkpoints"] > 0) == ("tiny", "finished", True)
    shown = run_job("list", runs, "--prune", "checkpoints")
    assert "1 would go" in shown.stdout
    assert "nothing was removed: add --yes" in shown.stdout
    assert (runs / "tiny" / "checkpoints").exists()
    assert "tiny: removed checkpoints" in run_job("list", runs, "--prune", "checkpoints", "--yes").stdout
    assert not (runs / "tiny" / "checkpoints").exists()


def test_mistakes(tmp_path: Path, run_job: Run) -> None:
    for words, complaint in (
        ([tmp_path, "--yes"], "--yes: removes what --prune names"),
        ([tmp_path, "--older_than", "3", "--prune", "all"], "prune all: may be checkpoints, failed, stopped"),
    ):
        done = run_job("list", *words)
        assert done.returncode == 2
        assert complaint in done.stderr
        assert "Traceback" not in done.stderr
