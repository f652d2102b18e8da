"""Pretraining: what the job prepares on the driver, what every worker runs, what comes out."""

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from backbone import artifact
from backbone.data.augment import blend
from backbone.data.batches import TrainSet, ValSet, evaluation_batches
from backbone.data.formats import some
from backbone.data.holdout import hold_out
from backbone.data.loader import train_loader, val_loader
from backbone.data.options import Data, ModernAugment, PaperAugment, Progressive, SyntheticData
from backbone.data.resident import Resident
from backbone.data.sources import (
    Source,
    check_classes,
    check_readable,
    check_splits,
    in_both,
    none_readable,
    open_source,
    remarks,
)
from backbone.data.stream import MicroBatches, share
from backbone.data.synthetic import SyntheticSource
from backbone.errors import UserError
from backbone.inputs import InputConvention
from backbone.job import Job
from backbone.nets import Backbone, build
from backbone.nets.count import parameters
from backbone.nets.meta import on_meta
from backbone.provenance import code
from backbone.storage import filesystem, join, replace_file
from backbone.training import engine, schedule
from backbone.training.curves import Measure, draw_curves
from backbone.training.losses import binary_cross_entropy, soft_targets
from backbone.training.memory import out_of_memory_is_final, smaller_micro_batch
from backbone.training.opening import open_together
from backbone.training.plan import doubts
from backbone.training.precise_bn import precise_bn
from backbone.training.precision import settle
from backbone.training.recipe import Recipe, recipe_hash
from backbone.training.run import open_run, run_url
from backbone.training.state import Progress, Store
from backbone.training.world import Payload, Report, World

STATISTICS_IMAGES = 10_000
"""How many training images the mean image and deviations are taken over, at most, evenly spread over the classes."""

CURVES = (Measure("error", "training", "#9ecae1"), Measure("val_error", "validation", "#08519c"))


def open_data(data: Data, seed: int) -> tuple[Source, Source]:
    """Training and validation images.

    Raises:
        UserError: missing, empty, malformed, of one class alone, or splits whose classes differ.
    """
    if isinstance(data, SyntheticData):
        return (
            SyntheticSource(seed, data.train_images, data.size, "train"),
            SyntheticSource(seed, data.val_images, data.size, "val"),
        )
    cache = data.cache or None
    if data.hold_out:
        train, val = hold_out(open_source(data.source, data.train, cache, data.keep_gb), data.hold_out)
        check_classes(train)
        return train, val
    train, val = (open_source(data.source, place, cache, data.keep_gb) for place in (data.train, data.val))
    check_classes(train)
    check_splits(train, val)
    return train, val


@dataclass(frozen=True)
class Pretraining(Payload):
    """What `pretrain` needs."""

    recipe: Recipe
    inputs: InputConvention


def prepare(recipe: Recipe, say: Callable[[str], None] = print) -> Pretraining:
    """Check everything that can be checked before workers start.

    `say` is told what takes long.

    Raises:
        UserError: bad data, an impossible net or split, storage that cannot be used, another run under this name.
    """
    train, val = open_data(recipe.data, recipe.seed)
    for field, source in (("train", train), ("val", val)):
        for line in remarks(source):
            say(f"data.{field}: {line}")
    if both := in_both(train, val):
        say(f"data.val: is read for training, too ({some(both)}): what was trained on does not test anything")
    for line in doubts(recipe, len(train)):
        say(f"warning: {line}")
    check_readable(val)
    with on_meta():
        net = build(recipe.model, len(train.classes))
    state_bytes = 4 * parameters(net) * recipe.optim.copies
    recipe = open_run(recipe, {"train data": train.fingerprint, "val data": val.fingerprint}, state_bytes)
    inputs = input_convention(recipe, train, say)
    return Pretraining(run_url(recipe), recipe, inputs, seen=(train.fingerprint, val.fingerprint))


def finished(url: str) -> dict[str, Any] | None:
    """The metrics of a run that already ended in an artifact; None while it has not."""
    fs, path = filesystem(url)
    place = join(path, "artifact", "config.json")
    return json.loads(fs.cat_file(place))["raybone"]["provenance"]["metrics"] if fs.exists(place) else None


def accuracy(url: str) -> str:
    """What the backbone of a finished run is worth as a classifier, for a terminal."""
    config = artifact.read_config(join(url, "artifact"))
    provenance = config["raybone"]["provenance"]
    metrics, run, norm = provenance["metrics"], provenance["recipe"]["run"], config["raybone"]["net"]["norm"]
    text = f"{100 - metrics['val_error']:.2f} % top-1"
    if config["num_classes"] > 5:  # else the five best are all there are
        text += f", {100 - metrics['val_top5_error']:.2f} % top-5"
    if run["precise_bn"] and norm == "batch":
        text += f", with batch statistics taken anew over {run['precise_bn']:,} images; the line above was without"
    return text


@contextmanager
def one_shape() -> Generator[None]:
    """cuDNN tries out its algorithms, which pays where all batches have one shape; not so for what comes after."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@out_of_memory_is_final(lambda payload: smaller_micro_batch(payload.recipe.optim))
@one_shape()
def pretrain(payload: Pretraining, world: World, report: Report) -> dict[str, Any]:
    """What every worker runs: train, exact batch statistics, judge, and on the first rank write the artifact.

    Returns the metrics of the artifact, on every rank.
    """
    recipe = settle(payload.recipe, payload.url, world, report)
    code()  # as it is now, and not when training has ended
    train, val = open_together(lambda: open_data(recipe.data, recipe.seed), world, report, payload.seen)
    task = Classification(recipe, payload.inputs, train, val, world)
    store = Store(join(payload.url, "checkpoints"))
    model, progress = engine.train(task, recipe, world, store, report)
    assert isinstance(model, Backbone)
    exact = recipe.run.precise_bn and recipe.model.norm in ("batch", "sync")
    if exact:
        trained_to = exported_step(recipe, progress)
        precise_bn(model, task.plain_batches(progress.step, recipe.run.precise_bn, trained_to), world)
    as_trained = not exact and exported_step(recipe, progress) == progress.step
    metrics = last_evaluation(progress) if as_trained else engine.evaluate(task, model, world)
    del metrics["val_seconds"]
    if world.is_first:
        write_results(payload.url, recipe, task, model, progress, metrics)
    return metrics


PRETRAIN = Job(prepare, pretrain, finished, run_url)


def last_evaluation(progress: Progress) -> dict[str, float]:
    """Of the weights after the last step: the end of a run's history."""
    return {name: value for name, value in progress.history[-1].items() if name.startswith("val_")}


def exported_step(recipe: Recipe, progress: Progress) -> int:
    """The step whose weights become the artifact."""
    return progress.best_step if recipe.run.export == "best" else progress.step


def write_results(
    url: str, recipe: Recipe, task: "Classification", model: Backbone, progress: Progress, metrics: dict[str, float]
) -> None:
    """The artifact, the curves beside it and the history they were drawn from."""
    fs, path = filesystem(url)
    steps = schedule.in_steps(recipe.schedule, recipe.optim.batch, task.num_samples)
    fs.pipe_file(join(path, "history.json"), json.dumps(progress.history).encode())
    curves = draw_curves(progress.history, recipe.run_name, CURVES, "top-1 error (%)", metrics["val_error"])
    fs.pipe_file(join(path, "curves.png"), curves)
    exported = exported_step(recipe, progress)
    provenance = {
        "recipe": recipe.model_dump(mode="json"),
        "recipe_hash": recipe_hash(recipe),
        "data": {"train": task.train.source.fingerprint, "val": task.val.source.fingerprint},
        "train_images": task.num_samples,
        "steps": exported,
        "epochs": exported * steps.batch / steps.num_samples,
        "bad_images": progress.bad,
        "metrics": metrics,
    }
    artifact.save(join(url, "artifact"), model, task.inputs, task.train.source.classes, provenance)


@dataclass
class Classification:
    """The engine's task: images to classes."""

    recipe: Recipe
    inputs: InputConvention
    train_source: Source
    val_source: Source
    world: World

    def __post_init__(self) -> None:
        torch.manual_seed(self.recipe.seed)  # the same first weights on every rank
        self.model = build(self.recipe.model, len(self.train_source.classes))
        self.num_samples = len(self.train_source)
        self.max_bad = self.recipe.data.max_bad
        red, green, blue = (round(255 * channel) for channel in self.inputs.mean)
        colour, apart = (red, green, blue), self.recipe.optim.micro_batch
        self.train = TrainSet(self.train_source, self.recipe.data, self.recipe.seed, colour, apart)
        self.val = ValSet(self.val_source, self.recipe.data, self.recipe.data.judged_at)
        self.inputs.prepare(self.world.device)
        self._smoothing = self.recipe.optim.label_smoothing
        augment = self.recipe.data.augment
        self._shifts = isinstance(augment, PaperAugment) and augment.pca > 0
        self._blends = isinstance(augment, ModernAugment) and augment.blends

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Of each sample, and how many were wrong; with blending, against the larger share's label."""
        images, labels = self._normalize(batch["images"], batch["shift"] if self._shifts else None), batch["labels"]
        cross_entropy = partial(F.cross_entropy, reduction="none", label_smoothing=self._smoothing)
        if self.recipe.optim.loss == "bce":
            return self._binary(images, labels, batch)
        if not self._blends:
            logits = self.model.classify(images).float()
            return cross_entropy(logits, labels), {"error": 100.0 * (logits.argmax(1) != labels).sum()}
        images, own = blend(images, batch["blending"])
        partners = labels.view(-1, 2).flip(1).reshape(-1)
        logits = self.model.classify(images).float()
        losses = own * cross_entropy(logits, labels) + (1 - own) * cross_entropy(logits, partners)
        larger = torch.where(own >= 0.5, labels, partners)
        return losses, {"error": 100.0 * (logits.argmax(1) != larger).sum()}

    def _binary(self, images: Tensor, labels: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """`loss` where it is binary cross-entropy."""
        partners, own = labels, torch.ones(len(labels), device=labels.device)
        if self._blends:
            images, own = blend(images, batch["blending"])
            partners = labels.view(-1, 2).flip(1).reshape(-1)
        logits = self.model.classify(images).float()
        targets = soft_targets(labels, partners, own, logits.shape[1], self._smoothing)
        larger = torch.where(own >= 0.5, labels, partners)
        losses = binary_cross_entropy(logits, targets, self.recipe.optim.bce_threshold)
        return losses, {"error": 100.0 * (logits.argmax(1) != larger).sum()}

    def batches(self, micro_batches: MicroBatches) -> Iterable[Any]:
        """This rank's training batches."""
        return train_loader(self.train, micro_batches, self.world.device, self._resident)

    def _at_side_of(self, step: int) -> TrainSet:
        """The training images, all of the size that the step before this one ended at."""
        data, optim = self.recipe.data, self.recipe.optim
        side = self.train.side(max(0, step * optim.batch - optim.micro_batch))
        return replace(self.train, options=data.model_copy(update={"size": side, "progressive": Progressive()}))

    @cached_property
    def _resident(self) -> Resident | None:
        if not self.recipe.data.resident:
            return None
        return Resident(self.train, self.world.device, len(self._mine), self.world.is_first)

    @cached_property
    def _mine(self) -> range:
        return share(len(self.val_source), self.world.rank, self.world.size)

    @cached_property
    def _val_batches(self) -> Iterable[Any]:
        """This rank's evaluation views, to be iterated again and again."""
        return val_loader(self.val, self._mine, self.recipe.optim.micro_batch, self.world.device)

    def blame(self, position: int) -> str:
        """File name of the sample at this position."""
        return f"sample {self.train_source.name(self.train.stream[position][1])}"

    def plain_batches(self, step: int, num_images: int, trained_to: int) -> Iterator[Tensor]:
        """This rank's share of the next `num_images` of the stream, normalised, without colour shift and blending, of
        the size that the weights were trained at last: those of step `trained_to`."""
        size = self.recipe.optim.micro_batch
        units = -(-num_images // size)
        if self.recipe.model.norm == "sync":  # its statistics are a collective: equal shares
            units = -(-units // self.world.size) * self.world.size
        mine = share(units, self.world.rank, self.world.size)
        start = step * (self.recipe.optim.batch // size)
        stream = MicroBatches(size, size, 0, 1, start + mine.start, start + mine.stop)
        with engine.autocast(self.recipe.compute, self.world.device):
            for batch in train_loader(self._at_side_of(trained_to), stream, self.world.device, self._resident):
                yield self._normalize(batch["images"].to(self.world.device), None)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, world: World) -> dict[str, float]:
        """Top-1 and, of more than five classes, top-5 error, percent, and loss: of all validation images, each once."""
        assert isinstance(model, Backbone)
        sums = torch.zeros(4, dtype=torch.float64, device=world.device)
        bad: list[str] = []
        for batch in self._val_batches:
            labels = batch["labels"].to(world.device)
            with engine.autocast(self.recipe.compute, self.world.device):
                logits = model.classify(self._normalize(batch["images"].to(world.device), None)).float()
            read = labels >= 0  # unreadable ones keep their place with label -1
            logits, labels = logits[read], labels[read]
            hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            loss = F.cross_entropy(logits, labels, reduction="sum")
            sums += torch.stack([hits[:, 0].sum(), hits.any(1).sum(), loss, read.sum()]).double()
            bad += batch["bad"]
        top1, top5, loss, count = world.sum(sums).tolist()
        unread = [name for names in world.gather(bad) for name in names]
        if not count:
            raise none_readable(unread)
        of_five = {"top5_error": 100 * (1 - top5 / count)} if len(self.train.source.classes) > 5 else {}
        counts = {"images": count, "unreadable": len(unread)}
        return {"error": 100 * (1 - top1 / count), **of_five, "loss": loss / count, **counts}

    def _normalize(self, images: Tensor, shift: Tensor | None) -> Tensor:
        normal = self.inputs.normalize(images, shift)
        return normal.contiguous(memory_format=torch.channels_last) if self.recipe.compute.channels_last else normal


def input_convention(recipe: Recipe, train: Source, say: Callable[[str], None]) -> InputConvention:
    """What the net's input will be; statistics of the data are taken once a run and kept in its folder."""
    data = recipe.data
    inputs = InputConvention(size=data.judged_at, crop_pct=data.crop_pct)
    if data.normalize == "imagenet":
        return inputs
    fs, path = filesystem(run_url(recipe))
    place = join(path, "statistics.safetensors")
    if not fs.exists(place):
        say(f"taking mean and deviation over {min(len(train), STATISTICS_IMAGES):,} training images")
        # Whole: without Ray several ranks may do this at the same time.
        replace_file(join(run_url(recipe), "statistics.safetensors"), save_tensors(statistics(train, data)))
    found = load_tensors(fs.cat_file(place))
    mean_image, std = found["mean_image"], tuple(found["std"].tolist())
    # The paper subtracts the mean image and divides by nothing; the first batch norm makes the division immaterial. For
    # VGG without norms it is not: see jobs/recipes/imagenet-paper/vgg16.yaml.
    inputs = InputConvention(size=data.judged_at, crop_pct=data.crop_pct, std=std).with_mean_image(mean_image)
    mean = inputs.mean
    return (
        inputs
        if data.normalize == "pixel"
        else InputConvention(size=data.judged_at, crop_pct=data.crop_pct, mean=mean, std=std)
    )


FLAT = 1e-3
"""A deviation on the 0..1 scale, a quarter of a grey level, below which a channel says nothing."""


def statistics(train: Source, data: Data) -> dict[str, Tensor]:
    """Mean image, float32 [3, S, S], and deviation of each channel, float32 [3], both on the 0..1 scale."""
    count = min(len(train), STATISTICS_IMAGES)
    ids = np.argsort(train.labels, kind="stable")[np.arange(count) * len(train) // count]
    total = torch.zeros(3, data.size, data.size, dtype=torch.float64)
    squares = torch.zeros(3, dtype=torch.float64)
    seen = 0
    bad: list[str] = []
    for batch in evaluation_batches(ValSet(train, data), ids.tolist(), 64):
        images = batch["images"][batch["labels"] >= 0].double() / 255
        total += images.sum(0)
        squares += images.square().sum(dim=(0, 2, 3))
        seen += len(images)
        bad += batch["bad"]
    if not seen:
        raise UserError(f"data.train: none of {len(bad)} images of it can be read, such as {bad[0]}")
    mean_image = total / seen
    variance = squares / (seen * data.size**2) - mean_image.mean(dim=(1, 2)).square()
    std = variance.clamp(min=0).sqrt().float()
    if flat := [name for name, one in zip(("red", "green", "blue"), std.tolist(), strict=True) if one < FLAT]:
        raise UserError(
            f"data.normalize {data.normalize}: {' and '.join(flat)} of data.train is of one value in all {seen:,} "
            "images looked at, so that nothing can be divided by its deviation; --data.normalize imagenet"
        )
    return {"mean_image": mean_image.float(), "std": std}
