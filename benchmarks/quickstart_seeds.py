"""Whether the quickstart shows the same tomorrow: again with three trainings a row, other seeds and other scenes.

Base seed b pretrains with 3b, 3b+1 and 3b+2, and is judged on scenes of seed b. The runs are the quickstart's own, each
a process of one thread, `--parallel` of them at a time. Finished ones are not done again.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from processes import Processes, recipes, tasks_of
from results import parser, write

from backbone.cli import read_yaml
from backbone.parallel import run_all
from detection.gains import Gains, plan, run
from detection.report.collect import write_report

RECIPE = "jobs/recipes/quickstart/gains.yaml"
TRAININGS = 3  # a row
WITHOUT_RAY = {"scaling": {"num_workers": 0}}
KEPT = ("label", "net", "pretrain", "AP", "AP50", "AP75", "gain", "spread", "independent", "regime")
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--bases", type=int, default=5, help="how many base seeds")
    words.add_argument("--parallel", type=int, default=2, help="processes at a time")
    words.add_argument("--storage", default="runs", help="folder of all runs")
    args = words.parse_args()

    every = [comparison(base, args.storage) for base in range(args.bases)]
    plans = [plan(one) for one in every]
    costs = [Processes(Path(args.storage) / one.name) for one in every]
    tasks = {}
    for todo, cost in zip(plans, costs, strict=True):
        tasks |= tasks_of(todo, cost)
    failed, left_out = run_all(tasks, args.parallel)
    for name, error in failed.items():
        print(f"{name}: {error}")
    rows, found = [], []
    for base, (gains, todo, cost) in enumerate(zip(every, plans, costs, strict=True)):
        if {recipe.run_name for recipe in recipes(todo)} & {*failed, *left_out}:
            continue
        scratch = summary(gains.model_copy(update={"baseline": "from-scratch"}))  # first: the other report stays
        told = summary(gains)
        rows.append(line(base, told, scratch, cost.seconds))
        told_of = [{key: row[key] for key in KEPT} for row in told["rows"]]
        found.append({"base seed": base, "processor seconds of this call": cost.seconds, "rows": told_of})
    if not rows:
        raise SystemExit("no base seed has all its runs")
    limits = {name: os.environ[name] for name in LIMITS if name in os.environ}
    write(
        args.output,
        rows,
        capability=torch.backends.cpu.get_cpu_capability(),
        limits=limits,
        parallel=args.parallel,
        comparisons=found,
    )


def comparison(base: int, storage: str) -> Gains:
    """The quickstart with the seeds and scenes of a base seed."""
    tree = read_yaml(RECIPE)
    others = [3 * base + i for i in range(TRAININGS)]
    for row in tree["rows"].values():
        if "scratch" in row:
            row["seeds"] = others
    changed = {
        "name": f"quickstart-base{base}",
        "storage": storage,
        "pretrain_seeds": others,
        "pretrain_with": WITHOUT_RAY,
        "finetune_with": {**WITHOUT_RAY, "data": {"seed": base}},
    }
    return Gains.model_validate({**tree, **changed})


def summary(gains: Gains) -> dict[str, Any]:
    """What the comparison's own report says."""
    todo, failed = run(gains)  # finds everything finished
    folder, _ = write_report(gains, todo, f"python benchmarks/quickstart_seeds.py --storage {gains.storage}", failed)
    return json.loads((Path(folder) / "report.json").read_text())


def line(base: int, told: dict[str, Any], scratch: dict[str, Any], seconds: float) -> dict[str, Any]:
    """A row of the table; `scratch` is the same report with the net from scratch as its baseline."""
    shown: dict[str, Any] = {"base seed": base, "processor seconds of this call": round(seconds)}
    for row in told["rows"]:
        shown[row["label"]] = f"{100 * row['AP']['value']:.1f}"
    for name, report in (("plain", told), ("from-scratch", scratch)):
        joint = next(row for row in report["rows"] if row["label"] == "residual")["gain"]["AP"]["absolute"]["joint"]
        shown[f"residual over {name}"] = f"{100 * joint['low']:+.1f} to {100 * joint['high']:+.1f}"
    return shown


if __name__ == "__main__":
    main()
