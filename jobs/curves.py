"""Lay finished pretrainings over one another, as the paper's figures 4 and 6; tell best and spread of several seeds:

python jobs/curves.py --runs runs/plain18 runs/plain34 --output figure-4.png
python jobs/curves.py --runs runs/resnet110-0 runs/resnet110-1 runs/resnet110-2 runs/resnet110-3 runs/resnet110-4
"""

import sys

import backbone.begin  # noqa: F401
from backbone.cli import parse, run_main
from backbone.storage import filesystem
from backbone.training.compare import Comparison, read, repeats, table, title


def main() -> None:
    options, _ = parse(Comparison, sys.argv[1:], doc=__doc__)
    groups = repeats([read(url) for url in options.runs])
    from backbone.training.curves import draw_overlay

    print(table(groups))
    fs, path = filesystem(options.output)
    labels = [title(group) + (f", {len(group)} trainings" if len(group) > 1 else "") for group in groups]
    fs.pipe_file(path, draw_overlay([(label, [r.history for r in g]) for label, g in zip(labels, groups, strict=True)]))
    print(f"curves    {options.output}")


if __name__ == "__main__":
    run_main(main)
