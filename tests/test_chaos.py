"""Trainings over a network that fails, as `benchmarks/chaos.py` plays it: one case, so that it goes on working."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_a_cut_link_changes_no_weight(tmp_path: Path) -> None:
    """Two ranks, each on a host of its own, between which nothing comes for 5 s."""
    asked = "from hosts import why_not; print(why_not())"
    folder = ROOT / "benchmarks"
    reason = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, cwd=folder, check=True)
    if reason.stdout.strip():
        pytest.skip(reason.stdout.strip())
    words = ["--without-ray", "--cases", "link cut for 5 s", "--steps", "60", "--output", str(tmp_path / "chaos.json")]
    done = subprocess.run([sys.executable, folder / "chaos.py", *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "chaos.json").read_text())["rows"]
    assert (row["weights"], row["faults"]) == ("equal", 1)
    assert row["packets lost"] > 0
