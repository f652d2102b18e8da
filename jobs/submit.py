"""Write the file that ILSVRC's test server takes, from backbones, a localiser or detections, here or on a Ray cluster:

python jobs/submit.py --backbone runs/a/artifact runs/b/artifact --images /data/ILSVRC:test \\
    --synsets devkit/data/map_clsloc.txt --output entry-cls
python jobs/submit.py --backbone runs/a/artifact --localiser runs/localiser/artifact --images /data/ILSVRC:test \\
    --synsets devkit/data/map_clsloc.txt --output entry-loc
python jobs/submit.py --detections found --images /data/ILSVRC:test --synsets devkit/data/map_det.txt --output entry-det
"""

import sys

import backbone.begin  # noqa: F401
from backbone.cli import parse, run_main
from detection.submission.options import Submission


def main() -> None:
    options, _ = parse(Submission, sys.argv[1:], doc=__doc__)
    from backbone.job import submit  # from here on torch and Ray are imported, which takes seconds
    from detection.submission.submit import PREDICTIONS, SUBMIT

    outcome = submit(SUBMIT, options)
    print(f"images    {outcome.results['images']:,}")
    print(f"lines     {outcome.results['lines']:,}")
    print(f"file      {outcome.url}/{PREDICTIONS}")


if __name__ == "__main__":
    run_main(main, "start over")
