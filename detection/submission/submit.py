"""Submissions: what the job prepares on the driver, what every worker runs, what comes out."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from backbone.data.batches import make_loader
from backbone.data.stream import share
from backbone.errors import UserError
from backbone.evaluate.protocols import Member, load_members, member_scores
from backbone.evaluate.views import ViewSet, view_for
from backbone.job import Job
from backbone.nets.external import External
from backbone.nets.vgg import VGG
from backbone.provenance import environment
from backbone.storage import check_kept, filesystem, join, write_folder
from backbone.training import engine
from backbone.training.memory import out_of_memory_is_final
from backbone.training.precision import agreed_precision, say_if_emulated
from backbone.training.world import Payload, Report, World
from detection.localisation.ensemble import Where, boxes_of_all, voted
from detection.localisation.ensemble import load as load_localisers
from detection.localisation.measure import GUESSES
from detection.submission.formats import (
    CLSLOC,
    DET,
    ListedImages,
    classification_line,
    detection_lines,
    localisation_line,
    numbers_of,
    read_list,
    read_synsets,
)
from detection.submission.options import Submission

PREDICTIONS = "predictions.txt"


class Nets(NamedTuple):
    """What says classes, and boxes where there is a localiser."""

    members: list[Member]
    localisers: list[Where]
    classes: list[str]
    weights: dict[str, str]
    """Place -> SHA-256."""


@dataclass(frozen=True)
class Submitting(Payload):
    """What `submit` needs."""

    options: Submission
    images: ListedImages
    numbers: list[int]
    """The challenge's, of the nets' classes; none for detection."""


def load(options: Submission) -> Nets:
    """The nets, verified.

    Raises:
        UserError: one does not verify, they know different classes, or cannot be shown images so.
    """
    members, classes, weights = load_members(options.backbone)
    for net, inputs, url in members if options.protocol == "multi-scale" else ():
        if isinstance(net, External) or (isinstance(net, VGG) and inputs.size // 32 != 7):
            other = "1-crop" if options.localiser else "10-crop"
            raise UserError(
                f"{url}: multi-scale is for raybone's own nets, a VGG's of 224 px among them; --protocol {other}"
            )
    localisers = load_localisers(options.localiser, options.proposals, classes, options.backbone[0])
    for one in localisers:
        weights |= one.weights
    return Nets(members, localisers, classes, weights)


def prepare(options: Submission, say: Callable[[str], None] = print) -> Submitting:
    """Check everything that can be checked before workers start.

    Raises:
        UserError: nets as `load`; images, synsets or detections as `read_list`, `read_synsets`, `numbers_of`,
            `of_detections`; or the output cannot be written.
    """
    check_kept(options.output, "output")
    synsets = read_synsets(options.synsets)
    images = read_list(options.images, DET if options.detections else CLSLOC)
    numbers = []
    if options.backbone:
        numbers = numbers_of(load(options).classes, synsets, options.backbone[0], options.by_position)
    else:
        of_detections(options, images)  # what is wrong with them is said now
    say(f"images: {len(images):,}, from {images.name(0)} to {images.name(len(images) - 1)}")
    fs, path = filesystem(options.output)
    try:
        fs.makedirs(path, exist_ok=True)
        fs.pipe_file(join(path, "run.json"), json.dumps(options.model_dump(mode="json"), indent=2).encode())
    except OSError as error:
        raise UserError(f"output {options.output} cannot be written: {error}; name another: --output FOLDER") from error
    return Submitting(path if "://" not in options.output else options.output, options, images, numbers)


@out_of_memory_is_final(lambda payload: f"batch {payload.options.batch} is too much; give a smaller --batch")
def submit(payload: Submitting, world: World, report: Report) -> dict[str, Any]:
    """What every worker runs: the lines of its share; the first one writes all, and what they are of beside them."""
    options = payload.options
    if options.detections:
        lines, weights = of_detections(options, payload.images) if world.is_first else ([], {})
    else:
        compute = agreed_precision(options.compute, world)
        say_if_emulated(compute, world, report)
        options = options.model_copy(update={"compute": compute})
        nets = load(options)
        weights = nets.weights
        lines = of_nets(options, nets, payload.images, payload.numbers, world)
    every = [line for part in world.gather(lines) for line in part]
    if not options.detections and len(every) != len(payload.images):
        raise RuntimeError(f"{len(every)} lines for {len(payload.images)} images")
    text = "".join(every).encode()
    if world.is_first:
        record = {
            "options": options.model_dump(mode="json"),
            "weights_sha256": weights,
            "images": len(payload.images),
            "lines": len(every),
            "sha256": hashlib.sha256(text).hexdigest(),
            "workers": world.size,
            **environment(),
        }
        files = {PREDICTIONS: text, "submission.json": (json.dumps(record, indent=2) + "\n").encode()}
        write_folder(payload.url, files, "submission")
    return {"images": len(payload.images), "lines": len(every)}


SUBMIT = Job(prepare, submit)


def of_detections(options: Submission, images: ListedImages) -> tuple[list[str], dict[str, str]]:
    """Lines, and what has been found by what; UserError as `detection_lines`, or the folder is not complete."""
    fs, path = filesystem(options.detections)
    try:
        mark, found, rows = (
            json.loads(fs.cat_file(f"{path}/{name}")) for name in ("detect.json", "images.json", "detections.json")
        )
        weights = {mark["provenance"]["detector"]: mark["plan"]["detector"]}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"detections {options.detections}: no complete results of jobs/detect.py: {error}") from error
    return detection_lines(images, found, rows, read_synsets(options.synsets)), weights


@torch.no_grad()
def of_nets(options: Submission, nets: Nets, images: ListedImages, numbers: Sequence[int], world: World) -> list[str]:
    """A line for each image of this rank's share, in order.

    Raises:
        BadImage: an image cannot be read; its line could not be left out.
    """
    wanted = [view_for(one.inputs, options.protocol, options.scales) for one in nets.members]
    where = [view_for(one.inputs, options.protocol, options.scales) for one in nets.localisers]
    distinct = list(dict.fromkeys([*wanted, *where]))
    for net in [*(member.net for member in nets.members), *(net for one in nets.localisers for net in one.nets)]:
        _place(net, options, world)
    loader = make_loader(
        ViewSet(images, tuple(distinct), "stop"),
        options.loaders,
        world.device.type == "cuda",
        sampler=share(len(images), world.rank, world.size),
        batch_size=options.batch,
    )
    of_class = np.asarray(numbers)
    lines: list[str] = []
    for shown in loader:
        count = len(shown["samples"])
        groups = [shown["groups"][distinct.index(view)] for view in wanted]
        with engine.autocast(options.compute, world.device):
            scores = member_scores(nets.members, wanted, groups, count, options.batch, options.compute.channels_last)
            labels = scores[-1].topk(min(GUESSES, len(numbers)), dim=1).indices
            if not nets.localisers:
                lines += [classification_line(row) for row in of_class[labels.cpu().numpy()].tolist()]
                continue
            how = (images, options.batch, options.compute.channels_last)
            boxes = voted(*boxes_of_all(nets.localisers, where, distinct, labels, shown, *how))
        pairs = zip(of_class[labels.cpu().numpy()].tolist(), boxes, strict=True)
        lines += [localisation_line(row, box) for row, box in pairs]
    return lines


def _place(net: torch.nn.Module, options: Submission, world: World) -> None:
    net.to(world.device).eval()
    if options.compute.channels_last:
        net.to(memory_format=torch.channels_last)
