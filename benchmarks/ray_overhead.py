"""What Ray Train costs once a run is going: the same loop in a Ray worker and in a plain process.

Both processes exist for the whole measurement and take turns, one training while the other waits, so that a noisy
machine slows both alike. A turn ends with a log record, which goes through Ray's queue or straight to the display.
Apart from turns: how long an evaluation's record holds up the worker. It alone passes Ray's controller.
"""

import contextlib
import multiprocessing
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

from loop_overhead import CASES, Prepared, make_recipe
from results import parser, spread, write

from backbone.training import engine
from backbone.training.cluster import launch
from backbone.training.recipe import Recipe, Scaling
from backbone.training.state import Store
from backbone.training.world import World

EVALUATIONS = 5


class Turns:
    """Whose turn it is, in a file: "process" or "ray"."""

    def __init__(self, folder: str, me: str) -> None:
        self.file, self.me = Path(folder, "turn"), me

    def take(self) -> None:
        while self.file.read_text() != self.me:
            time.sleep(0.01)

    def give(self) -> None:
        aside = self.file.with_suffix(f".{self.me}")
        aside.write_text("ray" if self.me == "process" else "process")
        aside.rename(self.file)

    def swap(self) -> None:
        self.give()
        self.take()


def measure(payload: dict[str, Any], world: World, report: engine.Report) -> dict[str, list[float]]:
    """Seconds a step, turn by turn, and what each of some evaluation records took."""
    recipe, turns = Recipe.model_validate(payload["recipe"]), Turns(payload["folder"], payload["me"])
    task = Prepared(recipe, payload["size"], payload["steps"], world, turns.swap)
    turns.take()
    engine.train(task, recipe, world, Store(payload["url"] + "/checkpoints"), report)
    turns.give()
    waits = []
    for step in range(EVALUATIONS):
        time.sleep(3)  # evaluations are minutes apart
        began = time.perf_counter()
        metrics = {f"val_{name}": value for name, value in task.evaluate(task.model, world).items()}
        report({"kind": "evaluation", "step": step, "total": EVALUATIONS, **metrics, "val_seconds": 0.0})
        waits.append(time.perf_counter() - began)
    return {"loop": task.seconds[1:], "evaluation": waits}


def in_process(payload: dict[str, Any], scaling: Scaling, answer: Any) -> None:
    with Path(payload["url"], "log").open("w") as log, contextlib.redirect_stdout(log):
        answer.put(launch(measure, payload, scaling))


def both(payload: dict[str, Any], folder: Path, threads: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """`measure` in a process of its own and in a Ray worker, at the same time."""
    for me in ("process", "ray"):
        (folder / me).mkdir()
        (folder / me / "run.json").touch()  # by which workers check that they see the run's folder
    (folder / "turn").write_text("process")
    plain, ray = ({**payload, "folder": str(folder), "me": me, "url": str(folder / me)} for me in ("process", "ray"))
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    child = context.Process(
        target=in_process, args=(plain, Scaling(num_workers=0, cpus_per_worker=threads), answer), daemon=True
    )
    child.start()
    with (folder / "log").open("w") as log, contextlib.redirect_stdout(log):
        from_ray = launch(measure, ray, Scaling(num_workers=1, cpus_per_worker=threads, max_failures=0))
    from_process = answer.get()
    child.join()
    return from_process, from_ray


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--cases", nargs="+", choices=CASES, default=["resnet18", "cifar_resnet20"])
    words.add_argument("--turns", type=int, default=15, help="turns of each process")
    words.add_argument("--threads", type=int, default=1)
    given = words.parse_args()
    rows = []
    ray_folder = tempfile.TemporaryDirectory(prefix="rb", ignore_cleanup_errors=True)
    # A cluster of its own: another one on this machine, alive or dead, is neither used nor disturbed.
    os.environ |= {"RAY_ADDRESS": "local", "RAY_TMPDIR": ray_folder.name, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for case in given.cases:
        net, size, batch, steps = CASES[case]
        recipe = make_recipe(net, batch, steps, given.turns, "fp32", False)
        with tempfile.TemporaryDirectory() as folder:
            payload = {"recipe": recipe.model_dump(), "size": size, "steps": steps}
            plain, ray = both(payload, Path(folder), given.threads)
        ratio, low, high = spread([a / b for a, b in zip(ray["loop"], plain["loop"], strict=True)])
        rows.append(
            {
                "net": case,
                "input": f"{batch} x {size} px fp32",
                "process, ms a step": 1e3 * spread(plain["loop"])[0],
                "Ray, ms a step": 1e3 * spread(ray["loop"])[0],
                "overhead, %": 100 * (ratio - 1),
                "quartiles, %": f"{100 * (low - 1):.2f} to {100 * (high - 1):.2f}",
                "turns": len(ray["loop"]),
                "evaluation record, ms": 1e3 * spread(ray["evaluation"])[0],
                "without Ray, ms": 1e3 * spread(plain["evaluation"])[0],
            }
        )
    write(given.output, rows)
    ray_folder.cleanup()


if __name__ == "__main__":
    main()
