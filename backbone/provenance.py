"""Where and with what something was made."""

import datetime
import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torchvision", "numpy", "ray", "albumentations")


def environment() -> dict[str, Any]:
    """Versions, our own code, hardware and date (UTC)."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "versions": versions,
        **code(),
        "hardware": hardware(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@functools.cache
def code() -> dict[str, str | None]:
    """What this process runs: the git revision of our own checkout, and the SHA-256 of our packages' files.

    Where we do not lie in a checkout of our own (installed, in an image, or in the copy that a submitted job runs in)
    the revision is what RAYBONE_REVISION says. None without that, and without git. The hash is there always, and the
    same for the same code. Asked for before training, so that what changes in the checkout meanwhile is not taken for
    what ran.
    """
    sha = hashlib.sha256()
    for path in sorted(path for package in ("backbone", "detection") for path in (ROOT / package).rglob("*.py")):
        sha.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return {"git": _revision(ROOT), "code_sha256": sha.hexdigest()}


def _revision(root: Path) -> str | None:
    """The commit of the checkout whose top is `root`, with -dirty where files differ; any other folder's is told."""
    if not (root / ".git").exists():  # a folder inside somebody's repository has that one's revision, not ours
        return os.environ.get("RAYBONE_REVISION") or None
    words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def hardware() -> str:
    """The GPU this process computes on, else its kind of CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
