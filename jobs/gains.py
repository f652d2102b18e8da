"""Compare backbones in one detector and write the report, on this machine or on a Ray cluster:

python jobs/gains.py --config jobs/recipes/quickstart/gains.yaml
ray job submit --working-dir . -- python jobs/gains.py --config ... --storage /shared/runs
"""

import sys
import time

from backbone.cli import parse, run_main
from detection.gains import Gains, run, write_report


def main() -> None:
    gains, _ = parse(Gains, sys.argv[1:])
    began = time.monotonic()
    todo = run(gains)
    folder, markdown = write_report(gains, todo, f"python jobs/gains.py {' '.join(sys.argv[1:])}")
    print(markdown)
    print(f"finished in {time.monotonic() - began:.0f} s")
    print(f"report    {folder}/report.html")


if __name__ == "__main__":
    run_main(main, "go on")
