"""Whether every damaged image is decoded as PIL decodes it, or reported as a bad image.

Mutants of images of every form that is read (`mutants.py`), most of them changed in their headers, PNG with checksums
that are right again. Each goes through `decode`, at full and at reduced size, and through what training reads of an
upright JPEG; PIL alone is the reference. What else can happen is a fault: another exception, other pixels, a crash, or
more than `--seconds` for one image or than `--memory`.

    python benchmarks/decode_fuzz.py --mutants 100000

A fault is printed with its number; `--only NUMBER` does that one alone, in this process.
"""

import argparse
import faulthandler
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import cv2
from mutants import mutant, originals, verdict
from results import parser, write

CHUNK = 500  # mutants a process takes at a time
GIGABYTE = 2**30


Verdict = tuple[int, str, str, float]
"""Number, form, verdict and seconds of a mutant."""


def judge(seed: int, numbers: range, seconds: float, memory: float, note: str) -> list[Verdict]:
    """The verdicts of some; meanwhile the file `note` says which one is being judged."""
    cv2.setNumThreads(1)
    resource.setrlimit(resource.RLIMIT_AS, (int(memory * GIGABYTE), resource.getrlimit(resource.RLIMIT_AS)[1]))
    with Path(os.devnull).open("w") as quiet:
        os.dup2(quiet.fileno(), 2)  # libjpeg, libtiff and libpng talk
    forms, found = originals(), []
    for number in numbers:
        Path(note).write_text(str(number))
        faulthandler.dump_traceback_later(seconds, exit=True)
        name, data = mutant(forms, seed, number)
        began = time.perf_counter()
        found.append((number, name, verdict(name, data), time.perf_counter() - began))
        faulthandler.cancel_dump_traceback_later()
    return found


def run(given: argparse.Namespace) -> tuple[list[Verdict], int]:
    """All verdicts, and the peak of resident memory of a process, MB."""
    found: list[Verdict] = []
    chunks = [range(at, min(at + CHUNK, given.mutants)) for at in range(0, given.mutants, CHUNK)]
    with tempfile.TemporaryDirectory() as folder:
        note = f"{folder}/note"
        while chunks:
            try:
                with ProcessPoolExecutor(1) as pool:
                    while chunks:
                        terms = (given.seconds, given.memory, note)
                        found += pool.submit(judge, given.seed, chunks[0], *terms).result()
                        del chunks[0]
            except BrokenProcessPool:
                lost = int(Path(note).read_text())
                found.append((lost, "", "crashed, or took too long", given.seconds))
                again = range(chunks[0].start, lost), range(lost + 1, chunks[0].stop)
                chunks[:1] = [chunk for chunk in again if chunk]
    return found, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--mutants", type=int, default=100_000)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--seconds", type=float, default=60, help="that one image may take")
    words.add_argument("--memory", type=float, default=8, help="address space of a process, GB")
    words.add_argument("--only", type=int, help="judge this one alone")
    given = words.parse_args()
    if given.only is not None:
        name, data = mutant(originals(), given.seed, given.only)
        sys.exit(f"{given.only} {name}: {verdict(name, data)}")
    began = time.monotonic()
    found, peak = run(given)
    taken = time.monotonic() - began
    rows: list[dict[str, Any]] = []
    for kind in sorted({name.partition(" ")[0] for _, name, _, _ in found}):
        mine = [one for one in found if one[1].partition(" ")[0] == kind]
        counts = Counter(verdict if verdict in ("same", "bad") else "fault" for _, _, verdict, _ in mine)
        slowest = 1000 * max(seconds for *_, seconds in mine)
        rows.append(
            {"form": kind or "unknown", "mutants": len(mine), "decoded as by PIL": counts["same"]}
            | {"reported as bad": counts["bad"], "faults": counts["fault"], "slowest, ms": slowest}
        )
    faults = [one for one in found if one[2] not in ("same", "bad")]
    for number, name, what, _ in faults[:50]:
        print(f"{number} {name}: {what}", file=sys.stderr)
    slowest = sorted(found, key=lambda one: -one[3])[:5]
    write(given.output, rows, faults=faults, slowest=slowest, seconds=taken, peak_memory_mb=peak, seed=given.seed)


if __name__ == "__main__":
    main()
