"""What a recipe will cost and do, before it does it: `--dry-run`."""

import math

from backbone.data.options import Data, StoredData
from backbone.nets import Backbone, build
from backbone.nets.count import activation_bytes, macs, parameters
from backbone.nets.meta import on_meta
from backbone.training import cost, feeding, schedule
from backbone.training.precision import foretold
from backbone.training.recipe import PiecesSchedule, PlateauSchedule, Recipe, StepsSchedule, TrainingRecipe
from backbone.training.run import check_split, first_micro_batch, run_url
from backbone.training.schedule import Events, learning_rate

BARS = "▁▂▃▄▅▆▇█"

MANY_EPOCHS = 1000
"""More than anybody trains on images worth training on; the paper's longest takes 164."""

HOW_TO_MEASURE = "not known without rates: benchmarks/cost_model.py of the repository measures them; then --rates FILE"


def describe(
    recipe: Recipe,
    num_train: int,
    num_val: int,
    num_classes: int,
    rates: cost.Rates | None = None,
    feed: feeding.Feed | None = None,
    gpu_rate: float = 0.0,
) -> str:
    """The plan of a run as text.

    With `rates` also how long it will take, see `backbone.training.cost`; with `feed` how many cores feed a node's
    GPUs, see `backbone.training.feeding`, each of `gpu_rate` images/s where that is known.

    Raises:
        UserError: the batch does not split over the workers, or the net cannot be built.
    """
    optim, scaling, size = recipe.optim, recipe.scaling, recipe.data.size
    url = run_url(recipe)
    micro_batch = optim.micro_batch or first_micro_batch(recipe)
    recipe = recipe.model_copy(update={"optim": optim.model_copy(update={"micro_batch": micro_batch})})
    check_split(recipe)
    with on_meta():
        net = build(recipe.model, num_classes)
    steps = schedule.in_steps(recipe.schedule, optim.batch, num_train)
    stages = ", ".join(f"{name} {stage.channels} at 1/{stage.stride}" for name, stage in net.stages.items())
    workers = scaling.processes
    accumulation = optim.batch // micro_batch / workers
    copies = optim.copies + 1  # the gradients
    # Autocast keeps activations of convolutions in 16 bits; norms and ReLU between them follow their inputs.
    per_value = 2 if recipe.compute.precision in ("bf16", "fp16") else 4  # auto may come out as fp32
    activations = activation_bytes(net, size, micro_batch) * per_value // 4
    state = 4 * parameters(net) * copies
    multiply_adds, mean = macs(net, size), mean_macs(net, recipe.data, steps)
    lines = [
        ("run", url),
        ("net", f"{recipe.model.name}, {num_classes} classes: {parameters(net):,} parameters"),
        ("stages", stages),
        (
            "cost",
            f"{_giga(multiply_adds)} multiply-adds an image at {size} px, forward; training takes three times that",
        ),
        *([("sizes", sizes(recipe.data, steps, mean))] if recipe.data.progressive.from_size else []),
        *([("judged at", f"{recipe.data.eval_size} px")] if recipe.data.eval_size else []),
        ("images", f"{num_train:,} training, {num_val:,} validation ({recipe.data.source})"),
        (
            "steps",
            f"{steps.total:,} of {optim.batch} images: {steps.total * optim.batch / num_train:.1f} epochs, "
            f"{_giga(3 * mean * optim.batch * steps.total)} multiply-adds in all",
        ),
        ("precision", foretold(recipe, url)),
        ("batch", f"{optim.batch} = {micro_batch} a micro-batch x {accumulation:g} accumulated x {workers} worker(s)"),
        (
            "memory",
            f"about {(state + activations) / 2**30:.2f} GiB a worker: {state / 2**30:.2f} weights and optimizer, "
            f"{activations / 2**30:.2f} activations",
        ),
        (
            "checkpoint",
            f"{4 * parameters(net) * (copies - 1) / 2**20:.0f} MiB each, {recipe.run.keep} newest and the best kept",
        ),
        ("lr", lr_line(recipe, steps)),
        ("", lr_curve(recipe, steps)),
    ]
    if scaling.min_workers:
        lines.append(
            ("elastic", f"{scaling.min_workers} to {scaling.num_workers} workers share the same micro-batches")
        )
    if recipe.published:
        lines.insert(1, ("published", f"elsewhere: {recipe.published}"))
    if rates:
        shape = shape_of(recipe, mean, parameters(net), recipe.data.workers, num_train, num_val)
        lines += cost.lines(cost.predict(shape, rates), shape, rates)
    else:
        lines.append(("time", HOW_TO_MEASURE))
    if feed:
        fastest = macs(net, recipe.data.trained_at(0))  # small images want the most of the loaders
        lines += feeding.lines(recipe, feed, fastest, gpu_rate, multiply_adds)
    lines += [("warning", text) for text in doubts(recipe, num_train, *places(recipe.data))]
    return "\n".join(f"{label:<11}{text}" for label, text in lines)


def images_of_sizes(data: Data, steps: schedule.Steps) -> dict[int, int]:
    """Side, pixels, rising -> how many images of it a training reads."""
    whole, rest = divmod(steps.total * steps.batch, steps.num_samples)
    found: dict[int, int] = {}
    for epoch, images in [*((epoch, steps.num_samples) for epoch in range(whole)), (whole, rest)]:
        if images:
            side = data.trained_at(epoch)
            found[side] = found.get(side, 0) + images
    return found


def mean_macs(net: Backbone, data: Data, steps: schedule.Steps) -> int:
    """Multiply-adds of a training image, forward, on the mean over a training, in which sizes may grow."""
    if not data.progressive.from_size:
        return macs(net, data.size)
    images = images_of_sizes(data, steps)
    return round(sum(count * macs(net, side) for side, count in images.items()) / sum(images.values()))


def sizes(data: Data, steps: schedule.Steps, mean: int) -> str:
    """The line of the plan of a training whose images grow."""
    epochs = ", ".join(
        f"{side} px for {count / steps.num_samples:.3g} epochs" for side, count in images_of_sizes(data, steps).items()
    )
    return f"{epochs}; {_giga(mean)} multiply-adds an image on the mean"


def places(data: Data) -> tuple[str, str]:
    """Where training and validation images lie; empty where that is nowhere, or one is part of the other on purpose."""
    return (data.train, data.val) if isinstance(data, StoredData) and not data.hold_out else ("", "")


def doubts(recipe: TrainingRecipe, num_train: int, train: str = "", val: str = "") -> list[str]:
    """What is possible but hardly meant, a line each. `train` and `val`: where the images lie, if anywhere."""
    optim, steps = recipe.optim, schedule.in_steps(recipe.schedule, recipe.optim.batch, num_train)
    epochs = steps.total * optim.batch / num_train
    lines = []
    if optim.batch > num_train:
        fits = 2 ** int(math.log2(max(1, num_train // 4)))
        lines.append(
            f"optim.batch {optim.batch:,} over {num_train:,} images: a step sees images several times; "
            f"--optim.batch {fits}"
        )
    if epochs > MANY_EPOCHS:
        lines.append(
            f"{epochs:,.0f} epochs: the schedule is for more images than {num_train:,}; "
            "give one in epochs, such as --schedule.unit epochs --schedule.total 50 with schedule.kind cosine"
        )
    if isinstance(recipe, Recipe) and recipe.data.progressive.from_size:
        grows, size = recipe.data.progressive, recipe.data.size
        last = (steps.total * optim.batch - (optim.micro_batch or 1)) // num_train  # where the last micro-batch begins
        if (side := recipe.data.trained_at(last)) < size:
            earlier = f"--data.progressive.start {grows.start * last // grows.end} " if last <= grows.start else ""
            fits = f"{earlier}--data.progressive.end {last} reaches data.size {size}"
            never = f"--data.progressive.from_size 0 trains at data.size {size} alone"
            lines.append(
                f"data.progressive.end {grows.end}: training ends in epoch {last}, at {side} px; "
                f"{fits if last else never}"
            )
    if train and train == val:
        lines.append(f"data.train and data.val are both {train}: what was trained on does not test anything")
    return lines


def shape_of(
    recipe: TrainingRecipe, multiply_adds: int, num_parameters: int, loader_cores: int, num_train: int, num_val: int
) -> cost.Shape:
    """What a run asks of a cluster, of a net of so many multiply-adds an image; UserError as `first_micro_batch`.

    `num_train` 0: not known, with a schedule in iterations; evaluations are left out.
    """
    batch = recipe.optim.batch
    steps = schedule.in_steps(recipe.schedule, batch, num_train).total
    return cost.Shape(
        workers=max(1, recipe.scaling.num_workers),
        batch=batch,
        micro_batch=recipe.optim.micro_batch or first_micro_batch(recipe),
        multiply_adds=multiply_adds,
        gradient_bytes=4 * num_parameters,
        train_images=num_train,
        val_images=num_val,
        steps=steps,
        # the last is of the artifact
        evaluations=math.ceil(steps * batch / num_train / recipe.run.eval_every) + 1 if num_train else 0,
        loader_cores=loader_cores,
    )


def stored_bytes(recipe: TrainingRecipe, num_parameters: int) -> int:
    """What a finished run takes on disk: its artifact, and the checkpoints it keeps, the newest and the best."""
    return 4 * num_parameters * (1 + recipe.optim.copies * (recipe.run.keep + 1))


def _rates(recipe: TrainingRecipe, steps: schedule.Steps, at: list[int]) -> list[float]:
    events = Events(hold_end=0)  # drawn as if held for no time: how long depends on the run
    return [learning_rate(recipe.schedule, recipe.optim, steps, step, events) for step in at]


def course(recipe: TrainingRecipe, steps: schedule.Steps, micro_batch: int) -> list[tuple[str, str]]:
    """The lines of a plan that say how a training goes, whatever is trained."""
    batch, workers = recipe.optim.batch, recipe.scaling.processes
    shared = f"{micro_batch} a micro-batch x {batch // micro_batch / workers:g} accumulated x {workers} worker(s)"
    return [
        ("steps", f"{steps.total:,} of {batch} images: {steps.total * steps.batch / steps.num_samples:.1f} epochs"),
        ("precision", foretold(recipe, run_url(recipe))),
        ("batch", f"{batch} = {shared}"),
        ("lr", lr_line(recipe, steps)),
        ("", lr_curve(recipe, steps)),
    ]


def lr_line(recipe: TrainingRecipe, steps: schedule.Steps) -> str:
    optim, s = recipe.optim, recipe.schedule
    peak = f"peak {optim.peak_lr:g}"
    if optim.lr_batch and optim.lr_batch != optim.batch:
        peak += f" ({optim.lr:g} for {optim.lr_batch} images, scaled to {optim.batch})"
    parts = [peak, s.kind]
    if steps.warmup:
        parts.append(f"{steps.warmup:,} steps of warm-up")
    if s.hold_lr:
        parts.append(f"{s.hold_lr:g} until training error is below {s.hold_until_error:g} % or step {steps.hold:,}")
    marks = [f"{mark:,}" for mark in steps.milestones]
    match s:
        case PiecesSchedule():
            parts += [f"{optim.scaled(rate):g} from step {mark}" for rate, mark in zip(s.rates, marks, strict=True)]
        case StepsSchedule():
            parts.append(f"x {s.gamma:g} at steps {', '.join(marks)}")
        case PlateauSchedule():
            parts.append(f"x {s.gamma:g} after {s.patience} evaluations without improvement")
    return ", ".join(parts)


def lr_curve(recipe: TrainingRecipe, steps: schedule.Steps, columns: int = 60) -> str:
    columns = min(columns, steps.total)
    rates = _rates(recipe, steps, [i * steps.total // columns for i in range(columns)])
    return "".join(BARS[min(7, int(rate / max(rates) * 7.999))] for rate in rates)


def _giga(count: float) -> str:
    for factor, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if count >= factor:
            return f"{count / factor:.3f} {unit}"
    return f"{count / 1e6:.3f} M"
