"""The README's main command, as it stands there: from rendered scenes to the report."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from backbone.artifact import load
from backbone.data.synthetic import SyntheticSource
from tests.conftest import ROOT

# All of it takes some six minutes on two quiet cores; a part of it shows that everything works together.
FULL = bool(os.environ.get("RAYBONE_TEST_FULL"))
A_PART = [
    *"--pretrain_seeds 0".split(),
    *"--pretrain_with.schedule.total 1 --pretrain_with.data.train_images 512".split(),
    *"--pretrain_with.data.val_images 256 --pretrain_with.run.precise_bn 128".split(),
    *"--finetune_with.schedule.total 1 --finetune_with.schedule.warmup 0 --finetune_with.data.train_images 64".split(),
    *"--finetune_with.data.val_images 40".split(),
]


def commands() -> list[str]:
    """The demo and the comparison, as the README's first block has them."""
    block = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    return [line for line in block.splitlines() if "jobs/gains.py" in line]


def test_the_readmes_demo_shows_what_was_found(tmp_path: Path) -> None:
    """Also where nothing was found for sure: a page of empty pictures is no demo."""
    command, _ = commands()
    words = [sys.executable, *command.split()[1:], "--storage", str(tmp_path), *A_PART[2:]]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "demo/report.html").read_text()
    assert page.count("its surest is scored below 0.3") + page.count(" 1 of 1 found") + page.count("1 wrong") >= 6


@pytest.mark.ray
@pytest.mark.timeout(1300)
def test_the_readmes_main_command(tmp_path: Path) -> None:
    """A report of what the runs have measured.

    With RAYBONE_TEST_FULL set it runs to the end, and shortcuts and pretraining are worth what their intervals say.
    """
    _, command = commands()
    words = [sys.executable, *command.split()[1:], "--storage", str(tmp_path)]
    words += [] if FULL else A_PART
    # The tests' own cluster is running; it polls its workers oftener than a user's would.
    env = {**os.environ, "RAY_ADDRESS": "local", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[residual] 1 worker(s) on cpu" in done.stdout

    report = json.loads((tmp_path / "quickstart/report.json").read_text())
    rows = {row["label"]: row for row in report["rows"]}
    assert list(rows) == ["plain", "residual", "from-scratch"]
    residual, scratch = rows["residual"], rows["from-scratch"]
    if FULL:
        assert residual["AP"]["joint"]["low"] > scratch["AP"]["joint"]["high"]  # pretraining
        assert residual["gain"]["AP"]["absolute"]["joint"]["low"] > 0  # shortcuts
    for label, row in rows.items():
        folders = sorted(tmp_path.glob(f"quickstart-{label}*-seed?"))
        assert len(folders) == (3 if FULL or label == "from-scratch" else 1)
        found = [json.loads((folder / "results/metrics.json").read_text())["bbox"]["AP"] for folder in folders]
        assert row["AP"]["value"] == pytest.approx(np.mean(found), abs=1e-9)
        for folder in folders:
            assert (folder / "artifact/model.safetensors").stat().st_size > 0
            assert (folder / "curves.png").stat().st_size > 10_000
        assert f"{100 * row['AP']['value']:.1f}" in done.stdout
    page = (tmp_path / "quickstart/report.html").read_text()
    assert page.count("<svg") > 3
    assert "data:image/jpeg" in page

    net, inputs, about = load(tmp_path / "quickstart-residual/artifact")
    source = SyntheticSource(0, 256, inputs.size, "val")
    images = torch.from_numpy(np.stack([source.image(i) for i in range(256)])).permute(0, 3, 1, 2)
    with torch.no_grad():
        right = (net.classify(inputs.normalize(images)).argmax(1).numpy() == source.labels[:256]).mean()
    accuracy = 100 - about["provenance"]["metrics"]["val_error"]
    if FULL:  # after a part of it a net is at chance, 8.3 %, or below, by the processor's rounding
        assert accuracy > 30
    assert abs(100 * right - accuracy) < 10  # on a part of the same images
