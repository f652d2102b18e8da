"""`python jobs/export.py` as a user meets it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision

from backbone import artifact
from backbone.inputs import InputConvention
from backbone.nets import build
from backbone.options import NetOptions

Run = Callable[..., subprocess.CompletedProcess]


def test_it_writes_prints_both_sides_and_how_to_load(run_job: Run, tmp_path: Path) -> None:
    out, made = tmp_path / "exported", tmp_path / "a"
    artifact.save(made, build(NetOptions(depth=18), 3), InputConvention(size=64), ("a", "b", "c"), {})
    done = run_job("export", "--artifact", made, "--to", "torchvision", "--output", out)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[-3] for line in lines[1:11]] == ["C2", "C3", "C4", "C5", "logits"] * 2
    assert lines[6].startswith(f"torchvision {torchvision.__version__.partition('+')[0]}")
    assert f"written   {out}: model.pth, preprocessing.json, raybone.json, README.md" in lines
    snippet = done.stdout.rpartition("README.md\n\n")[2]
    names: dict = {}
    exec(snippet, names)
    assert names["model"](torch.zeros(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--license", "mit"], "artifact: Field required; give --artifact\nerror: to: Field required; give --to: "),
        (["--artifact", "a", "--output", "b", "--to", "keras"], "command line: to: Input should be 'torchvision', "),
    ],
)
def test_mistakes_are_named(run_job: Run, words: list[str], says: str) -> None:
    done = run_job("export", *words)
    assert done.returncode == 2
    assert says in done.stderr
