"""Runs jobs, each in a process forked from this one, which has imported what they need: that takes seconds a job.

Reads a line of JSON for each, {"path", "words", "env", "cwd", "out", "err"}, and answers with the process's number and,
when it has ended, its exit code. What is forked has no thread and no Ray.
"""

import json
import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    import torchvision  # noqa: F401

    import detection.finetune  # noqa: F401

    for line in sys.stdin:
        told = json.loads(line)
        child = os.fork()
        if not child:
            return run(told)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def run(told: dict) -> None:
    """The job, as `python PATH WORDS` would."""
    os.environ.clear()
    os.environ.update(told["env"])
    os.chdir(told["cwd"])
    for number, name in enumerate((os.devnull, told["out"], told["err"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o600), number)
    sys.argv = [told["path"], *told["words"]]
    sys.path[0] = str(Path(told["path"]).resolve().parent)
    runpy.run_path(told["path"], run_name="__main__")


if __name__ == "__main__":
    main()
