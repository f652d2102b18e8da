"""jobs/submit.py as a user runs it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.detection.localisation.conftest import write_classifier
from tests.detection.localisation.test_clsloc import CAT, DOG, write_image


def test_two_nets_write_a_file(run_job: Callable[..., subprocess.CompletedProcess], tmp_path: Path) -> None:
    nets = [write_classifier(tmp_path / name, (CAT, DOG)) for name in "ab"]
    for k in range(3):
        write_image(tmp_path / "ILSVRC", f"test/ILSVRC2012_test_0000000{k}", [])
    (tmp_path / "map_clsloc.txt").write_text(f"{DOG} 1 dog\n{CAT} 2 cat\n")
    words = ["--backbone", *nets, "--images", tmp_path / "ILSVRC/Data/CLS-LOC/test", "--protocol", "1-crop"]
    words += ["--synsets", tmp_path / "map_clsloc.txt", "--output", tmp_path / "entry", "--loaders", 0]
    done = run_job("submit", *words)
    assert done.returncode == 0, done.stderr
    assert f"file      {tmp_path}/entry/predictions.txt" in done.stdout
    lines = (tmp_path / "entry/predictions.txt").read_text().splitlines()
    assert len(lines) == 3
    assert {*lines} <= {"1 2", "2 1"}
    (tmp_path / "map_clsloc.txt").write_text(f"{DOG} 1 dog\n")
    missing = run_job("submit", *words)
    assert missing.returncode == 2
    assert f"synsets: lacks 1 of the 2 classes of {nets[0]}: {CAT}" in missing.stderr
