"""Fine-tuning: what the job prepares on the driver, what every worker runs, what comes out. The loop is
`backbone.training.engine`'s; here is its task.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from backbone import artifact as backbones
from backbone.data.index import digest
from backbone.data.sources import check_readable
from backbone.data.stream import MicroBatches, mix, share
from backbone.errors import UserError
from backbone.inputs import InputConvention
from backbone.job import Job
from backbone.nets import Backbone
from backbone.nets import build as build_backbone
from backbone.nets.count import macs, parameters
from backbone.nets.meta import on_meta
from backbone.options import AnyNet, NetOptions, net_options
from backbone.provenance import code, environment
from backbone.storage import filesystem, join
from backbone.training import engine, schedule
from backbone.training.curves import Measure, draw_curves
from backbone.training.memory import cured, out_of_memory_is_final, smaller_eval_batch, smaller_micro_batch
from backbone.training.opening import open_together
from backbone.training.plan import doubts
from backbone.training.precision import settle
from backbone.training.recipe import recipe_hash
from backbone.training.run import first_micro_batch, open_run, results_of, run_url
from backbone.training.state import Progress, Store
from backbone.training.world import Payload, Report, World
from detection import artifact, scoring, semantic
from detection.called import may_be_called
from detection.data.contract import DetectionSource
from detection.data.loader import Batch, EvalSet, SemanticTrainSet, TrainSet, eval_loader, targets, train_loader
from detection.data.sources import judged_on_trained, open_sources, remarks
from detection.evaluate import detect_batches
from detection.forward import prepared
from detection.initial import Taken, fill
from detection.nets import Detector, Rcnn, build, summary
from detection.recipe import Finetune

CURVES = (
    Measure("val_AP", "AP", "#08519c"),
    Measure("val_AP50", "AP50", "#9ecae1"),
    Measure("val_AP_masks", "AP, masks", "#a63603"),
    Measure("val_AP50_masks", "AP50, masks", "#fdae6b"),
    Measure("val_mIoU", "mIoU", "#08519c"),
    Measure("val_accuracy", "pixel accuracy", "#9ecae1"),
)


def load_backbone(recipe: Finetune) -> tuple[Backbone, InputConvention, dict[str, Any]]:
    """The recipe's verified backbone, its input convention and what its artifact says; from scratch: `scratch_net` with
    new weights drawn from the seed, and the net that it is in place of the artifact's. From a detector: its net, whose
    weights come with all the others, see `begin`.

    Raises:
        UserError: it is not such an artifact, or not an intact one.
    """
    if recipe.from_detector:
        old = artifact.load(recipe.from_detector)
        return build_backbone(net_options(old.block["net"]), 1), old.inputs, {**old.block, "classes": ["none"]}
    net, inputs, block = backbones.load(recipe.backbone)
    inputs = replace(inputs, mean_image=None)  # of whole images of one size; a batch may have that size by chance
    if recipe.from_scratch:
        options = scratch_net(net_options(block["net"]), recipe.detector.norm)
        torch.manual_seed(mix(recipe.seed, 1) >> 1)
        net = build_backbone(options, net.num_classes)
        block = {**block, "net": options.model_dump(mode="json")}
    return net, inputs, block


def scratch_net(options: AnyNet, norm: str) -> AnyNet:
    """The net that trains from scratch under `detector.norm`: every option of the given one, but for the norms.

    Nets of other libraries keep theirs, but for batch norm that gives way to group norm.
    """
    if not isinstance(options, NetOptions):
        grouped = norm == "group" and options.norm == "batch"
        return options.model_copy(update={"norm": "group"}) if grouped else options
    if norm == "group":
        return options.model_copy(update={"norm": "group", "bn_group": 0})
    return options if options.norm == "batch" else options.model_copy(update={"norm": "batch"})


@dataclass(frozen=True)
class Finetuning(Payload):
    """What `finetune` needs."""

    recipe: Finetune


def prepare(recipe: Finetune, say: Callable[[str], None] = print) -> Finetuning:
    """Check everything that can be checked before workers start.

    `say` is told what takes long.

    Raises:
        UserError: a backbone that does not verify, bad data, an impossible detector or split, storage that cannot be
            used, another run under this name.
    """
    net, inputs, block = load_backbone(recipe)
    train, val = open_sources(recipe.data, recipe.semantic)
    detector = build_detector(recipe, net, train)
    taken = begin(recipe, detector, train)
    check_ground_truth(val)
    check_readable(val)
    for split, source in (("train", train), ("val", val)):
        for line in remarks(source):
            say(f"data.{split}: {line}")
    unit = recipe.optim.micro_batch or first_micro_batch(recipe)
    doubtful = [*doubts(recipe, len(train)), *recipe.norm_doubts(unit)]
    for line in [*judged_on_trained(recipe.data, train, val), *doubtful, *mask_doubts(recipe, val)]:
        say(f"warning: {line}")
    dropped = ", ".join(f"{count:,} {what}" for what, count in train.dropped.items() if count)
    if dropped:
        say(f"left out of training: {dropped}")
    proposer = load_proposer(recipe, inputs)
    convention = inputs.channel_order, inputs.mean, inputs.std
    fingerprints = {
        # From scratch the weights do not matter, but net and input convention do.
        "backbone": digest(block["net"], *convention) if recipe.from_scratch else block["weights_sha256"],
        "train data": train.fingerprint,
        "val data": val.fingerprint,
        **({"proposals": proposer.block["weights_sha256"]} if proposer else {}),
    }
    state_bytes = 4 * parameters(detector) * recipe.optim.copies
    recipe = open_run(recipe, fingerprints, state_bytes)
    is_scaled = recipe.optim.lr_batch not in (0, recipe.optim.batch)
    scaled = f", {recipe.optim.lr:g} for {recipe.optim.lr_batch} images scaled" if is_scaled else ""
    if taken:
        say(f"from {recipe.from_detector}: {taken.told(len(train.categories))}")
    say(f"{recipe.title} on {net.options.name}: {summary(detector)}")
    say(f"learning rate {recipe.optim.peak_lr:g} for {recipe.optim.batch} images a step{scaled}")
    return Finetuning(run_url(recipe), recipe, seen=(train.fingerprint, val.fingerprint))


def check_ground_truth(source: DetectionSource) -> None:
    """UserError where there is nothing to judge against: every AP would be undefined."""
    if not source.num_objects().sum():
        raise UserError(
            "data.val: no objects at all, so nothing can be judged; look at the annotations with the doctor"
        )


def finished(url: str) -> dict[str, Any] | None:
    """The results of a run that already ended; None while it has not."""
    return results_of(url, "metrics.json")


@out_of_memory_is_final(lambda payload: smaller_micro_batch(payload.recipe.optim))
def finetune(payload: Finetuning, world: World, report: Report) -> dict[str, Any]:
    """What every worker runs: train, judge, and on the first rank write artifact and results.

    Returns the metrics (see `detection.scoring`), on every rank.
    """
    recipe = settle(payload.recipe, payload.url, world, report)
    code()  # as it is now, and not when training has ended
    train, val = open_together(lambda: open_sources(recipe.data, recipe.semantic), world, report, payload.seen)
    task = Detection(recipe, train, val, world)
    store = Store(join(payload.url, "checkpoints"))
    model, progress = engine.train(task, recipe, world, store, report)
    assert isinstance(model, Detector)
    scored = task.scored_before(model, world) or task.score(model.eval(), world)
    if world.is_first:
        write_results(payload.url, recipe, task, model, progress, scored)
    return scored.metrics


FINETUNE = Job(prepare, finetune, finished, run_url)


def write_results(
    url: str,
    recipe: Finetune,
    task: "Detection",
    model: Detector,
    progress: Progress,
    scored: scoring.Scored,
) -> None:
    """Results, curves, history, and last the artifact, which marks a finished run."""
    fs, path = filesystem(url)
    steps = schedule.in_steps(recipe.schedule, recipe.optim.batch, task.num_samples)
    exported = progress.best_step if recipe.run.export == "best" else progress.step
    provenance = {
        "recipe": recipe.model_dump(mode="json"),
        "recipe_hash": recipe_hash(recipe),
        "backbone": {
            "net": task.backbone["net"],
            "weights_sha256": None if recipe.from_scratch else task.backbone["weights_sha256"],
            "provenance": task.backbone["provenance"],
        },
        **({"from_detector": {"url": recipe.from_detector, **asdict(task.taken)}} if task.taken else {}),
        "cost": {
            "parameters": parameters(model),
            "backbone_macs": macs(task.net_on_meta(), recipe.data.shorter_side[-1]),
        },
        "data": {"train": task.train.source.fingerprint, "val": task.val.source.fingerprint},
        "train_images": task.num_samples,
        "steps": exported,
        "epochs": exported * steps.batch / steps.num_samples,
        "workers": task.world.size,
        "bad_images": progress.bad,
    }
    scoring.write(join(url, "results"), scored, {**provenance, **environment()})
    fs.pipe_file(join(path, "history.json"), json.dumps(progress.history).encode())
    fs.pipe_file(join(path, "curves.png"), draw_curves(progress.history, recipe.run_name, CURVES, "%, validation"))
    sides = (recipe.data.shorter_side[-1], recipe.data.longer_side)
    provenance["metrics"] = scored.metrics
    artifact.save(join(url, "artifact"), model, task.inputs, task.categories, sides, provenance)


@dataclass
class Detection:
    """The engine's task: images to boxes, classes and masks."""

    recipe: Finetune
    train_source: DetectionSource
    val_source: DetectionSource
    world: World

    def __post_init__(self) -> None:
        recipe = self.recipe
        net, self.inputs, self.backbone = load_backbone(recipe)
        self.model = build_detector(recipe, net, self.train_source)
        self.taken = begin(recipe, self.model, self.train_source)
        self.categories = self.train_source.categories
        proposer = load_proposer(recipe, self.inputs)
        self.proposer = proposer and proposer.detector.to(self.world.device).eval()
        optim = recipe.optim
        red, green, blue = (round(255 * channel) for channel in self.inputs.mean)
        sizes = optim.batch, optim.micro_batch
        masks, colour = recipe.detector.masks, (red, green, blue)
        made = SemanticTrainSet if recipe.semantic else TrainSet
        self.train = made(self.train_source, recipe.data, recipe.seed, *sizes, masks, colour)
        self.val = EvalSet(self.val_source, recipe.data)
        self.num_samples, self.max_bad = len(self.train_source), recipe.data.max_bad
        self._pin = self.world.device.type == "cuda"
        mine = share(len(self.val_source), self.world.rank, self.world.size)
        self._eval_loader = eval_loader(self.val, mine, recipe.eval_batch, self._pin)
        self._scored: tuple[str, scoring.Scored] | None = None

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The detector's losses added up. They are means over what was sampled of all images of the micro-batch (kind
        semantic: over their pixels), so every image of it carries the same."""
        wanted = (
            [{"classes": each} for each in batch["classes"]] if self.recipe.semantic else targets(cast(Batch, batch))
        )
        given = prepared(self.inputs, batch, self.recipe.compute.channels_last), batch["sides"], wanted
        proposals = {} if self.proposer is None else {"proposals": cast(Rcnn, self.proposer).propose(*given)}
        parts = self.model(*given, **proposals)
        count = len(batch["images"])
        total = torch.stack(list(parts.values())).sum()
        return total.expand(count), {name: value * count for name, value in parts.items()}

    def net_on_meta(self) -> Backbone:
        """The whole backbone without memory, to count on."""
        with on_meta():
            return build_backbone(net_options(self.backbone["net"]), len(self.backbone["classes"]))

    def batches(self, micro_batches: MicroBatches) -> Iterable[Any]:
        """This rank's training batches."""
        return train_loader(self.train, micro_batches, self.world.device)

    def blame(self, position: int) -> str:
        """The images of the micro-batch this position lies in: they share one loss."""
        unit = self.recipe.optim.micro_batch
        positions = range(position // unit * unit, (position // unit + 1) * unit)
        return f"images {', '.join(self.train_source.name(self.train.stream[p][1]) for p in positions)}"

    def evaluate(self, model: nn.Module, world: World) -> dict[str, float]:
        """AP, AP50 and AP75 over all validation images, percent, and `error`, 100 - AP; of kind semantic mIoU and pixel
        accuracy, and 100 - mIoU."""
        self._scored = None  # it is large: free it before there is another
        scored = self.score(model, world)
        self._scored, metrics = (weights_digest(model), scored), scored.metrics
        if self.recipe.semantic:
            found = {name: 100 * metrics[semantic.SECTION][name] for name in ("mIoU", "accuracy")}
            return {"error": 100 - found["mIoU"], **found, "images": metrics["images"]}
        found = {}
        for kind, suffix in (("bbox", ""), ("segm", "_masks")):
            if kind in metrics:
                found |= {name + suffix: 100 * metrics[kind][name] for name in ("AP", "AP50", "AP75")}
        return {"error": 100 - found["AP_masks" if "segm" in metrics else "AP"], **found, "images": metrics["images"]}

    def scored_before(self, model: nn.Module, world: World) -> scoring.Scored | None:
        """What the last `evaluate` saw, if it was of these very weights and statistics on all ranks, which call it."""
        same = self._scored is not None and self._scored[0] == weights_digest(model)
        return self._scored[1] if all(world.gather(same)) and self._scored else None

    def score(self, model: nn.Module, world: World) -> scoring.Scored:
        """Everything there is to say of a detector's detections on the validation images. All ranks call it."""
        context = engine.autocast(self.recipe.compute, world.device)
        short_of_memory = cured(lambda: smaller_eval_batch(self.recipe.eval_batch), world.device)
        if self.recipe.semantic:
            with short_of_memory:
                seen, bad = semantic.segment_batches(
                    model, self.inputs, self._eval_loader, self.val_source, world.device, context
                )
            return semantic.gather_and_score(seen, self.val_source, world, bad)
        with short_of_memory:
            mine, bad = detect_batches(
                model, self.inputs, self._eval_loader, self.val_source.image_ids, world.device, context
            )
        return scoring.gather_and_score(mine, self.val_source, world, bad)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over all parameters and buffers, hexadecimal."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.cpu().contiguous().numpy())
    return found.hexdigest()


def mask_doubts(recipe: Finetune, val: DetectionSource) -> list[str]:
    """Says that masks will not be judged, where that is so."""
    if not recipe.detector.masks or val.has_masks:
        return []
    return [
        "data.val: not every object has a segmentation, so that masks are not judged, and the best checkpoint is that "
        "of boxes; jobs/doctor.py --source coco names those without: complete or remove them"
    ]


def build_detector(recipe: Finetune, net: Backbone, train: DetectionSource) -> Detector:
    """The recipe's detector for the classes of `train`, the same first weights of its heads on every rank.

    Raises:
        UserError: it does not fit the net, or wants masks that the annotations lack.
    """
    if recipe.detector.masks and not train.has_masks:
        named = "jobs/doctor.py --source coco names those without: " if recipe.data.source == "coco" else ""
        raise UserError(
            f"detector.masks: not every object of data.train has a segmentation; {named}complete or remove them, or "
            "set detector.masks false"
        )
    if recipe.data.augment.paste and not train.has_masks:
        raise UserError(
            "data.augment.paste: not every object of data.train has a segmentation to cut by; complete or remove "
            "those, or set it to 0"
        )
    torch.manual_seed(mix(recipe.seed, 2) >> 1)
    detector = build(recipe.detector, net, len(train.categories))
    if isinstance(detector, Rcnn) and recipe.train != "joint":
        detector.train_only(recipe.train)
    return detector


def load_proposer(recipe: Finetune, inputs: InputConvention) -> artifact.Loaded | None:
    """The detector that `proposals` names, verified; None where none is.

    Raises:
        UserError: it has no proposals, or wants images otherwise.
    """
    if not recipe.proposals:
        return None
    loaded = artifact.load(recipe.proposals)
    if not isinstance(loaded.detector, Rcnn):
        raise UserError(f"proposals {recipe.proposals}: is of kind {loaded.detector.options.kind}, which has none")
    theirs, ours = ((one.channel_order, one.mean, one.std) for one in (loaded.inputs, inputs))
    if theirs != ours:
        raise UserError(f"proposals {recipe.proposals}: reads images as {theirs}, the backbone as {ours}")
    return loaded


def begin(recipe: Finetune, detector: Detector, train: DetectionSource) -> Taken | None:
    """Give a detector the weights of the one it goes on from, where the recipe names one; UserError as `fill`."""
    if not recipe.from_detector:
        return None
    return fill(detector, train.categories, artifact.load(recipe.from_detector), recipe)


may_be_called(__name__)  # `detection.finetune(recipe)`
