"""Detecting: from the loader's batches to detections in the files' own pixels, for training's validation and for
`jobs/evaluate.py`, which judges a finished detector on any data.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from backbone.cli import validate
from backbone.data.sources import check_readable
from backbone.data.stream import share
from backbone.errors import UserError
from backbone.inputs import InputConvention
from backbone.job import Job
from backbone.provenance import environment
from backbone.storage import check_kept, filesystem, join
from backbone.training import engine
from backbone.training.memory import out_of_memory_is_final
from backbone.training.opening import open_together
from backbone.training.precision import agreed_precision, say_if_emulated
from backbone.training.world import Payload, Report, World
from detection import artifact, scoring, semantic
from detection.data.augment import evaluation_view
from detection.data.contract import Categories
from detection.data.loader import DIVISOR, EvalBatch, EvalSet, eval_loader, pad
from detection.data.options import DetectionData
from detection.data.sources import open_val, remarks
from detection.detections import Detections, collect, concatenate
from detection.forward import outputs_of, prepared
from detection.improvements.maxout import look_at_pyramid
from detection.improvements.steps import Seen, Steps, detections
from detection.improvements.views import View, look
from detection.nets import Rcnn, Semantic
from detection.recipe import DetectorEvaluation


@torch.no_grad()
def detect_batches(
    model: nn.Module,
    inputs: InputConvention,
    batches: Iterable[Any],
    image_ids: np.ndarray,
    device: torch.device,
    autocast: torch.autocast,
) -> tuple[Detections, list[str]]:
    """What the detector, in eval mode, finds in batches of `eval_loader`, and the images that could not be read.

    See `detection.forward.outputs_of`.
    """
    found: list[Detections] = []
    bad: list[str] = []
    with autocast:  # around all batches: when it ends, it forgets the weights it has cast
        for batch in batches:
            outputs = outputs_of(model, inputs, batch, device)
            pairs = zip(outputs, batch["readable"].tolist(), strict=True)
            outputs = [
                {key: rows if readable else rows[:0] for key, rows in output.items()} for output, readable in pairs
            ]
            found.append(collect(outputs, batch["sizes"], batch["originals"], image_ids[np.array(batch["indices"])]))
            bad += batch["bad"]
    return concatenate(found), bad


@torch.no_grad()
def detect_by_steps(
    members: Sequence[artifact.Loaded],
    labels: Sequence[np.ndarray],
    batches: Iterable[Sequence[EvalBatch]],
    image_ids: np.ndarray,
    device: torch.device,
    autocast: torch.autocast,
    steps: Steps,
) -> tuple[Detections, list[str]]:
    """`detect_batches` with the steps of `detection.improvements`, labels those of the data.

    Images go through the detectors one by one. `labels` are each detector's `relabel`, `batches` the same images at
    each of the scales, with maxout after the size that proposals are made at.
    """
    into = [torch.from_numpy(each).to(device) for each in labels]
    found: list[Detections] = []
    bad: list[str] = []
    with autocast:
        for scales in batches:
            first = scales[0]
            outputs = []
            for row, readable in enumerate(first["readable"].tolist()):
                seen = [
                    Seen(_views(loaded, scales, row, device, steps), label)
                    for loaded, label in zip(members, into, strict=True)
                ]
                output = detections(seen, steps)
                outputs.append({key: rows if readable else rows[:0] for key, rows in output.items()})
            ids = image_ids[np.array(first["indices"])]
            found.append(collect(outputs, first["originals"], first["originals"], ids))
            bad += first["bad"]
    return concatenate(found), bad


def _views(
    loaded: artifact.Loaded, scales: Sequence[EvalBatch], row: int, device: torch.device, steps: Steps
) -> list[View]:
    """An image of a batch as the detector sees it, at each of the scales, and its mirror images."""
    images = []
    for batch in scales:
        height, width = batch["sizes"][row].tolist()
        padded = [-(-side // DIVISOR) * DIVISOR for side in (height, width)]
        part = batch["images"][row : row + 1, :, : padded[0], : padded[1]].to(device)
        image = prepared(loaded.inputs, {"images": part, "sizes": batch["sizes"][row : row + 1].to(device)})
        images.append((image, (height, width)))
    height, width = scales[0]["originals"][row].tolist()
    both = (False, True)[: 1 + steps.flip]
    if steps.maxout:
        assert isinstance(loaded.detector, Rcnn)  # as `prepare` has seen
        return [look_at_pyramid(loaded.detector, images[0], images[1:], (height, width), side) for side in both]
    return [look(loaded.detector, *image, (height, width), side) for image in images for side in both]


def detect(loaded: artifact.Loaded, images: Iterable[np.ndarray]) -> list[dict[str, Any]]:
    """What a detector finds in images, uint8 RGB [H, W, 3] of any sizes, on whichever device it is.

    Returns:
        For each image boxes float32 [D, 4] (x1 y1 x2 y2 in its own pixels), labels int64 [D] from 1 (number k is
        `loaded.categories.names[k - 1]`), scores float32 [D], best first, and from a Mask R-CNN masks: D compressed
        RLEs, which `pycocotools.mask.decode` turns into arrays.

    Raises:
        UserError: the detector is of kind semantic.
    """
    found = []
    for image in images:
        one = detect_one(loaded, image)
        masks = {} if one.masks is None else {"masks": one.masks}
        found.append({"boxes": one.boxes, "labels": one.labels, "scores": one.scores, **masks})
    return found


def detect_one(loaded: artifact.Loaded, image: np.ndarray, image_id: int = 0) -> Detections:
    """What a detector finds in one image, uint8 RGB [H, W, 3], on whichever device it is; UserError as `detect`."""
    if isinstance(loaded.detector, Semantic):
        raise UserError("a detector of kind semantic finds no boxes: call detection.segment with it")
    return detect_views(loaded, [view_of(loaded, image)], [image.shape[:2]], [image_id])


def view_of(loaded: artifact.Loaded, image: np.ndarray) -> np.ndarray:
    """An image, uint8 RGB [H, W, 3], at the size that the detector was trained at; uint8 [h, w, 3]."""
    return evaluation_view(image, loaded.inputs.size, loaded.longer_side)


def detect_views(
    loaded: artifact.Loaded, views: list[np.ndarray], originals: Sequence[tuple[int, ...]], image_ids: Sequence[int]
) -> Detections:
    """What a detector finds in N images of which `views` are its views, and `originals` height and width of the files.

    Those of the same padded sides go through it together, which changes the last bits of what is found.
    """
    device = next(loaded.detector.parameters()).device
    autocast = torch.autocast(device.type, enabled=False)
    pixels, sizes = pad(views)
    indices = list(range(len(views)))
    batch = {"images": pixels, "sizes": sizes, "readable": torch.ones(len(views)).bool(), "indices": indices, "bad": []}
    batch["originals"] = torch.tensor(originals)
    return detect_batches(loaded.detector.eval(), loaded.inputs, [batch], np.array(image_ids), device, autocast)[0]


@dataclass(frozen=True)
class Evaluating(Payload):
    """What `evaluate` needs."""

    options: DetectorEvaluation


def prepare(recipe: DetectorEvaluation, say: Callable[[str], None] = print) -> Evaluating:
    """Check detector and data before workers start.

    Raises:
        UserError: the detector does not verify, the data are bad, or hold classes that the detector lacks.
    """
    members = [artifact.load(url) for url in recipe.detector]
    loaded = members[0]
    check_semantic(recipe, members)
    if recipe.scales and not recipe.maxout and "shorter_side" in recipe.data.model_fields_set:
        raise UserError("scales, data.shorter_side: give one of them; --scales names every size to look at")
    for url, options in ((url, each.detector.options) for url, each in zip(recipe.detector, members, strict=True)):
        if recipe.maxout and (options.kind != "c4" or options.masks):
            what = "predicts masks" if options.masks else f"is of kind {options.kind}"
            raise UserError(f"maxout: {url} {what}; it is for boxes of kind c4, so give --scales without --maxout")
        if recipe.refine and options.kind == "retinanet":
            raise UserError(f"refine: {url} is of kind retinanet, which has no regions to look at again; leave it out")
    asked = recipe.model_dump(mode="json", exclude_unset=True)
    asked["data"] = _data(recipe, loaded)
    check_ensemble(recipe, members)
    recipe = validate(DetectorEvaluation, asked, "with what the detector was trained with")
    source = open_val(recipe.data, isinstance(loaded.detector, Semantic), recipe.data.on_bad == "skip")
    for line in remarks(source):
        say(f"data.val: {line}")
    if not source.num_objects().any():
        raise UserError("data.val: no objects at all, so nothing can be judged; look at it with jobs/doctor.py")
    check_readable(source)
    for url, member in zip(recipe.detector, members, strict=True):
        relabel(member.categories, source.categories, url)
    shorter = recipe.data.shorter_side[-1]
    side = "" if shorter == loaded.inputs.size else f"-{shorter}"
    others = [f"with-{member.block['weights_sha256'][:8]}" for member in members[1:]]
    side += "".join(f"-{step}" for step in [*recipe.steps, *others])
    beside = recipe.detector[0].rstrip("/").removesuffix("/artifact")
    url = recipe.output or join(beside, f"results-{source.fingerprint[:8]}{side}")
    check_kept(url, "output")
    fs, path = filesystem(url)
    url = path if "://" not in url else url
    record = {"detectors": _named(recipe, members), "data": source.fingerprint}
    try:
        fs.makedirs(path, exist_ok=True)
        fs.pipe_file(join(path, "run.json"), json.dumps(record, indent=2).encode())
    except OSError as error:
        raise UserError(f"output {url} cannot be written: {error}; name another: --output FOLDER") from error
    return Evaluating(url, recipe, seen=(source.fingerprint,))


def check_semantic(recipe: DetectorEvaluation, members: Sequence[artifact.Loaded]) -> None:
    """UserError where a detector of kind semantic is asked for what detectors of boxes do, or is named with another."""
    for url, member in zip(recipe.detector, members, strict=True):
        if not isinstance(member.detector, Semantic):
            continue
        if len(members) > 1:
            raise UserError(f"detector: {url} is of kind semantic, which no other can be fused with; name it alone")
        if recipe.steps:
            raise UserError(
                f"{', '.join(recipe.steps)}: {url} is of kind semantic, and these steps are for detectors of boxes; "
                "leave them out (another size is --data.shorter_side)"
            )
        if not recipe.fast:
            raise UserError(
                f"fast: {url} is of kind semantic, whose pixels no scorer of boxes counts; leave --fast false out"
            )


def _data(recipe: DetectorEvaluation, loaded: artifact.Loaded) -> dict[str, Any]:
    """The data as given, and where it does not say as trained with: with another source only the sizes."""
    trained_on = loaded.block["provenance"]["recipe"]["data"]
    given = recipe.data.model_dump(mode="json", exclude_unset=True)
    if "source" in given:
        trained_on = {field: trained_on[field] for field in ("shorter_side", "longer_side")}
    return trained_on | given


def check_ensemble(recipe: DetectorEvaluation, members: Sequence[artifact.Loaded]) -> None:
    """UserError where detectors have no common masks, or were trained at unlike sizes and none is given."""
    first = recipe.detector[0]
    for url, member in zip(recipe.detector[1:], members[1:], strict=True):
        if member.detector.options.masks != members[0].detector.options.masks:
            has, lacks = (url, first) if member.detector.options.masks else (first, url)
            raise UserError(f"detector: {has} predicts masks and {lacks} does not; name detectors of one sort")
        sizes = [(each.inputs.size, each.longer_side) for each in (members[0], member)]
        given = {"shorter_side", "longer_side"} & recipe.data.model_fields_set or recipe.scales
        if sizes[0] != sizes[1] and not given:
            raise UserError(
                f"detector: {first} was trained at sides of {sizes[0][0]} to {sizes[0][1]} pixels and {url} at "
                f"{sizes[1][0]} to {sizes[1][1]}; say at which to look, such as --data.shorter_side {sizes[0][0]} "
                f"--data.longer_side {sizes[0][1]}"
            )


def _named(recipe: DetectorEvaluation, members: Sequence[artifact.Loaded]) -> list[dict[str, str]]:
    hashes = [member.block["weights_sha256"] for member in members]
    return [{"url": url, "weights_sha256": sha} for url, sha in zip(recipe.detector, hashes, strict=True)]


def relabel(mine: Categories, theirs: Categories, url: str = "the detector") -> np.ndarray:
    """int64 [K + 1]: the detector's label -> the data's, by name; 0 for classes that the data lack.

    Raises:
        UserError: the data hold classes that the detector does not know.
    """
    unknown = [name for name in theirs.names if name not in mine.names]
    if unknown:
        raise UserError(
            f"data.val holds {len(unknown)} class(es) that {url} was not trained on: {', '.join(unknown[:10])}; "
            f"it knows {', '.join(mine.names[:20])}{'...' if len(mine.names) > 20 else ''}"
        )
    label = {name: k for k, name in enumerate(theirs.names, 1)}
    return np.array([0, *(label.get(name, 0) for name in mine.names)])


@out_of_memory_is_final(lambda payload: f"batch {payload.options.batch} is too much; give a smaller --batch")
def evaluate(payload: Evaluating, world: World, report: Report) -> dict[str, Any]:
    """What every worker runs: detect in its share of the images; the first one scores and writes the results.

    Returns the metrics, on every rank.
    """
    recipe = payload.options
    recipe = recipe.model_copy(update={"compute": agreed_precision(recipe.compute, world)})
    say_if_emulated(recipe.compute, world, report)
    members = [artifact.load(url) for url in recipe.detector]
    loaded = members[0]
    maps = isinstance(loaded.detector, Semantic)
    (source,) = open_together(lambda: (open_val(recipe.data, maps),), world, report, payload.seen)
    for member in members:
        member.detector.to(world.device).eval()
        if recipe.compute.channels_last:  # as in training, so that a run's own numbers come out again
            member.detector.to(memory_format=torch.channels_last)
    mine = share(len(source), world.rank, world.size)
    sizes = [at_scale(recipe.data, side) for side in recipe.scales]
    sizes = [recipe.data, *sizes] if recipe.maxout else sizes or [recipe.data]
    pin = world.device.type == "cuda"
    loaders = [eval_loader(EvalSet(source, data), mine, recipe.batch, pin) for data in sizes]
    context = engine.autocast(recipe.compute, world.device)
    batches = shown(loaders[0], len(mine), recipe.batch, world, report)
    labels = [relabel(member.categories, source.categories) for member in members]
    if isinstance(loaded.detector, Semantic):
        model, channels = loaded.detector, semantic.channels_of(loaded.categories, source.categories)
        seen, bad = semantic.segment_batches(model, loaded.inputs, batches, source, world.device, context, channels)
        scored = semantic.gather_and_score(seen, source, world, bad)
    elif recipe.steps or len(members) > 1:
        steps = Steps(recipe.refine, recipe.vote, recipe.flip, recipe.maxout)
        looks = zip(batches, *loaders[1:], strict=True)
        found, bad = detect_by_steps(members, labels, looks, source.image_ids, world.device, context, steps)
        scored = scoring.gather_and_score(found, source, world, bad, recipe.fast)
    else:
        model = loaded.detector
        found, bad = detect_batches(model, loaded.inputs, batches, source.image_ids, world.device, context)
        into = labels[0][found.labels]
        found = replace(found, labels=into).select(into > 0)
        scored = scoring.gather_and_score(found, source, world, bad, recipe.fast)
    if world.is_first:
        provenance = {
            "detector": _named(recipe, members)[0],
            "ensemble": _named(recipe, members)[1:],
            "detector_provenance": {k: v for k, v in loaded.block["provenance"].items() if k != "metrics"},
            "evaluation": recipe.model_dump(mode="json"),
            "data": {"val": source.fingerprint},
            "workers": world.size,
        }
        scoring.write(payload.url, scored, provenance | environment())
    return scored.metrics


EVALUATE = Job(prepare, evaluate)


def at_scale(data: DetectionData, shorter: int) -> DetectionData:
    """The data with images of this shorter side; the bound of the longer one keeps its proportion to it."""
    longer = -(-data.longer_side * shorter // data.shorter_side[-1])
    return data.model_copy(update={"shorter_side": (shorter,), "longer_side": longer})


def shown(batches: Iterable[Any], count: int, size: int, world: World, report: Report) -> Iterable[Any]:
    """`batches`, with a line from the first rank at every tenth of the way."""
    done, tenth = 0, -1
    for batch in batches:
        yield batch
        done += len(batch["indices"])
        if world.is_first and done * 10 // count > tenth:
            tenth = done * 10 // count
            report({"kind": "say", "text": f"{done * world.size:,} of about {count * world.size:,} images"})
