"""How long the demo, or the quickstart, takes from the typed command to its page, imports included, and what it says.

Each time is a process and a folder of its own. Processor time is that of all its threads: on a machine with other work
to do the seconds are the machine's and not the demo's.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from results import parser, write

ROOT = Path(__file__).parents[1]
DEMO = "jobs/recipes/quickstart/demo.yaml"


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--times", type=int, default=3, help="how often")
    words.add_argument("--recipe", default=DEMO, help="of jobs/gains.py")
    args = words.parse_args()
    rows, said = [], None
    for number in range(args.times):
        row, report = once(args.recipe)
        rows.append({"time": number, **row})
        said = said or report
    write(args.output, rows, recipe=args.recipe, report=said)


def once(recipe: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds, processor seconds and load before of one run, and what its report says of each row."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        started = subprocess.Popen(
            [sys.executable, "jobs/gains.py", "--config", recipe, "--storage", folder],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        _, status, used = os.wait4(started.pid, 0)
        seconds = time.monotonic() - began
        if status:
            raise SystemExit(f"python jobs/gains.py --config {recipe} failed; run it to see why")
        (place,) = Path(folder).glob("*/report.json")
        report = json.loads(place.read_text())
    row = {
        "seconds": round(seconds, 1),
        "processor seconds": round(used.ru_utime + used.ru_stime, 1),
        "load before": load,
        "share of two cores": round((used.ru_utime + used.ru_stime) / seconds / 2, 2),
    }
    return row, {one["label"]: {key: one[key] for key in ("pretrain", "AP", "AP50", "gain")} for one in report["rows"]}


if __name__ == "__main__":
    main()
