"""The `raybone` command, and where jobs and recipes lie: in the repository, or inside the installed wheel.

    raybone pretrain --config quickstart/residual.yaml

is `python jobs/pretrain.py --config jobs/recipes/quickstart/residual.yaml` from any folder. Imports nothing slow.
"""

import ast
import difflib
import os
import re
import runpy
import sys
from contextlib import suppress
from pathlib import Path

from backbone.stopping import unread

HERE = Path(__file__).parent
# Beside the packages, whose hash is the same installed or not: see backbone.provenance.code.
INSTALLED = HERE.parent / "raybone" / "jobs"
JOBS = INSTALLED if INSTALLED.is_dir() else HERE.parent / "jobs"
RECIPES = JOBS / "recipes"
CONSOLE = "RAYBONE_CONSOLE"
"""In the environment of a job that `raybone` began: what it says to type is said in that form."""


def main() -> None:
    """`raybone JOB WORDS`, as `python jobs/JOB.py WORDS`."""
    told, words = sys.argv[1:2], sys.argv[2:]
    jobs = commands()
    if not told or told[0] in ("-h", "--help"):
        with suppress(BrokenPipeError):  # `raybone --help | head` has seen enough
            print(_usage(jobs), file=sys.stdout if told else sys.stderr)
        unread()
        raise SystemExit(0 if told else 2)
    if told[0] not in jobs:
        near = difflib.get_close_matches(told[0], jobs, 1)
        hint = f"perhaps you meant raybone {near[0]}" if near else f"there are {', '.join(jobs)}"
        print(f"error: raybone {told[0]}: no such job; {hint}", file=sys.stderr)
        raise SystemExit(2)
    os.environ[CONSOLE] = "1"
    job = str(JOBS / f"{told[0]}.py")
    sys.argv = [job, *words]
    runpy.run_path(job, run_name="__main__")


def commands() -> dict[str, str]:
    """Every job -> what it does, in a line, without importing any."""
    found = {}
    for path in sorted(JOBS.glob("*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        found[path.stem] = " ".join(doc.partition("\n\n")[0].split()).rstrip(".:")
    return found


def recipe_file(path: str | Path) -> Path:
    """The recipe that is meant: a file of that path, or else the one that raybone brings under that name.

    `quickstart/gains.yaml` and `jobs/recipes/quickstart/gains.yaml` are the same one.
    """
    path = Path(path).expanduser()
    ours = RECIPES / path.as_posix().removeprefix("jobs/recipes/")
    return ours if ours.is_file() and not path.exists() else path


def typed(text: str) -> str:
    """A command, or text with commands in it, as it is to be typed here: `raybone JOB` where that began this job."""
    if CONSOLE not in os.environ:
        return text
    for path in JOBS.glob("*.py"):
        text = text.replace(f"python jobs/{path.name}", f"raybone {path.stem}")
    return re.sub(r"(?<![\w./-])jobs/recipes/", "", text)


def _usage(jobs: dict[str, str]) -> str:
    lines = ["usage: raybone JOB --config RECIPE.yaml [--section.field VALUE ...]", ""]
    lines += [f"  {name:<11}{text}" for name, text in jobs.items()]
    lines += ["", "raybone gains --config quickstart/demo.yaml    # a first look on two cores, no download"]
    lines += ["raybone gains --config quickstart/gains.yaml   # the same with error bars, in minutes"]
    return "\n".join([*lines, "raybone JOB --help explains one; its recipes are in " + str(RECIPES)])
