"""`python jobs/analyse.py` as a user meets it."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from backbone import artifact
from backbone.data.synthetic import CLASSES
from backbone.inputs import InputConvention
from backbone.nets import build
from backbone.options import NetOptions

Run = Callable[..., subprocess.CompletedProcess]


def save(folder: Path, options: NetOptions) -> str:
    torch.manual_seed(0)
    artifact.save(folder, build(options, 12), InputConvention(size=32, crop_pct=1.0), CLASSES, {"steps": 0})
    return str(folder)


def test_figures_and_the_numbers_behind_them(tmp_path: Path, run_job: Run) -> None:
    """The artifact is a net as it begins, so that its gradients are those of the untrained one."""
    url = save(tmp_path / "net", NetOptions(net="cifar_resnet", depth=8, shortcut="A"))
    out = tmp_path / "out"
    words = ["--backbone", url, "--depths", "8", "14", "--images", "8", "--output", out]
    done = run_job("analyse", *words)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == {"analysis.json", "gradients.png", "responses.png", "scaling.png"}
    record = json.loads((out / "analysis.json").read_text())
    names = [(row["name"], row["state"]) for row in record["gradients"]]
    initial = [(f"{kind}{depth}", "at initialisation") for depth in (8, 14) for kind in ("plain", "resnet")]
    assert names == [*initial, ("resnet8", "trained")]
    assert record["gradients"][4]["trained"] == record["responses"][0]["trained"] == "0 steps"
    assert record["gradients"][4]["units"] == record["gradients"][1]["units"]
    assert [len(row["layers"]) for row in record["responses"]] == [7]
    assert [row["scale"] for row in record["scaling"]] == [0.5, 0.9, 1.0, 1.1]
    assert record["scaling"][0]["measured"] == pytest.approx([1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1])
    assert "shortcuts alone 0.0312" in done.stdout
