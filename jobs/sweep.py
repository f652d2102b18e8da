"""Search depth and schedule, on this machine or on a Ray cluster:

python jobs/sweep.py --config jobs/recipes/quickstart/sweep.yaml
ray job submit --working-dir . -- python jobs/sweep.py --config ... --storage /shared/runs
"""

import sys
import time

from backbone.cli import fail, parse
from backbone.errors import UserError
from backbone.storage import filesystem, join
from backbone.sweep.options import Sweep
from backbone.sweep.view.wording import amount


def main() -> None:
    sweep, _ = parse(Sweep, sys.argv[1:])
    from backbone.sweep.run import run
    from backbone.sweep.view import page, summary  # from here on torch and Ray are imported, which takes seconds
    from detection import judge

    began = time.monotonic()
    try:
        if sweep.finetune:
            judge.check(sweep)
        record = run(sweep, judge.average_precision if sweep.finetune else None)
        fs, path = filesystem(join(record.url, "report.html"))
        fs.pipe_file(path, page.report(record).encode())
    except (UserError, FloatingPointError) as error:
        fail(error)
    print(summary.headline(record))
    print("Pareto front:")
    for trial in sorted((record.trial(trial_id) for trial_id in record.pareto), key=lambda t: t.values["macs"]):
        costs = ", ".join(
            f"{amount(name, trial.values[name])} {name}" for name in dict.fromkeys([*sweep.objectives, "macs"])
        )
        print(f"  {summary.told(record, trial)}: {costs}")
    print(f"finished in {time.monotonic() - began:.0f} s")
    print(f"report    {record.url}/report.html")
    print(f"train it  python jobs/pretrain.py --config {record.url}/best.yaml")


if __name__ == "__main__":
    main()
