"""What a comparison will take, before it takes it: `jobs/gains.py --dry-run`.

The recipes suffice: what data and artifacts that are not there would have to say is left out, and named.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from backbone.errors import UserError
from backbone.nets import Backbone
from backbone.nets import build as build_backbone
from backbone.nets.contract import run as forward
from backbone.nets.count import macs, parameters
from backbone.nets.meta import on_meta
from backbone.training import cost, schedule
from backbone.training.plan import HOW_TO_MEASURE, doubts, mean_macs, places, shape_of, stored_bytes
from backbone.training.pretrain import PRETRAIN, open_data
from backbone.training.recipe import TrainingRecipe
from backbone.training.run import run_place, run_url
from detection.data.contract import DetectionSource
from detection.data.loader import DIVISOR
from detection.data.sources import judged_on_trained, open_sources
from detection.finetune import FINETUNE, build_detector
from detection.gains import Plan, backbone_of
from detection.gains_recipe import FULL, LAST, Gains
from detection.nets import build, count
from detection.recipe import Finetune

CLASSES = 1000
"""Of pretraining data that are not there: ImageNet's, for a net's last layer."""
OBJECTS, ASPECT = 80, 4 / 3
"""Of detection data that are not there: COCO's classes, and width over height."""


@dataclass(frozen=True)
class Run:
    """What one run will take."""

    label: str
    pretrains: bool
    recipe: TrainingRecipe
    steps: int | None
    """None where the schedule is in epochs of data that are not there."""

    shape: cost.Shape | None
    """None likewise, and where the backbone is not there. Without data its evaluations are not in it."""

    num_bytes: int
    finished: bool
    block: str = LAST
    """See `Gains.blocks`."""

    work: float | None = None
    """Multiply-adds, see `_work`; None where steps or data are not known."""


@dataclass(frozen=True)
class Missing:
    """What is not there, and what is therefore not counted."""

    why: str
    uncounted: str


@dataclass(frozen=True)
class Doubt:
    """What is possible but hardly meant, see `backbone.training.plan.doubts`."""

    text: str


def describe(gains: Gains, todo: Plan, rates: cost.Rates | None = None) -> str:
    """Runs, steps, disk, with `rates` hours, and what the intervals will not hold; as text.

    A detector's time is foretold by its multiply-adds like a net's: without what is computed beside its layers
    (anchors, suppression, matching), and as if none of its parts were fixed.

    Raises:
        UserError: a detector does not fit its backbone.
    """
    runs, missing, doubtful = list[Run](), list[Missing](), list[str]()
    for one in (*_pretrainings(todo), *_finetunings(todo)):
        if isinstance(one, Run):
            runs.append(one)
        elif isinstance(one, Doubt):
            doubtful.append(one.text)
        elif one not in missing:
            missing.append(one)
    lines = [("report", f"{run_place(gains.storage, gains.name, 'storage')}/report.html")]
    lines += [("row", f"{label}: {_told(label, runs, rates)}") for label in gains.rows]
    if len(gains.blocks) > 1:
        what = "rung" if gains.ladder else "detector"
        lines += [(what, f"{name or FULL}: {_block(name, gains, runs, rates)}") for name in gains.blocks]
    done = sum(run.finished for run in runs)
    kinds = [
        f"{len(kind)} {what}, {_steps(kind)}"
        for pretrains, what in ((True, "pretraining"), (False, "fine-tuning"))
        for kind in [[run for run in runs if run.pretrains == pretrains]]
    ]
    lines.append(("runs", "; ".join(kinds) + (f", {done} of them finished" if done else "")))
    if rates:
        left = [run for run in runs if not run.finished]
        costs = [cost.predict(run.shape, rates) for run in left if run.shape]
        without = f"; without {len(left) - len(costs)} run(s), see missing" if len(costs) < len(left) else ""
        lines.append(("rates", f"{rates.measured}; scaled by multiply-adds"))
        lines.append(
            (
                "time",
                f"{_hours(sum(c.total for c in costs))} one run after another, "
                f"{sum(c.device_hours for c in costs):.3g} device-hours{without}",
            )
        )
    else:
        lines.append(("time", HOW_TO_MEASURE))
    lines.append(("disk", f"{sum(run.num_bytes for run in runs) / 2**30:.2f} GiB of checkpoints and artifacts"))
    lines += [("missing", f"{' '.join(one.why.split())}; so {one.uncounted}") for one in missing]
    lines += [("warning", text) for text in dict.fromkeys(doubtful)]
    lines += [("unknown", text) for text in _unknown(gains, todo)]
    return "\n".join(f"{label:<11}{text}" for label, text in lines)


def _pretrainings(todo: Plan) -> Iterator[Run | Missing | Doubt]:
    sizes: dict[str, tuple[int, int, int]] = {}
    for key, recipe in todo.pretrainings.items():
        data = recipe.data.model_dump_json()
        if data not in sizes:
            try:
                train, val = open_data(recipe.data, recipe.seed)
                sizes[data] = len(train), len(val), len(train.classes)
            except UserError as error:
                sizes[data] = 0, 0, CLASSES
                yield Missing(
                    str(error), "steps of schedules in epochs, and evaluations, of pretraining are not counted"
                )
        num_train, num_val, classes = sizes[data]
        if num_train:
            yield from map(Doubt, doubts(recipe, num_train, *places(recipe.data)))
        with on_meta():
            net = build_backbone(recipe.model, classes)
        steps = _num_steps(recipe, num_train)
        course = schedule.in_steps(recipe.schedule, recipe.optim.batch, num_train) if steps and num_train else None
        image = mean_macs(net, recipe.data, course) if course else macs(net, recipe.data.size)
        work = image, parameters(net), recipe.data.workers
        shape = shape_of(recipe, *work, num_train, num_val) if steps else None
        done = PRETRAIN.finished(run_url(recipe)) is not None
        yield Run(key.label, True, recipe, steps, shape, stored_bytes(recipe, parameters(net)), done)


def _finetunings(todo: Plan) -> Iterator[Run | Missing | Doubt]:
    opened: dict[str, tuple[DetectionSource | None, int, int]] = {}
    known: dict[tuple[str, str, bool], DetectorCost] = {}
    for key, recipe in todo.finetunings.items():
        data = f"{recipe.semantic} {recipe.data.model_dump_json()}"
        if data not in opened:
            try:
                train, val = open_sources(recipe.data, recipe.semantic)
                opened[data] = train, len(train), len(val)
                yield from map(Doubt, judged_on_trained(recipe.data, train, val))
            except UserError as error:
                opened[data] = None, 0, 0
                yield Missing(
                    str(error),
                    "steps of schedules in epochs, and evaluations, of fine-tuning are not counted, and multiply-adds "
                    f"are of images of 4:3 and {OBJECTS} classes",
                )
        source, num_train, num_val = opened[data]
        if num_train:
            yield from map(Doubt, doubts(recipe, num_train))
        of = key.block, recipe.backbone, recipe.from_scratch
        if of not in known:
            try:
                net = backbone_of(todo, recipe)
            except UserError as error:
                known[of] = DetectorCost(0, 0, 0)
                yield Missing(f"{key.label}: {error}", "hours and disk of its fine-tunings are not counted")
            else:
                known[of] = _detector_cost(recipe, net.to("meta"), source)
        each = known[of]
        steps = _num_steps(recipe, num_train)
        asked = each.multiply_adds, each.parameters, recipe.data.workers
        shape = shape_of(recipe, *asked, num_train, num_val) if steps and each.parameters else None
        done = FINETUNE.finished(run_url(recipe)) is not None
        disk = stored_bytes(recipe, each.parameters)
        work = _work(shape, each) if shape and num_train else None
        yield Run(key.label, False, recipe, steps, shape, disk, done, key.block, work)


def _num_steps(recipe: TrainingRecipe, num_train: int) -> int | None:
    if not num_train and recipe.schedule.unit == "epochs":
        return None
    return schedule.in_steps(recipe.schedule, recipe.optim.batch, num_train).total


class DetectorCost(NamedTuple):
    """Of a detector, on a mean image."""

    multiply_adds: int
    parameters: int
    fixed: int
    """Multiply-adds of the parts that do not train, which go forward alone."""


def _work(shape: cost.Shape, each: DetectorCost) -> float:
    """Multiply-adds of a run: forward of every image that is trained on or judged, and twice as many backward through
    what trains. What the last step is judged by is the artifact's too."""
    trained = shape.steps * shape.batch * (3 * each.multiply_adds - 2 * each.fixed)
    return float(trained + (shape.evaluations - 1) * shape.val_images * each.multiply_adds)


def _detector_cost(recipe: Finetune, net: Backbone, train: DetectionSource | None) -> DetectorCost:
    """Of a net on the meta device."""
    with on_meta():
        detector = build_detector(recipe, net, train) if train else build(recipe.detector, net, OBJECTS)
    sides = train.sizes.astype(float) if train else np.array([[1.0, ASPECT]])
    scale = np.mean(recipe.data.shorter_side) / sides.min(1)
    scale = np.minimum(scale, recipe.data.longer_side / sides.max(1))
    side = np.sqrt((sides.prod(1) * scale**2).mean())
    padded = int(np.ceil(side / DIVISOR)) * DIVISOR
    weights = parameters(detector)
    return DetectorCost(count.macs(detector, padded, padded), weights, _fixed(recipe, net, padded))


def _fixed(recipe: Finetune, net: Backbone, side: int) -> int:
    """Multiply-adds of the parts of a net that do not train. Of kind c4 without C5, which reads regions."""
    parts = list(net.eval().parts().values())[: recipe.detector.freeze_at]
    x = torch.empty(1, 3, side, side, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for modules in parts[:4] if recipe.detector.kind == "c4" else parts:
            x = forward(modules, x)
    return counter.get_total_flops() // 2


def _told(label: str, runs: Sequence[Run], rates: cost.Rates | None) -> str:
    parts = []
    for pretrains, what in ((True, "pretraining"), (False, "fine-tuning")):
        kind = [run for run in runs if run.label == label and run.pretrains == pretrains]
        if kind:
            first = kind[0]
            each = f" of {first.steps:,} steps" if first.steps else f" of {first.recipe.schedule.total:g} epochs"
            took = f", {_hours(cost.predict(first.shape, rates).total)} each" if rates and first.shape else ""
            if len({run.block for run in kind}) > 1:
                each = took = ""  # told by block
            parts.append(f"{len(kind)} {what}{'s' if len(kind) > 1 else ''}{each}{took}")
    return "; ".join(parts)


def works(todo: Plan) -> dict[tuple[str, str], float | None]:
    """Multiply-adds of a row's fine-tunings in a block, by (block, row), training and judging; None: not known."""
    found: dict[tuple[str, str], float | None] = {}
    for one in _finetunings(todo):
        if isinstance(one, Run):
            before = found.get((one.block, one.label), 0.0)
            found[one.block, one.label] = None if before is None or one.work is None else before + one.work
    return found


def _block(name: str, gains: Gains, runs: Sequence[Run], rates: cost.Rates | None) -> str:
    """What one of several ways to judge takes, and of a rung how much that is of the last one."""
    own = [run for run in runs if not run.pretrains and run.block == name]
    told = f"{len(own)} fine-tuning{'s' if len(own) > 1 else ''}, {_steps(own)}"
    if rates and all(run.shape for run in own):
        told += f", {_hours(sum(cost.predict(run.shape, rates).total for run in own if run.shape))}"
    labels = {run.label for run in own}
    last = [run.work for run in runs if not run.pretrains and run.block == LAST and run.label in labels]
    works = [run.work for run in own]
    if gains.ladder and name != LAST and all(works) and all(last):
        share = sum(filter(None, works)) / sum(filter(None, last))
        told += f", {100 * share:.3g} % of the multiply-adds of {FULL}"
    without = [label for label in gains.rows if label not in labels]
    return told + (f"; without {', '.join(without)}: random weights must train" if without else "")


def _unknown(gains: Gains, todo: Plan) -> list[str]:
    """What the report will not be able to say, and what it takes."""
    lines, judge = [], todo.of(gains.blocks[-1])  # all blocks have the same seeds
    for label, row in gains.rows.items():
        pretrainings, finetunings = len(todo.made(label)), len(judge.tuned(label))
        if finetunings == 1:
            more = f"--pretrain_seeds or --rows.{label}.seeds" if row.pretrain else f"--rows.{label}.seeds"
            lines.append(
                f"{label}: one training, so nothing of what another would change, and no verdict; {more} 0 1 2"
            )
        elif row.pretrain and pretrainings == 1:
            lines.append(f"{label}: one pretraining, so nothing of what another would change; --pretrain_seeds 0 1 2")
        elif row.artifact:
            lines.append(f"{label}: an artifact is one pretraining, so nothing of what another would change")
    return lines


def _steps(runs: Sequence[Run]) -> str:
    counted = [run.steps for run in runs if run.steps]
    told = f"{sum(counted):,} steps"
    return told if len(counted) == len(runs) else f"{told} and those of {len(runs) - len(counted)} in epochs"


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f} h" if hours >= 100 else f"{hours:.3g} h"
