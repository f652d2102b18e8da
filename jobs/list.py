"""Say what runs a storage holds: state, best numbers, what came from what, sizes; and remove what is not needed:

python jobs/list.py runs
python jobs/list.py s3://bucket/runs --json
python jobs/list.py runs --prune checkpoints failed --older_than 30
python jobs/list.py runs --prune checkpoints failed --older_than 30 --yes
"""

import json
import sys

import backbone.begin  # noqa: F401
from backbone.cli import parse, run_main
from backbone.errors import UserError
from backbone.lineage import read_storage
from backbone.pruning import Listing, choose, megabytes, remove, table


def main() -> None:
    words = sys.argv[1:]
    words = ["--storage", *words] if words and not words[0].startswith("-") else words
    flags = {"json": "print JSON in place of the table", "yes": "remove what --prune shows"}
    asked, given = parse(Listing, words, flags, __doc__)
    if given["yes"] and not asked.prune:
        raise UserError("--yes: removes what --prune names, such as --prune checkpoints")
    runs = read_storage(asked.storage)
    if not asked.prune:
        print(json.dumps([run.as_json() for run in runs], indent=1) if given["json"] else table(runs))
        return
    removals, kept = choose(runs, asked)
    if given["json"]:
        told = [{"run": one.run.name, "whole": one.whole, "bytes": one.size} for one in removals]
        print(json.dumps({"remove": told, "keep": kept}, indent=1))
    else:
        print("\n".join([*(f"{one.run.name}: {one.what}, {megabytes(one.size)}" for one in removals), *kept]))
    say = (lambda text: print(text, file=sys.stderr)) if given["json"] else print
    total = megabytes(sum(one.size for one in removals))
    if not given["yes"]:
        say(f"{len(removals)} would go, {total}; nothing was removed: add --yes")
        return
    say(f"removed {megabytes(remove(removals, say))}")


if __name__ == "__main__":
    run_main(main)
