"""A comparison of jobs/gains.py without Ray: each run a process of its own, `--parallel` of them at a time.

The runs and the report are those that jobs/gains.py makes. After `--minutes` what runs is stopped, and the report is of
what is finished; the same command goes on. Fine-tunings of the first seed, and all those of rows that
are not pretrained here, come before those of the next, and rows from scratch, the longest, before the others of their
recipe, so that a broken off call leaves a comparison of all rows.
"""

import argparse
import threading
from pathlib import Path

from processes import Processes, recipes, tasks_of

from backbone.cli import read_yaml
from backbone.parallel import run_all
from detection.gains import Plan, check, plan
from detection.gains_recipe import Gains
from detection.report.collect import write_report


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--config", type=Path, required=True, help="recipe of jobs/gains.py")
    words.add_argument("--parallel", type=int, default=2, help="processes at a time")
    words.add_argument("--minutes", type=float, help="stop after so many")
    words.add_argument("--use-gpu", action="store_true", help="all processes share the one GPU")
    args = words.parse_args()

    alone = {"num_workers": 0, "use_gpu": args.use_gpu}
    tree = read_yaml(str(args.config))
    for section in ("pretrain_with", "finetune_with"):
        tree[section] = {**tree.get(section, {}), "scaling": alone}
    gains = Gains.model_validate(tree)
    todo = in_turn(plan(gains), list(gains.blocks))
    check(todo)
    cost = Processes(Path(gains.storage) / gains.name)
    if args.minutes:
        bound = threading.Timer(60 * args.minutes, cost.close)
        bound.daemon = True
        bound.start()
    failed, left_out = run_all(tasks_of(todo, cost), args.parallel)
    lost = {name: str(error) for name, error in failed.items()} | dict.fromkeys(left_out, "not begun")
    print(
        f"{len(recipes(todo)) - len(lost)} of {len(recipes(todo))} runs are there; {cost.seconds:.0f} s of processors"
    )
    for name, why in lost.items():
        print(f"{name}: {why}")
    _, told = write_report(
        gains,
        plan(gains),
        f"python benchmarks/gains_by_processes.py --config {args.config.name}",
        {gains.short(name): why for name, why in lost.items()},
    )
    print(told)


def in_turn(todo: Plan, blocks: list[str]) -> Plan:
    """The same runs, those first that a comparison of all rows needs first."""
    seeds = sorted({recipe.seed for recipe in todo.pretrainings.values()})
    pretrained = dict(sorted(todo.pretrainings.items(), key=lambda one: seeds.index(one[0].seed)))

    def turn(one: tuple) -> tuple[int, int, bool, int]:
        key, recipe = one
        made = seeds.index(key.pretraining.seed) if key.pretraining else key.seed
        return key.seed if key.pretraining else 0, blocks.index(key.block), not recipe.from_scratch, made

    return Plan(pretrained, dict(sorted(todo.finetunings.items(), key=turn)))


if __name__ == "__main__":
    main()
