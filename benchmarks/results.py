"""What every benchmark does with its rows: a Markdown table for people, JSON with the circumstances for the record."""

import argparse
import json
import os
import statistics
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
    host = {"cpu": _cpu(), "cores": os.cpu_count(), "load_1min": os.getloadavg()[0], "threads": torch.get_num_threads()}
    script = Path(sys.argv[0])
    command = " ".join(["python", f"{script.parent.name}/{script.name}", *sys.argv[1:]])
    record = {"command": command, "rows": rows, **more, "host": host, **environment()}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=2) + "\n")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"
