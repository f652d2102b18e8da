"""What a recipe will do, before it does it: `--dry-run`."""

from backbone.nets.count import parameters
from backbone.training import schedule
from backbone.training.plan import course, doubts
from backbone.training.run import check_split, first_micro_batch, run_url
from detection.data.contract import DetectionSource
from detection.data.options import DetectionAugment
from detection.data.share import Share
from detection.data.sources import judged_on_trained, open_sources
from detection.finetune import begin, build_detector, check_ground_truth, load_backbone, mask_doubts
from detection.nets import summary
from detection.recipe import Finetune


def describe(recipe: Finetune) -> str:
    """The plan of a run as text.

    Raises:
        UserError: as `detection.finetune.prepare`, but for the storage.
    """
    net, inputs, block = load_backbone(recipe)
    train, val = open_sources(recipe.data, recipe.semantic)
    check_ground_truth(val)
    micro_batch = recipe.optim.micro_batch or first_micro_batch(recipe)
    recipe = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"micro_batch": micro_batch})})
    check_split(recipe)
    detector = build_detector(recipe, net, train)
    taken = begin(recipe, detector, train)
    steps = schedule.in_steps(recipe.schedule, recipe.optim.batch, len(train))
    classes = len(train.categories)
    metrics = block["provenance"].get("metrics", {})
    worth = f", {100 - metrics['val_error']:.1f} % top-1" if "val_error" in metrics else ""
    weights = "new weights" if recipe.from_scratch else f"weights {block['weights_sha256'][:12]}{worth}"
    data = recipe.data
    side = (
        " or ".join(map(str, data.shorter_side))
        if len(data.shorter_side) < 4
        else (f"{min(data.shorter_side)} to {max(data.shorter_side)}")
    )
    lines = [
        ("run", run_url(recipe)),
        *([("published", f"elsewhere: {recipe.published}")] if recipe.published else []),
        ("backbone", f"{net.options.name} of {recipe.backbone or recipe.from_detector}: {weights}"),
        *([("start", taken.told(classes))] if taken else []),
        ("inputs", f"{inputs.channel_order}, mean {_short(inputs.mean)}, deviation {_short(inputs.std)}"),
        ("detector", f"{recipe.title}, {classes} classes: {parameters(detector):,} parameters"),
        ("policy", summary(detector)),
        ("images", f"{_counted(train)} training with {train.num_objects().sum():,} objects, {len(val):,} validation"),
        ("size", f"shorter side {side}, longer side up to {data.longer_side} pixels"),
        *([("jitter", jitter_line(data.augment))] if data.augment.canvas else []),
        *course(recipe, steps, micro_batch),
        *[("warning", text) for text in judged_on_trained(recipe.data, train, val)],
        *[("warning", text) for text in doubts(recipe, len(train))],
        *[("warning", text) for text in (*recipe.norm_doubts(micro_batch), *mask_doubts(recipe, val))],
    ]
    return "\n".join(f"{label:<11}{text}" for label, text in lines)


def jitter_line(augment: DetectionAugment) -> str:
    """What large-scale jitter does in place of `size`."""
    low, high = augment.scales
    return (
        f"trained in {augment.canvas}x{augment.canvas} at {low:g} to {high:g} times what fits; the size is evaluation's"
    )


def _counted(train: DetectionSource) -> str:
    return train.told() if isinstance(train, Share) else f"{len(train):,}"


def _short(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
