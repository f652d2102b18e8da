"""`python jobs/import.py` as a user meets it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision

import backbone

Run = Callable[..., subprocess.CompletedProcess]


def test_torchvision_weights_become_an_artifact(run_job: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4).eval()
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    out = tmp_path / "artifact"
    done = run_job("import", "--source", "torchvision", "--weights", tmp_path / "resnet18.pth", "--output", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert "net       resnet18, 4 classes, stride in the 3x3\n" in done.stdout
    assert "input     RGB, mean (0.485, 0.456, 0.406)" in done.stdout
    assert f"artifact  {out}" in done.stdout
    net, inputs, block = backbone.load(out)
    x = inputs.normalize(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8))
    with torch.no_grad():
        torch.testing.assert_close(net.classify(x), model(x), rtol=1e-5, atol=1e-5)
    assert block["provenance"]["imported"]["source"] == "torchvision"


def test_what_is_unsaid(run_job: Run) -> None:
    done = run_job("import", "--source", "timm")
    said = "weights: name a file or folder of weights, or with --model give --random true to draw them"
    expected = f"error: {said} (got '')\nerror: output: Field required; give --output\n"
    assert (done.returncode, done.stderr) == (2, expected)
