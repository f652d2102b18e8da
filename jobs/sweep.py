"""Search depth and schedule, on this machine or on a Ray cluster:

python jobs/sweep.py --config jobs/recipes/quickstart/sweep.yaml
ray job submit --working-dir . -- python jobs/sweep.py --config ... --storage /shared/runs
"""

import sys
import time

from backbone.cli import fail, parse
from backbone.errors import UserError
from backbone.sweep.options import Sweep


def main() -> None:
    sweep, _ = parse(Sweep, sys.argv[1:])
    began = time.monotonic()
    from backbone.sweep.report import summary, write_report  # from here on torch and Ray are imported

    from backbone.sweep.run import run

    judge = None
    if sweep.finetune:
        from detection.judge import average_precision as judge
    try:
        record = run(sweep, judge)
        page = write_report(record)
    except (UserError, FloatingPointError) as error:
        fail(error)
    print(summary(record))
    print(f"finished in {time.monotonic() - began:.0f} s")
    print(f"report    {page}")
    print(f"best      python jobs/pretrain.py --config {record.url}/best.yaml")


if __name__ == "__main__":
    main()
