"""What every benchmark does with its rows: a Markdown table for people, JSON with the circumstances for the record."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from backbone.provenance import environment

FOLDER = Path(__file__).parents[1] / "docs" / "results"


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with `--output`."""
    words = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    name = Path(sys.argv[0]).stem
    words.add_argument("--output", type=Path, default=FOLDER / f"{name}.json", help="JSON file to write")
    return words


def spread(values: list[float]) -> tuple[float, float, float]:
    """(median, lower quartile, upper quartile) of at least two values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return median, low, high


def write(output: Path, rows: list[dict[str, Any]], **more: Any) -> None:
    """Print `rows` (one form, numbers or text) and `save` them."""
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    save(output, rows, **more)


def save(output: Path, rows: list[dict[str, Any]], **more: Any) -> None:
    """Write `rows` with command, versions, hardware, date, load and `more`: also before the last is there."""
    host = {"cpu": cpu(), "load_1min": os.getloadavg()[0], "threads": torch.get_num_threads()}
    script = Path(sys.argv[0])
    command = " ".join(["python", f"{script.parent.name}/{script.name}", *sys.argv[1:]])
    record = {"command": command, "rows": rows, **more, "host": host, **environment()}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=2) + "\n")


def cpu() -> dict[str, Any]:
    """What computes here, as `lscpu` and torch name it: a hypervisor's "AMD EPYC" alone says too little."""
    try:
        told = subprocess.run(["lscpu"], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}).stdout
    except OSError:  # not on Linux
        told = ""
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in told.splitlines())}
    flags = said.get("Flags", "").split()
    return {
        "model": said.get("Model name") or platform.processor() or platform.machine(),
        "vendor, family, model, stepping": " ".join(
            said.get(name, "?") for name in ("Vendor ID", "CPU family", "Model", "Stepping")
        ),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),  # what torch's kernels are chosen for
        "bf16": [name for name in ("avx512_bf16", "amx_bf16", "amx_tile") if name in flags],
        "caches": {name: said[name] for name in ("L1d cache", "L2 cache", "L3 cache") if name in said},
    }
