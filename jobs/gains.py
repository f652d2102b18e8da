"""Compare backbones in one detector and write the report, on this machine or on a Ray cluster:

python jobs/gains.py --config jobs/recipes/quickstart/demo.yaml
python jobs/gains.py --config jobs/recipes/quickstart/gains.yaml
python jobs/gains.py --config jobs/recipes/starter/gains.yaml --rows.yours.artifact runs/my-backbone/artifact \\
    --finetune_with.data.train boxes:train --finetune_with.data.val boxes:val
ray job submit --working-dir . -- python jobs/gains.py --config ... --storage /shared/runs
"""

import shlex
import sys
import time

import backbone.begin  # noqa: F401
from backbone.cli import parse, rates_of, run_main
from backbone.console import typed
from backbone.errors import UserError
from backbone.next_steps import after_gains
from detection.gains import Gains, plan, run


def main() -> None:
    words, rates_file = rates_of(sys.argv[1:])
    gains, flags = parse(
        Gains,
        words,
        {"dry_run": "print runs, steps, disk and what will stay unknown, then stop; --rates FILE adds hours"},
        __doc__,
        recipe=True,
    )
    began = time.monotonic()
    if flags["dry_run"]:
        from backbone.training.cost import read_rates
        from detection.forecast import describe

        print(describe(gains, plan(gains), read_rates(rates_file) if rates_file else None))
        return
    todo, failed = run(gains)
    from detection.report.collect import best_backbone, write_report

    folder, markdown = write_report(gains, todo, typed(f"python jobs/gains.py {shlex.join(sys.argv[1:])}"), failed)
    print(markdown)
    print(f"finished in {time.monotonic() - began:.0f} s")
    print(f"report    {folder}/report.html")
    print(after_gains(*best_backbone(gains, todo, folder, failed)), end="")
    if failed:
        raise UserError("\n".join(["the report lacks:", *(f"{name}: {why}" for name, why in failed.items())]))


if __name__ == "__main__":
    run_main(main, "go on")
