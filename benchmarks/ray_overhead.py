"""What Ray Train costs once a run is going: the whole loop in a Ray worker against a bare loop in the same worker.

Both live in one process and take turns, as in `loop_overhead.py`, but here records leave through Ray's queue. Two
processes cannot be compared instead: identical ones differ by several percent, the same all their life. What weighs on
both loops alike, Ray's threads in the worker, is given apart, as the share of a core they use while the loop rests.
"""

import contextlib
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

import loop_overhead
from loop_overhead import CASES, make_recipe
from results import parser, spread, write

from backbone.compute import Scaling
from backbone.training.ray_train import launch
from backbone.training.world import Report, World

EVALUATIONS = 5
REST = 3.0
"""Seconds between evaluations, which in a run are minutes apart."""


def measure(payload: loop_overhead.Steps, world: World, report: Report) -> dict[str, list[float]]:
    """Seconds a step of both loops, turn by turn; of each log and evaluation record; cores used at rest."""
    took: dict[str, list[float]] = {"say": [], "log": [], "evaluation": []}

    def timed(record: dict[str, Any]) -> None:
        began = time.perf_counter()
        report(record)
        took[record["kind"]].append(time.perf_counter() - began)

    seconds = loop_overhead.measure(payload, world, timed)
    metrics = dict.fromkeys(("val_error", "val_top5_error", "val_loss", "val_images", "val_seconds"), 0.0)
    rest = []
    for step in range(EVALUATIONS):
        began, cpu = time.perf_counter(), time.process_time()
        time.sleep(REST)
        rest.append((time.process_time() - cpu) / (time.perf_counter() - began))
        timed({"kind": "evaluation", "step": step, "total": EVALUATIONS, **metrics})
    return {**seconds, "log": took["log"], "evaluation": took["evaluation"], "rest": rest}


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES)[:3])
    words.add_argument("--turns", type=int, default=15, help="turns of each loop")
    words.add_argument("--threads", type=int, default=1)
    given = words.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="rb", ignore_cleanup_errors=True) as folder:
        # A cluster of its own: another one on this machine, alive or dead, is neither used nor disturbed.
        os.environ |= {"RAY_ADDRESS": "local", "RAY_TMPDIR": folder, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        for number, case in enumerate(given.cases):
            net, size, batch, steps = CASES[case]
            recipe = make_recipe(net, batch, steps, given.turns, "fp32", False)
            url = Path(folder, f"run{number}")
            url.mkdir()
            (url / "run.json").touch()  # by which workers check that they see the run's folder
            payload = loop_overhead.Steps(str(url), recipe, size, steps)
            with (url / "log").open("w") as log, contextlib.redirect_stdout(log):
                found = launch(measure, payload, Scaling(num_workers=1, cpus_per_worker=given.threads, max_failures=0))
            ratio, low, high = spread([a / b for a, b in zip(found["loop"], found["bare"], strict=True)])
            rows.append(
                {
                    "net": case,
                    "input": f"{batch} x {size} px fp32",
                    "bare, ms a step": 1e3 * spread(found["bare"])[0],
                    "loop through Ray, ms a step": 1e3 * spread(found["loop"])[0],
                    "overhead, %": 100 * (ratio - 1),
                    "quartiles, %": f"{100 * (low - 1):.2f} to {100 * (high - 1):.2f}",
                    "turns": len(found["loop"]),
                    "log record, ms": 1e3 * spread(found["log"])[0],
                    "evaluation record, ms": 1e3 * spread(found["evaluation"])[0],
                    "Ray's threads, % of a core": 100 * spread(found["rest"])[0],
                }
            )
    write(given.output, rows)


if __name__ == "__main__":
    main()
