"""`raybone JOB` from any folder: the same jobs, the recipes that it brings, and files of the user's own before them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backbone.cli import read_yaml
from backbone.console import commands, recipe_file, typed
from backbone.errors import UserError
from tests.conftest import ROOT

RESIDUAL = ROOT / "jobs/recipes/quickstart/residual.yaml"


def raybone(*words: str, cwd: Path, path: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from backbone.console import main; main()", *words]
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_every_job_is_a_command_with_a_line_of_its_own(tmp_path: Path) -> None:
    found = commands()
    assert set(found) == {path.stem for path in (ROOT / "jobs").glob("*.py")}
    assert all(20 < len(line) < 220 and "\n" not in line for line in found.values())
    shown = raybone("--help", cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert [name for name in found if f"  {name} " not in shown.stdout] == []
    nothing = raybone(cwd=tmp_path)
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (2, "", shown.stdout)


def test_an_unknown_job_is_refused_with_the_near_one(tmp_path: Path) -> None:
    done = raybone("pretrian", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: raybone pretrian: no such job; perhaps you meant raybone pretrain\n"


def test_a_recipe_that_raybone_brings_and_one_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart/residual.yaml", "jobs/recipes/quickstart/residual.yaml", str(RESIDUAL)):
        assert recipe_file(name) == RESIDUAL
    with pytest.raises(UserError, match=r"quickstart/residul.yaml: no such recipe; there is residual.yaml"):
        read_yaml("quickstart/residul.yaml")
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart/residual.yaml").write_text("seed: 7\n")
    assert read_yaml("quickstart/residual.yaml") == {"seed": 7}
    assert read_yaml("jobs/recipes/quickstart/residual.yaml")["name"] == "residual"


def test_installed_beside_the_packages(tmp_path: Path) -> None:
    """As the wheel lays it out, with no repository near; examples say how it was called."""
    for package in ("backbone", "detection"):
        shutil.copytree(ROOT / package, tmp_path / "site" / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "jobs", tmp_path / "site/raybone/jobs")
    words = ["pretrain", "--config", "quickstart/residual.yaml", "--optim.lr", "-1"]
    done = raybone(*words, cwd=tmp_path, path=tmp_path / "site")
    assert done.returncode == 2
    assert done.stderr == "error: command line: optim.lr: Input should be greater than 0 (got '-1')\n"
    done = raybone("gains", cwd=tmp_path, path=tmp_path / "site")
    assert "\n  raybone gains --config quickstart/gains.yaml\n" in done.stderr
    assert "jobs/" not in done.stderr


def test_commands_are_said_as_they_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "python jobs/gains.py --config jobs/recipes/quickstart/gains.yaml"
    assert typed(command) == command
    monkeypatch.setenv("RAYBONE_CONSOLE", "1")
    assert typed(command) == "raybone gains --config quickstart/gains.yaml"
