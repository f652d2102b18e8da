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


def main() -> None:
    sweep, _ = parse(Sweep, sys.argv[1:])
    from backbone.sweep.run import run
    from backbone.sweep.view import page, summary  # from here on torch and Ray are imported, which takes seconds
    from detection.objective import DetectionAP

    began = time.monotonic()
    try:
        detection_ap = DetectionAP.of(sweep) if sweep.finetune else None
        if detection_ap:
            detection_ap.check()
        record = run(sweep, detection_ap)
        fs, path = filesystem(join(record.url, "report.html"))
        fs.pipe_file(path, page.report(record).encode())
    except (UserError, FloatingPointError) as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted; submitted again, it goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    print(summary.headline(record))
    print("\n".join(["Pareto front:", *summary.front(record)]))
    print(f"finished in {time.monotonic() - began:.0f} s")
    print(f"report    {record.url}/report.html")
    print(f"train it  python jobs/pretrain.py --config {record.url}/best.yaml")


if __name__ == "__main__":
    main()
