"""A signal to the whole group of processes, as a Ctrl-C or `timeout` sends it, leaves the loaders at work."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = """
import os, signal, sys, time
from torch.utils.data import Dataset
from backbone.data.batches import make_loader

class Numbers(Dataset):
    def __len__(self):
        return 40
    def __getitem__(self, i):
        return i, os.getpid()

if __name__ == "__main__":
    signum = int(sys.argv[1])
    came = []
    signal.signal(signum, lambda *_: came.append(signum))
    batches = iter(make_loader(Numbers(), 2, batch_size=1))
    found = next(batches)
    os.killpg(0, signum)
    time.sleep(6)  # torch's loaders look every 5 s whether the process that made them is there
    found += [pair for batch in batches for pair in batch]
    print(came == [signum], [number for number, _ in found] == list(range(40)), len({pid for _, pid in found}))
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_batches_go_on(signum: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script, str(int(signum))],
        cwd=ROOT,
        env={"PATH": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        start_new_session=True,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "True True 2"), done.stderr
