"""Localisation: what the job prepares on the driver, what every worker runs, what comes out. The loop is
`backbone.training.engine`'s; here is its task.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backbone import artifact as backbones
from backbone.cli import validate
from backbone.data.batches import TrainSet
from backbone.data.loader import train_loader
from backbone.data.options import Loading, StoredData
from backbone.data.resident import Resident
from backbone.data.sources import remarks
from backbone.data.stream import MicroBatches, mix
from backbone.errors import UserError
from backbone.evaluate.protocols import Member
from backbone.inputs import InputConvention
from backbone.job import Job
from backbone.nets import Backbone
from backbone.nets.count import parameters
from backbone.provenance import code, environment
from backbone.storage import filesystem, join, write_folder
from backbone.training import engine, schedule
from backbone.training.curves import Measure, draw_curves
from backbone.training.memory import out_of_memory_is_final, smaller_micro_batch
from backbone.training.precision import settle
from backbone.training.ray_train import Payload
from backbone.training.recipe import recipe_hash
from backbone.training.run import open_run, results_of, run_url
from backbone.training.state import Progress, Store
from backbone.training.world import Report, World
from detection.localisation import artifact
from detection.localisation.judge import DENSE, ONE_CROP, Guess, errors, guess, images_of, protocols
from detection.localisation.net import Localiser, build, losses
from detection.localisation.paper import beside
from detection.localisation.picture import draw_guesses
from detection.localisation.recipe import Localise
from detection.localisation.sources import LocatedSource, open_located
from detection.nets.policy import count_norms

KEPT = 0.25  # part of an object that a crop must leave for it to be one; the paper does not say

CURVES = (
    Measure("val_error", "own class", "#08519c"),
    Measure("val_top5", "five predicted classes", "#a63603"),
)


@dataclass(frozen=True)
class Localising(Payload):
    """What `localise` needs."""

    recipe: Localise


def prepare(recipe: Localise, say: Callable[[str], None] = print) -> Localising:
    """Check everything that can be checked before workers start.

    Raises:
        UserError: a classifier that does not verify or lacks classes of the data, bad data, an impossible localiser or
            split, storage that cannot be used, another run under this name.
    """
    net, inputs, block = backbones.load(recipe.backbone)
    loading(recipe, inputs)
    train, val = open_located(recipe.data, inputs.size)
    classes_of((train, val), block["classes"], recipe)
    for split, source in (("train", train), ("val", val)):
        for line in remarks(source):
            say(f"data.{split}: {line}")
    localiser = build_localiser(recipe, net)
    fingerprints = {
        "backbone": block["weights_sha256"],
        "train data": train.fingerprint,
        "val data": val.fingerprint,
    }
    recipe = open_run(recipe, fingerprints, 4 * parameters(localiser) * recipe.optim.copies)
    frozen, trained = count_norms(localiser)
    say(
        f"localiser on {recipe.localiser.stage} of {net.options.name}, {net.num_classes:,} classes x {localiser.each} "
        f"anchors: {parameters(localiser):,} parameters, {frozen} norms frozen, {trained} trained"
    )
    return Localising(run_url(recipe), recipe)


def finished(url: str) -> dict[str, Any] | None:
    """The results of a run that already ended; None while it has not."""
    return results_of(url, "results.json")


@out_of_memory_is_final(lambda payload: smaller_micro_batch(payload.recipe.optim))
def localise(payload: Localising, world: World, report: Report) -> dict[str, Any]:
    """What every worker runs: train, judge, and on the first rank write artifact and results, which come back."""
    recipe = settle(payload.recipe, payload.url, world, report)
    code()  # as it is now, and not when training has ended
    task = Localisation(recipe, world)
    model, progress = engine.train(task, recipe, world, Store(join(payload.url, "checkpoints")), report)
    assert isinstance(model, Localiser)
    judged = [(name, *task.judge(model.eval(), name)) for name in (ONE_CROP, DENSE)]
    results: list[dict[str, Any]] = [{"protocol": name, **found} for name, found, _ in judged]
    for row in results:
        row["paper"] = beside(row["protocol"])
    record = {"results": results, "provenance": {}}
    guesses = [one for part in world.gather(judged[-1][2]) for one in part]
    if world.is_first:
        record["provenance"] = write_results(payload.url, recipe, task, model, progress, results, guesses)
    return world.gather(record)[0]


LOCALISE = Job(prepare, localise, finished, run_url)


def write_results(
    url: str,
    recipe: Localise,
    task: "Localisation",
    model: Localiser,
    progress: Progress,
    results: list[dict[str, Any]],
    guesses: Sequence[Guess],
) -> dict[str, Any]:
    """Results with every guess of dense testing, pictures, curves, history, and last the artifact, which marks a
    finished run. Returns their provenance."""
    fs, path = filesystem(url)
    steps = schedule.in_steps(recipe.schedule, recipe.optim.batch, task.num_samples)
    exported = progress.best_step if recipe.run.export == "best" else progress.step
    provenance = {
        "recipe": recipe.model_dump(mode="json"),
        "recipe_hash": recipe_hash(recipe),
        "backbone": {"weights_sha256": task.about["weights_sha256"], "provenance": task.about["provenance"]},
        "data": {"train": task.train_source.fingerprint, "val": task.val_source.fingerprint},
        "train_images": task.num_samples,
        "steps": exported,
        "epochs": exported * steps.batch / steps.num_samples,
        "workers": task.world.size,
        "bad_images": progress.bad,
    }
    classes = task.about["classes"]
    told = [
        {
            "image": task.val_source.name(one.image),
            "class": classes[task.val_targets[one.image]],
            "truth": task.val_source.boxes(one.image).tolist(),
            "own_class_box": one.true_box.round(2).tolist(),
            "guesses": [
                {"class": classes[label], "probability": round(sure, 4), "box": box}
                for label, sure, box in zip(one.labels, one.probabilities, one.boxes.round(2).tolist(), strict=True)
            ],
        }
        for one in guesses
    ]
    record = {"results": results, "provenance": provenance | environment()}
    files = {
        "guesses.json": (json.dumps(told, indent=1) + "\n").encode(),
        "pictures.png": draw_guesses(guesses, task.val_source, task.val_targets, classes, recipe.pictures),
        "results.json": (json.dumps(record, indent=2) + "\n").encode(),
    }
    write_folder(join(url, "results"), files, "results")
    fs.pipe_file(join(path, "history.json"), json.dumps(progress.history).encode())
    curves = draw_curves(progress.history, recipe.run_name, CURVES, "localisation error, 1-crop (%)")
    fs.pipe_file(join(path, "curves.png"), curves)
    artifact.save(join(url, "artifact"), model, task.inputs, tuple(classes), {**provenance, "metrics": results})
    return record["provenance"]


@dataclass
class Localisation:
    """The engine's task: images and their classes to boxes."""

    recipe: Localise
    world: World

    def __post_init__(self) -> None:
        recipe = self.recipe
        net, self.inputs, self.about = backbones.load(recipe.backbone)
        self.train_source, self.val_source = open_located(recipe.data, self.inputs.size)
        self.train_targets, self.val_targets = classes_of(
            (self.train_source, self.val_source), self.about["classes"], recipe
        )
        self.model = build_localiser(recipe, net)
        net = net.to(self.world.device).eval()
        if recipe.compute.channels_last:
            net.to(memory_format=torch.channels_last)
        self.classifier = Member(net, self.inputs, recipe.backbone)
        red, green, blue = (round(255 * channel) for channel in self.inputs.mean)
        self.train = TrainSet(self.train_source, loading(recipe, self.inputs), recipe.seed, (red, green, blue))
        self.num_samples, self.max_bad = len(self.train_source), recipe.data.max_bad
        self.views = protocols(recipe.scales, self.classifier)
        self.inputs.prepare(self.world.device)
        self._one_crop = images_of(
            self.val_source,
            [self.views[ONE_CROP]],
            self.world,
            recipe.eval_batch,
            recipe.data.workers,
            recipe.data.on_bad,
        )

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Of each image, and the sums of its two parts."""
        images = self.inputs.normalize(batch["images"])
        if self.recipe.compute.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits, deltas = self.model(images, batch["classes"][:, None])
        anchors = self.model.anchors(*(int(side) for side in images.shape[-2:]))
        score, box = losses(logits[:, 0], deltas[:, 0], anchors, batch["boxes"], batch["counts"], self.recipe.localiser)
        return score + box, {"loss_score": score.sum(), "loss_box": box.sum()}

    def batches(self, micro_batches: MicroBatches) -> Iterator[Any]:
        """This rank's training batches, with the boxes as they lie in the crops."""
        for batch in train_loader(self.train, micro_batches, self.world.device, self._resident):
            yield {**batch, **self.located(batch["samples"], batch["position"])}

    @cached_property
    def _resident(self) -> Resident | None:
        if not self.recipe.data.resident:
            return None
        return Resident(self.train, self.world.device, 0, self.world.is_first)

    def located(self, images: Sequence[int], position: int) -> dict[str, Tensor]:
        """`classes` int64 [N], `boxes` float32 [N, G, 4] in pixels of the crops, those of image n first, and `counts`
        int64 [N] of training images of these numbers, the first of which is at `position` of the stream.

        What a crop leaves less than a quarter of is no object of it.
        """
        rows = []
        for after, image in enumerate(images):
            epoch = (position + after) // self.num_samples
            height, width = self.train_source.sides[image].tolist()
            key = mix(self.recipe.seed, epoch, image)
            place = self.train.view.place(height, width, key)
            whole = place.into_view(self.train_source.boxes(image))
            seen = place.seen(whole)
            shares = (seen[:, 2:] - seen[:, :2]).prod(1) / (whole[:, 2:] - whole[:, :2]).prod(1)
            rows.append(seen[shares >= KEPT])
        boxes = np.zeros((len(rows), max(1, *map(len, rows)), 4), np.float32)
        for box, row in zip(boxes, rows, strict=True):
            box[: len(row)] = row
        return {
            "classes": torch.from_numpy(self.train_targets[np.asarray(images)]),
            "boxes": torch.from_numpy(boxes),
            "counts": torch.tensor([len(row) for row in rows]),
        }

    def blame(self, position: int) -> str:
        """File name of the sample at this position."""
        return f"sample {self.train_source.name(self.train.stream[position][1])}"

    def evaluate(self, model: nn.Module, world: World) -> dict[str, float]:
        """By one crop, percent: `error` with the image's own class, `top1` and `top5` with predicted ones."""
        found, _ = self.judge(model, ONE_CROP)
        kept = {name: found[name] for name in ("top1", "top5", "images")}
        return {"error": found["own_class"], **kept}

    def judge(self, model: nn.Module, protocol: str) -> tuple[dict[str, Any], list[Guess]]:
        """See `judge.errors`, and this rank's guesses. All ranks call it."""
        assert isinstance(model, Localiser)
        recipe, view = self.recipe, self.views[protocol]
        batches: Iterable[Any] = self._one_crop
        if protocol != ONE_CROP:
            data = recipe.data
            batches = images_of(self.val_source, [view], self.world, recipe.eval_batch, data.workers, data.on_bad)
        with engine.autocast(recipe.compute, self.world.device):
            found, bad = guess(
                model,
                self.classifier,
                self.val_targets,
                batches,
                view,
                0,
                recipe.eval_batch,
                recipe.compute.channels_last,
            )
        return errors(found, self.val_source, self.val_targets, self.world, bad), found


def build_localiser(recipe: Localise, net: Backbone) -> Localiser:
    """The recipe's localiser, the same first weights of its layers on every rank; UserError as `build`."""
    torch.manual_seed(mix(recipe.seed, 3) >> 1)
    return build(recipe.localiser, net, net.num_classes)


def loading(recipe: Localise, inputs: InputConvention) -> StoredData:
    """How training images are loaded: as the classifier's, at its size.

    Raises:
        UserError: the augmentation does not fit that size.
    """
    tree = {field: getattr(recipe.data, field) for field in Loading.model_fields if field != "source"}
    tree |= {"source": "imagefolder", "train": "-", "val": "-", "size": inputs.size, "crop_pct": inputs.crop_pct}
    return validate(StoredData, tree, "data, at the size of the classifier")


def classes_of(sources: Sequence[LocatedSource], names: Sequence[str], recipe: Localise) -> list[np.ndarray]:
    """The net's class of each image of the sources, the first of which is the training data: int64 [N] each.

    Raises:
        UserError: the data hold classes that the net lacks.
    """
    known = sources[0].classes if recipe.by_position else tuple(names)
    place = {name: k for k, name in enumerate(known)}
    unknown = [name for name in sources[0].classes if name not in place]
    if unknown or len(known) > len(names):
        raise UserError(
            f"data.train has {len(sources[0].classes)} classes, of which {recipe.backbone} lacks "
            f"{len(unknown) or len(known) - len(names)} ({', '.join(unknown[:5])}); --by_position true takes label k "
            "for class k"
        )
    return [np.array([place[name] for name in source.classes])[source.labels] for source in sources]
