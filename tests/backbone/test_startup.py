"""What a run imports before its first step: seconds of a core in the driver, and again in each worker."""

import subprocess
import sys

UNUSED = {"albumentations", "matplotlib", "pandas", "pyarrow", "tensorboard", "torchvision", "triton", "torch._dynamo"}


def test_pretraining_imports_nothing_that_only_some_runs_use() -> None:
    """Parquet, pictures, counting multiply-adds; Ray, which a run without it does not need."""
    code = "import sys, backbone.job, backbone.training.pretrain; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    imported = set(done.stdout.split())
    assert "torch" in imported
    assert not imported & (UNUSED | {"ray"})
