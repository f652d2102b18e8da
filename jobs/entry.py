"""What each step of a detection entry is worth, one after another, as in the paper's Table 9:

python jobs/entry.py --config jobs/recipes/quickstart/entry.yaml --backbone runs/quickstart-residual/artifact
python jobs/entry.py --config jobs/recipes/quickstart/entry.yaml --backbone runs/quickstart-residual/artifact --dry-run
"""

import sys

import backbone.begin  # noqa: F401
from backbone.cli import parse, run_main
from detection.improvements.entry import Entry, plan


def main() -> None:
    entry, flags = parse(Entry, sys.argv[1:], {"dry_run": "print runs and rows, then stop"}, __doc__, recipe=True)
    if flags["dry_run"]:
        todo = plan(entry)
        for training in todo.trainings:
            print("train   ", ", ".join(recipe.run_name for recipe in training.values()))
        for row in todo.rows:
            steps = " ".join(row.evaluations[0].steps) or "one look"
            print(f"judge    {row.label}: {steps}, {len(row.groups)} times {len(row.groups[0])} detector(s)")
        return
    from detection.improvements.table import run  # from here on torch and Ray are imported, which takes seconds

    url, text = run(entry)
    print(text)
    print(f"table     {url}/table.md")


if __name__ == "__main__":
    run_main(main, "go on")
