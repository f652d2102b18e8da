"""How a sweep grows with its trials: what the driver and the page need, on a sweep that is really run.

    python benchmarks/sweep_size.py --trials 500

Trials of a net of 8 layers on 64 images of 32 px: next to nothing is trained, so that what is left is the sweep's own.
While it runs: trials that have ended, the driver's memory, sweep.json's size. At its end, of the record's first trials,
as many as each row names: what it takes to read it, to write it, to rank it, to propose one more, to build the report,
and to draw the live page's views once more.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from results import parser, write
from streamlit.testing.v1 import AppTest

from backbone.sweep import analysis
from backbone.sweep.options import Sweep
from backbone.sweep.record import FILE, Record, pareto, read
from backbone.sweep.search import Search
from backbone.sweep.view import app, page, panels

ROOT = Path(__file__).parents[1]
EVERY = 5.0
"""Seconds between two looks at the driver."""

BASE: dict[str, Any] = {
    "model": {"net": "cifar_resnet", "depth": 8, "shortcut": "A"},
    "data": {"train_images": 64, "val_images": 64, "size": 32, "workers": 0, "augment": {"kind": "cifar"}},
    "optim": {"batch": 32},
    "schedule": {"kind": "cosine", "total": 4},
    "compute": {"precision": "fp32"},
    "run": {"log_every": 2, "eval_every": 1, "precise_bn": 0, "checkpoint_every": 0},
}
SPACE = {
    "optim.lr": {"loguniform": [0.001, 0.5]},
    "optim.weight_decay": {"loguniform": [1e-6, 1e-2]},
    "model.depth": {"choice": [8, 14]},
    "model.shortcut": {"choice": ["none", "A"]},
}


def make_sweep(folder: Path, trials: int) -> Path:
    """A sweep's recipe and its base in `folder`."""
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    tree: dict[str, Any] = {"name": "size", "base": str(folder / "base.yaml"), "storage": str(folder), "space": SPACE}
    tree |= {"objectives": ["val_error", "macs"], "search": "tpe", "budget": {"trials": trials}}
    tree |= {"scheduler": {"kind": "asha", "grace": 1, "reduction": 3}}
    recipe = folder / "sweep.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    return recipe


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def driver_of(job: subprocess.Popen[bytes]) -> int | None:
    """The process that the job has its sweep done by."""
    for pid in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split():
        if b"sweep.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return int(pid)
    return None


def watched(recipe: Path, folder: Path, minutes: float) -> list[dict[str, Any]]:
    """Run the sweep; {"s", "ended", "driver, MB", "sweep.json, KB"} every few seconds."""
    seen: list[dict[str, Any]] = []
    began = time.monotonic()
    with (folder / "log.txt").open("wb") as log:
        words = [sys.executable, str(ROOT / "jobs" / "sweep.py"), "--config", str(recipe)]
        job = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
        while job.poll() is None:
            time.sleep(EVERY)
            file = folder / "size" / FILE
            driver = driver_of(job)
            if driver is None or not file.exists():
                continue
            text = file.read_text()
            ended = sum(trial["ended"] > 0 for trial in json.loads(text)["trials"])
            row = {"s": time.monotonic() - began, "ended": ended}
            try:
                row |= {"driver, MB": resident_mb(driver), "sweep.json, KB": len(text) / 1e3}
            except (OSError, StopIteration):  # it ended meanwhile
                continue
            if not seen or ended >= seen[-1]["ended"] + 10:
                print(row, flush=True)
                seen.append(row)
            if time.monotonic() - began > 60 * minutes:
                job.send_signal(signal.SIGTERM)  # SIGINT is ignored by what a shell put in the background
                job.wait(120)
    return seen


def seconds(do: Callable[[], Any]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def refreshes(url: str) -> dict[str, float]:
    """Seconds of the live page from one reading to the next, by view."""
    before, sys.argv = sys.argv, ["app.py", url]
    live = AppTest.from_file(str(app.__file__), default_timeout=600).run()
    found = {}
    for view in ("trials", "compare", *(panel.key for panel in panels.panels(read(url)))):
        live.button_group[0].set_value(view).run()
        found[view] = min(seconds(live.run) for _ in range(2))
        if live.exception:
            raise RuntimeError(live.exception[0].message)
    sys.argv = before
    return found


def of_first(whole: Record, trials: int, folder: Path) -> dict[str, Any]:
    """What a record of the first so many trials costs."""
    record = read(whole.url)
    record.trials = record.trials[:trials]
    known = {trial.id for trial in record.trials}
    done = record.of_state("finished")
    record.best = min(done, key=lambda trial: trial.values["val_error"]).id
    record.pareto = [name for name in record.pareto if name in known]
    record.url = str(folder / f"of{trials}")
    (folder / f"of{trials}").mkdir()
    (folder / f"of{trials}" / "trials").symlink_to(Path(whole.url) / "trials")
    record.write()
    sweep = Sweep.model_validate(whole.sweep)
    costs = [[trial.values["val_error"], trial.values["macs"]] for trial in done]
    search = Search(
        sweep.model_copy(update={"budget": sweep.budget.model_copy(update={"trials": 10_000})}), record.trials
    )
    text = page.report(record)
    views = refreshes(record.url)
    return {
        "trials": len(record.trials),
        "finished": len(done),
        "sweep.json, KB": (folder / f"of{trials}" / FILE).stat().st_size / 1e3,
        "read, ms": 1e3 * min(seconds(lambda: read(record.url)) for _ in range(3)),
        "written, ms": 1e3 * min(seconds(record.write) for _ in range(3)),
        "Pareto front, ms": 1e3
        * seconds(lambda: pareto([(t.id, c) for t, c in zip(done, costs, strict=True)], ["min"] * 2)),
        "importance, ms": 1e3 * seconds(lambda: analysis.importance(done, record.objectives[0])),
        "next point, ms": 1e3 * seconds(search.next),
        "report, s": seconds(lambda: page.report(record)),
        "report, MB": len(text.encode()) / 1e6,
        "live page's table, s": views.pop("trials"),
        "its slowest other view, s": max(views.values()),
        "which": max(views, key=views.__getitem__),
    }


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--trials", type=int, default=500)
    words.add_argument(
        "--minutes", type=float, default=60, help="after that the sweep is stopped, and what is there measured"
    )
    words.add_argument(
        "--counts", type=int, nargs="+", default=[50, 100, 200, 500], help="of trials, to measure the page with"
    )
    given = words.parse_args()
    with tempfile.TemporaryDirectory(prefix="rb", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        seen = watched(make_sweep(folder, given.trials), folder, given.minutes)
        print("\n".join((folder / "log.txt").read_text().splitlines()[-12:]))
        whole = read(str(folder / "size"))
        ended = [trial.state for trial in whole.trials]
        print(f"{len(ended)} trials in {whole.seconds:.0f} s: {sorted((s, ended.count(s)) for s in set(ended))}")
        counts = sorted({min(count, len(ended)) for count in given.counts})
        rows = [of_first(whole, count, folder) for count in counts]
    late = [row for row in seen if row["ended"] >= len(ended) // 10] or seen
    growth = (late[-1]["driver, MB"] - late[0]["driver, MB"]) / max(1, late[-1]["ended"] - late[0]["ended"])
    write(
        given.output,
        rows,
        while_it_ran=seen,
        seconds=whole.seconds,
        places=whole.places,
        states={state: ended.count(state) for state in sorted(set(ended))},
        driver_mb_a_trial=growth,
    )


if __name__ == "__main__":
    main()
