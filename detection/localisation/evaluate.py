"""Localisers that have been trained, each alone and together, on the driver and on every worker."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from backbone.data.batches import make_loader
from backbone.data.sources import check_readable, remarks
from backbone.data.stream import share
from backbone.errors import UserError
from backbone.evaluate.protocols import Member, load_members, member_scores
from backbone.evaluate.views import ViewSet, view_for
from backbone.job import Job
from backbone.provenance import environment
from backbone.storage import check_kept, filesystem, join, write_folder
from backbone.training import engine
from backbone.training.memory import out_of_memory_is_final
from backbone.training.opening import open_together
from backbone.training.precision import agreed_precision, say_if_emulated
from backbone.training.world import Payload, Report, World
from detection.localisation.clsloc import open_clsloc
from detection.localisation.ensemble import Where, boxes_of_all, load, voted
from detection.localisation.judge import ERRORS, Guess, changes, errors
from detection.localisation.measure import GUESSES
from detection.localisation.options import LocaliserEvaluation
from detection.localisation.recipe import OneObjectData
from detection.localisation.sources import LocatedSource, OneObjectScenes


@dataclass(frozen=True)
class Evaluating(Payload):
    """What `evaluate` needs."""

    options: LocaliserEvaluation


def nets(options: LocaliserEvaluation) -> tuple[list[Member], list[Where], list[str], dict[str, str]]:
    """What says classes, what says boxes, the classes, and place -> SHA-256 of all of them.

    Raises:
        UserError: one does not verify, or they know different classes.
    """
    members, classes, weights = load_members(options.backbone)
    localisers = load(options.localiser, options.proposals, classes, options.backbone[0])
    for one in localisers:
        weights |= one.weights
    return members, localisers, classes, weights


def open_val(options: LocaliserEvaluation, size: int) -> LocatedSource:
    """The images to judge by; scenes are `size` pixels wide. UserError as `open_clsloc`, or none can be read."""
    data = options.data
    if isinstance(data, OneObjectData):
        return OneObjectScenes(data.seed, data.val_images, size, "val")
    source = open_clsloc(data.val, data.cache or None, data.blacklist)
    check_readable(source)
    return source


def targets_of(source: LocatedSource, classes: list[str], options: LocaliserEvaluation) -> np.ndarray:
    """The nets' class of each image, int64 [N]; UserError where they lack it."""
    names = list(source.classes)
    if options.by_position and len(names) == len(classes):
        return np.asarray(source.labels, np.int64)
    unknown = [name for name in names if name not in classes]
    if unknown or options.by_position:
        raise UserError(
            f"data.val has {len(names)} classes, of which {options.backbone[0]}, with {len(classes)}, lacks "
            f"{len(unknown)} ({', '.join(unknown[:5])}); --by_position true takes label k for class k where "
            "there are as many"
        )
    return np.array([classes.index(name) for name in names])[source.labels]


def prepare(options: LocaliserEvaluation, say: Callable[[str], None] = print) -> Evaluating:
    """Check nets and data before workers start.

    Raises:
        UserError: nets as `nets`, data as `open_val` and `targets_of`; or the output cannot be written.
    """
    _, localisers, classes, weights = nets(options)
    source = open_val(options, localisers[0].inputs.size)
    for line in remarks(source):
        say(f"data.val: {line}")
    targets_of(source, classes, options)
    says = [weights[url] for url in options.backbone]
    shows = [list(one.weights.values()) for one in localisers]  # its own and, of an R-CNN, its proposals'
    how = [options.protocols, options.scales, options.by_position, options.compute.precision]
    known = hashlib.sha256(json.dumps([says, shows, source.fingerprint, *how]).encode()).hexdigest()[:12]
    beside = options.localiser[0].rstrip("/").removesuffix("/artifact")
    url = options.output or join(beside, f"evaluation-{known}")
    check_kept(url, "output")
    fs, path = filesystem(url)
    try:
        fs.makedirs(path, exist_ok=True)
        fs.pipe_file(join(path, "run.json"), json.dumps({"nets": weights, "data": source.fingerprint}).encode())
    except OSError as error:
        raise UserError(f"output {url} cannot be written: {error}; name another: --output FOLDER") from error
    return Evaluating(path if "://" not in url else url, options, seen=(source.fingerprint,))


@out_of_memory_is_final(lambda payload: f"batch {payload.options.batch} is too much; give a smaller --batch")
def evaluate(payload: Evaluating, world: World, report: Report) -> dict[str, Any]:
    """What every worker runs: judge its share; the first one writes the results. Returns them, on every rank."""
    options = payload.options
    options = options.model_copy(update={"compute": agreed_precision(options.compute, world)})
    say_if_emulated(options.compute, world, report)
    members, localisers, classes, weights = nets(options)
    for net in [*(one.net for one in members), *(net for one in localisers for net in one.nets)]:
        net.to(world.device).eval()
        if options.compute.channels_last:
            net.to(memory_format=torch.channels_last)
    size = localisers[0].inputs.size
    (source,) = open_together(lambda: (open_val(options, size),), world, report, payload.seen)
    targets = targets_of(source, classes, options)
    rows = []
    for protocol in options.protocols:
        guesses, bad = guess_all(options, protocol, members, localisers, source, targets, world)
        for name, found in guesses.items():
            row = {"protocol": protocol, "of": name, **errors(found, source, targets, world, bad)}
            if name not in options.localiser:
                row["changed"] = changes(found, source, targets, world)
            rows.append(row)
    provenance = {
        "evaluation": options.model_dump(mode="json"),
        "weights_sha256": weights,
        "data": {"val": source.fingerprint},
        "workers": world.size,
        **environment(),
    }
    record = {"results": rows, "provenance": provenance}
    if world.is_first:
        write_folder(payload.url, {"results.json": (json.dumps(record, indent=2) + "\n").encode()}, "results")
    return record


EVALUATE = Job(prepare, evaluate)


@torch.no_grad()
def guess_all(
    options: LocaliserEvaluation,
    protocol: str,
    members: list[Member],
    localisers: list[Where],
    source: LocatedSource,
    targets: np.ndarray,
    world: World,
) -> tuple[dict[str, list[Guess]], list[str]]:
    """This rank's guesses of each localiser and, where there are several, of their ensemble, by name; and the images
    that could not be read. What the ensemble is compared with, `Guess.before`, is the first localiser."""
    shows = {"1-crop": "1-crop", "dense": "multi-scale"}[protocol]
    specs = [[view_for(one.inputs, shows, options.scales) for one in some] for some in (members, localisers)]
    distinct = list(dict.fromkeys([*specs[0], *specs[1]]))
    loader = make_loader(
        ViewSet(source, tuple(distinct), options.data.on_bad),
        options.data.workers,
        world.device.type == "cuda",
        sampler=share(len(source), world.rank, world.size),
        batch_size=options.batch,
    )
    together = [f"ensemble of {len(localisers)}"] if len(localisers) > 1 else []
    found: dict[str, list[Guess]] = {name: [] for name in [*options.localiser, *together]}
    bad: list[str] = []
    for shown in loader:
        samples, bad = shown["samples"], bad + shown["bad"]
        groups = [shown["groups"][distinct.index(spec)] for spec in specs[0]]
        how = (options.batch, options.compute.channels_last)
        with engine.autocast(options.compute, world.device):
            scores = member_scores(members, specs[0], groups, len(samples), *how)[-1]
            sure, labels = scores.topk(min(GUESSES, scores.shape[1]), dim=1)
            own = torch.from_numpy(targets[samples]).to(labels.device)
            asked = torch.cat([own[:, None], labels], 1)
            boxes, confident = boxes_of_all(localisers, specs[1], distinct, asked, shown, source, *how)
        every = dict(zip(options.localiser, boxes, strict=True)) | {name: voted(boxes, confident) for name in together}
        for row in (shown["labels"] >= 0).nonzero()[:, 0].tolist():
            for name, mine in every.items():
                before = boxes[0, row] if name in together else None
                said = labels[row].tolist(), mine[row, 1:], sure[row].tolist(), before
                found[name].append(Guess(samples[row], mine[row, 0], *said))
    return found, bad


def table(record: dict[str, Any]) -> str:
    """Errors, percent, for a terminal."""
    lines = ["localisation error, %; in brackets 95 % intervals over images", f"{'testing':<9}"]
    lines[-1] += "".join(f"{name:>24}" for name in ("own class", "top-1", "top-5", "top-5 of classes alone")) + "  of"
    for row in record["results"]:
        ends = [row[f"{name}_interval"] for name in ERRORS]
        cells = [f"{row[name]:.1f} ({low:.1f} to {high:.1f})" for name, (low, high) in zip(ERRORS, ends, strict=True)]
        lines.append(f"{row['protocol']:<9}" + "".join(f"{cell:>24}" for cell in cells) + f"  {row['of']}")
        if "changed" in row:
            every = [row["changed"][name] for name in ERRORS]
            cells = [
                f"{one['change']:+.1f} ({one['change_interval'][0]:+.1f} to {one['change_interval'][1]:+.1f})"
                for one in every
            ]
            lines.append(f"{'':<9}" + "".join(f"{cell:>24}" for cell in cells) + "  against the first of them")
    row = record["results"][-1]
    return "\n".join([*lines, f"{row['images']:,} images, {len(row['unreadable'])} unreadable left out"])
