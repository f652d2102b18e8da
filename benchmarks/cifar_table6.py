"""The paper's CIFAR-10 nets trained by its recipe, beside its Table 6 and as its Fig. 6: as many as fit in the time.

One device, no Ray. Images stay on the device (data.resident); small nets need CUDA graphs to keep a GPU busy
(compute.compile reduce-overhead), and still leave room for others beside them (--parallel). The same command with the
same --folder goes on where the time ran out: each net from its newest checkpoint, then the next. What there is is
written each time.
"""

import io
import json
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import yaml
from results import parser, write

from backbone.errors import UserError
from backbone.evaluate.paper import PUBLISHED
from backbone.training.pretrain import finished, prepare, pretrain
from backbone.training.recipe import Recipe, recipe_hash
from backbone.training.run import run_url
from backbone.training.state import Store
from backbone.training.world import local_world

RECIPES = Path(__file__).parents[1] / "jobs" / "recipes" / "cifar10"
NETS = ("resnet20", "plain20", "resnet56", "plain56", "resnet110")
PAPER = {row.net.removeprefix("cifar_"): (row.name, row.top1) for row in PUBLISHED if row.table == 6 and row.net}
LAST = 10
"""Log records, of 100 steps each, over which the training error at the end is averaged: one alone is 12,800 images."""

COLOURS = {"20": "#e6a817", "32": "#41ab5d", "44": "#807dba", "56": "#d7301f", "110": "#2b2b2b", "1202": "#08519c"}


class OutOfTime(Exception):
    """Breaks a run off at a log record. The next call takes it up from its newest checkpoint."""


def make_recipe(
    net: str, seed: int, data: Path, folder: Path, gpu: bool, steps: int, compile: str, workers: int
) -> Recipe:
    """The paper's recipe; with other than its 64k steps, its milestones at the same shares of them."""
    tree = yaml.safe_load((RECIPES / f"{net}.yaml").read_text())
    schedule = tree["schedule"]
    schedule["milestones"] = [step * steps // schedule["total"] for step in schedule["milestones"]]
    schedule["total"] = steps
    tree |= {"name": f"{net}-seed{seed}", "seed": seed}
    tree["data"] |= {"train": f"{data}/train-*.parquet", "val": f"{data}/test-*.parquet"}
    tree["data"] |= {"resident": True, "workers": workers, "cache": str(folder / "cache")}
    tree["optim"]["micro_batch"] = tree["optim"]["batch"]
    tree["compute"]["compile"] = compile
    tree["scaling"] = {"num_workers": 0, "use_gpu": gpu}
    tree["run"] |= {"storage": str(folder), "checkpoint_every": min(1000, steps), "eval_every": 4, "keep": 1}
    return Recipe.model_validate(tree)


def train(recipe: Recipe, deadline: float, threads: int) -> bool:
    """Train to the end, or to the deadline on `time.monotonic`; whether it is finished."""
    if finished(run_url(recipe)):
        return True
    if time.monotonic() > deadline:
        return False

    def report(record: dict[str, Any]) -> None:
        if record["kind"] == "say":
            print(record["text"], flush=True)
        if record["kind"] == "evaluation":
            left = f"{deadline - time.monotonic():.0f} s left"
            print(
                f"{recipe.name}: step {record['step']} of {record['total']}, test error {record['val_error']:.2f} %, "
                f"{record['train_seconds']:.0f} s of training, {left}",
                flush=True,
            )
        if record["kind"] == "log" and time.monotonic() > deadline:
            raise OutOfTime

    with local_world(recipe.scaling.use_gpu, threads) as world:
        try:
            pretrain(prepare(recipe), world, report)
        except OutOfTime:
            print(f"{recipe.name}: out of time; the same command goes on from its newest checkpoint")
            return False
        finally:
            torch.compiler.reset()  # the next net's graphs take this one's memory
    return True


def net_of(recipe: Recipe) -> str:
    """The recipe's file, without the seed."""
    return recipe.name.partition("-seed")[0]


def row_of(recipe: Recipe) -> dict[str, Any]:
    """One net, ours beside the paper's; empty where it is not finished."""
    url, total = run_url(recipe), int(recipe.schedule.total)
    net = net_of(recipe)
    name, error = PAPER.get(net, ("", None))
    metrics = finished(url)
    history = history_of(recipe)
    rates = [record["images_per_second"] for record in history if "images_per_second" in record]
    errors = [record["error"] for record in history if "error" in record]
    waits = [record["data_wait"] for record in history if "data_wait" in record]
    return {
        "net": net,
        "seed": recipe.seed,
        "paper: Table 6": name or "not in it",
        "paper: test error": "" if error is None else error,
        "ours: test error": metrics["val_error"] if metrics else "",
        "ours: lowest on the way": min((r["val_error"] for r in history if "val_error" in r), default=""),
        f"ours: training error, last {LAST} records": statistics.mean(errors[-LAST:]) if errors else "",
        "steps": history[-1]["step"] if history else 0,
        "of": total,
        "images/s": statistics.median(rates) if rates else "",
        "data wait": statistics.median(waits) if waits else "",
    }


def history_of(recipe: Recipe) -> list[dict[str, float]]:
    """All records, up to the newest checkpoint of a run that is not finished."""
    state = Store(run_url(recipe) + "/checkpoints").newest(print)
    return state["progress"]["history"] if state else []


def curves_of(recipe: Recipe) -> dict[str, Any]:
    """What the picture is drawn from, and what the run is known by."""
    history = history_of(recipe)
    logs, judged = ([r for r in history if key in r] for key in ("error", "val_error"))
    known, metrics = Path(run_url(recipe), "run.json"), finished(run_url(recipe))
    return {
        "recipe": recipe.model_dump(mode="json", exclude={"scaling", "run"}),
        "recipe_hash": recipe_hash(recipe),
        "data": json.loads(known.read_text())["data"] if known.exists() else {},
        "final": metrics["val_error"] if metrics else None,
        "training": {"step": [r["step"] for r in logs], "error": [round(r["error"], 3) for r in logs]},
        "test": {"step": [r["step"] for r in judged], "error": [round(r["val_error"], 3) for r in judged]},
    }


def draw(curves: dict[str, Any], note: str) -> bytes:
    """PNG as the paper's Fig. 6, a panel a family: training error dashed, test error bold."""
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    begun = {run: found for run, found in curves.items() if found["test"]["step"]}
    families = {"plain": "plain nets", "resnet": "residual nets"}
    shown = [family for family in families if any(run.startswith(family) for run in begun)] or list(families)
    figure = Figure(figsize=(1 + 4.6 * len(shown), 4.4), layout="constrained")
    panels = figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
    for axes, family in zip(panels, shown, strict=True):
        for run, found in begun.items():
            net = run.partition("-seed")[0]
            if not net.startswith(family):
                continue
            colour = COLOURS[net.removeprefix(family)]
            (name, error), final = PAPER.get(net, ("", None)), found["final"]
            label = f"{run}: " + (f"{final:.2f} %" if final is not None else "not finished")
            label += f" (paper: {name} {error:.2f})" if error else ""
            axes.plot(found["training"]["step"], found["training"]["error"], "--", color=colour, linewidth=0.7)
            axes.plot(found["test"]["step"], found["test"]["error"], color=colour, linewidth=1.8, label=label)
        ends = [found["test"]["error"][-1] for found in begun.values()]
        axes.set(
            xlabel="step",
            xlim=(0, max((found["training"]["step"][-1:] or [1])[0] for found in curves.values())),
            ylim=(0, 20 if max(ends, default=0.0) < 20 else 80),  # the paper's 20, where all nets come under it
            title=families[family],
        )
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if axes.has_data():
            axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("error (%): training dashed, test bold")
    if note:
        figure.supxlabel(note, fontsize=7)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()


def main() -> None:
    gpu = torch.cuda.is_available()
    words = parser(__doc__)
    words.add_argument("--data", type=Path, required=True, help="folder of train-*.parquet and test-*.parquet")
    words.add_argument("--folder", type=Path, required=True, help="where runs lie and are taken up again")
    words.add_argument("--nets", nargs="+", default=list(NETS), choices=sorted(p.stem for p in RECIPES.glob("*.yaml")))
    words.add_argument("--seeds", nargs="+", type=int, default=[0])
    words.add_argument("--parallel", type=int, default=1, help="trainings at a time, each a process, on the one device")
    words.add_argument("--steps", type=int, default=64_000)
    words.add_argument("--minutes", type=float, default=9, help="after so many, stop and write what there is")
    words.add_argument("--compile", choices=("none", "default", "reduce-overhead"), help="default: by the device")
    words.add_argument("--workers", type=int, default=4, help="processes that draw crops")
    words.add_argument("--note", default="", help="a caveat about the data, which goes into JSON and picture")
    given = words.parse_args()
    deadline = time.monotonic() + 60 * given.minutes
    compile = given.compile or ("reduce-overhead" if gpu else "none")
    same = (given.data, given.folder, gpu, given.steps, compile, given.workers)
    recipes = [make_recipe(net, seed, *same) for seed in given.seeds for net in given.nets]
    try:
        with ProcessPoolExecutor(given.parallel, get_context("spawn")) as pool:
            threads = max(1, torch.get_num_threads() // given.parallel)
            list(pool.map(partial(train, deadline=deadline, threads=threads), recipes))
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    curves = {recipe.name: curves_of(recipe) for recipe in recipes}
    write(given.output, [row_of(recipe) for recipe in recipes], note=given.note, curves=curves)
    given.output.with_suffix(".png").write_bytes(draw(curves, given.note))
    print(f"written {given.output} and {given.output.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
