"""What a localiser is trained on and judged by: the engine's task."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
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
from backbone.data.stream import MicroBatches, mix
from backbone.errors import UserError
from backbone.evaluate.protocols import Member
from backbone.inputs import InputConvention
from backbone.nets import Backbone
from backbone.training import engine
from backbone.training.memory import cured, smaller_eval_batch
from backbone.training.opening import open_together
from backbone.training.world import Report, World
from detection.localisation.judge import ONE_CROP, Guess, Step, errors, guess, images_of, protocols
from detection.localisation.net import Localiser, build, losses
from detection.localisation.rcnn import RegionNet, build_regions
from detection.localisation.recipe import Localise, LocaliserOptions
from detection.localisation.sources import LocatedSource, open_located

KEPT = 0.25  # part of an object that a crop must leave for it to be one; the paper does not say


@dataclass
class Localisation:
    """The engine's task: images and their classes to boxes."""

    recipe: Localise
    world: World
    report: Report
    seen: tuple[str, ...] = field(default=(), kw_only=True)
    """See `Payload.seen`."""

    def __post_init__(self) -> None:
        recipe = self.recipe
        net, self.inputs, self.about = backbones.load(recipe.backbone)
        self.train_source, self.val_source = open_together(
            lambda: open_located(recipe.data, self.inputs.size), self.world, self.report, self.seen
        )
        self.train_targets, self.val_targets = classes_of(
            (self.train_source, self.val_source), self.about["classes"], recipe
        )
        self.model = build_model(recipe, net)
        net = net.to(self.world.device).eval()
        if recipe.compute.channels_last:
            net.to(memory_format=torch.channels_last)
        self.classifier = Member(net, self.inputs, recipe.backbone)
        self.train = self.train_set()
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

    @property
    def origin(self) -> dict[str, Any]:
        """What the artifact's provenance says beside what it says of every localiser."""
        return {}

    def train_set(self) -> TrainSet:
        """What is trained on: crops, as the classifier's."""
        return TrainSet(
            self.train_source, loading(self.recipe, self.inputs), self.recipe.seed, mean_colour(self.inputs)
        )

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Of each image, and the sums of its two parts."""
        images = self.inputs.normalize(batch["images"])
        if self.recipe.compute.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        assert isinstance(self.model, Localiser)
        assert isinstance(self.recipe.localiser, LocaliserOptions)
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

    def steps(self, model: nn.Module) -> tuple[Localiser, Step | None]:
        """What gives the first boxes, and what moves them."""
        assert isinstance(model, Localiser)
        return model, None

    def judge(self, model: nn.Module, protocol: str) -> tuple[dict[str, Any], list[Guess]]:
        """See `judge.errors`, and this rank's guesses. All ranks call it."""
        localiser, step = self.steps(model)
        recipe, view = self.recipe, self.views[protocol]
        batches: Iterable[Any] = self._one_crop
        if protocol != ONE_CROP:
            data = recipe.data
            batches = images_of(self.val_source, [view], self.world, recipe.eval_batch, data.workers, data.on_bad)
        short_of_memory = cured(lambda: smaller_eval_batch(recipe.eval_batch), self.world.device)
        with short_of_memory, engine.autocast(recipe.compute, self.world.device):
            found, bad = guess(
                localiser,
                self.classifier,
                self.val_targets,
                batches,
                view,
                0,
                recipe.eval_batch,
                recipe.compute.channels_last,
                step,
            )
        return errors(found, self.val_source, self.val_targets, self.world, bad), found


def build_model(recipe: Localise, net: Backbone) -> Localiser | RegionNet:
    """The recipe's net, the same first weights of its layers on every rank; UserError as `build` or `build_regions`."""
    torch.manual_seed(mix(recipe.seed, 3) >> 1)
    if isinstance(recipe.localiser, LocaliserOptions):
        return build(recipe.localiser, net, net.num_classes)
    return build_regions(recipe.localiser, net, net.num_classes)


def mean_colour(inputs: InputConvention) -> tuple[int, int, int]:
    """What is shown where there is no image."""
    red, green, blue = (round(255 * channel) for channel in inputs.mean)
    return red, green, blue


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
    if recipe.by_position and len(known) < len(names):
        raise UserError(
            f"by_position: data.train shows {len(known)} classes and {recipe.backbone} has {len(names)}, so that label "
            "k need not be class k; give a list that shows all of them, or a backbone whose classes are called as the "
            "data's"
        )
    unknown = [name for name in sources[0].classes if name not in place]
    if unknown or len(known) > len(names):
        raise UserError(
            f"data.train has {len(sources[0].classes)} classes, of which {recipe.backbone} lacks "
            f"{len(unknown) or len(known) - len(names)} ({', '.join(unknown[:5])}); --by_position true takes label k "
            "for class k"
        )
    return [np.array([place[name] for name in source.classes])[source.labels] for source in sources]
