"""Look into nets: the gradient each unit gets at the start and after training, λ-scaled shortcuts, layer responses:

python jobs/analyse.py --output analysis
python jobs/analyse.py --backbone runs/resnet20/artifact runs/plain20/artifact --data.source parquet --data.val ...
"""

import sys

import backbone.begin  # noqa: F401
from backbone.analyse.options import Analysis
from backbone.cli import parse, run_main


def main() -> None:
    options, _ = parse(Analysis, sys.argv[1:], doc=__doc__)
    from backbone.analyse.analysis import analyse, table  # from here on torch is imported

    record = analyse(options)
    print(table(record))
    print(f"results   {options.output}")


if __name__ == "__main__":
    run_main(main)
