"""Evaluating backbones: what `jobs/evaluate.py` prepares on the driver, what every worker runs, what comes out."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from backbone import artifact
from backbone.cli import validate
from backbone.data.options import Data, StoredData, SyntheticData
from backbone.data.sources import Source, check_readable, open_source, remarks
from backbone.data.synthetic import SyntheticSource
from backbone.errors import UserError
from backbone.evaluate.options import BackboneEvaluation
from backbone.evaluate.paper import beside, markdown
from backbone.evaluate.protocols import Member, score
from backbone.job import Job
from backbone.nets.external import External
from backbone.nets.vgg import VGG
from backbone.options import NetOptions
from backbone.provenance import environment
from backbone.storage import filesystem, join, write_folder
from backbone.training.memory import out_of_memory_is_final
from backbone.training.opening import open_together
from backbone.training.precision import agreed_precision, say_if_emulated
from backbone.training.world import Payload, Report, World


def training_of(provenance: dict[str, Any]) -> str:
    """How long a net was trained, for a table cell; where its weights come from if not from here. Empty: unknown."""
    told = []
    if provenance.get("steps") is not None:
        batch = provenance.get("recipe", {}).get("optim", {}).get("batch")
        epochs = provenance.get("epochs")
        of, in_epochs = f" of {batch}" if batch else "", f" ({epochs:.3g} epochs)" if epochs is not None else ""
        told.append(f"{provenance['steps']:,} steps{of}{in_epochs}")
    if "imported" in provenance:
        told.append(f"imported from {provenance['imported']['source']}")
    return "; ".join(told)


@dataclass(frozen=True)
class Evaluating(Payload):
    """What `evaluate` needs."""

    options: BackboneEvaluation
    seed: int
    """Of synthetic scenes."""
    sizes: list[tuple[int, float]]
    """(size, crop_pct) each net is evaluated at."""
    targets: np.ndarray
    """int64 [labels of the source]: the nets' class for each."""


def prepare(recipe: BackboneEvaluation, say: Callable[[str], None] = print) -> Evaluating:
    """Check nets and data before workers start.

    Raises:
        UserError: a net does not verify, nets of an ensemble know different classes, the data are bad or hold classes
            that the nets lack, or the output cannot be written.
    """
    loaded = [artifact.load(url) for url in recipe.backbone]
    given = recipe.data.model_dump(mode="json", exclude_unset=True)
    trained_on = loaded[0][2]["provenance"].get("recipe", {})
    if not trained_on and not given:
        raise UserError(
            f"{recipe.backbone[0]}: was not trained here; name images to judge it on: --data.source, --data.val"
        )
    # How images grew is of training alone, and would be held against a size given here.
    recorded = {name: value for name, value in trained_on.get("data", {}).items() if name != "progressive"}
    tree = {} if "source" in given else recorded
    tree = {"data": {**tree, **given, "on_bad": given.get("on_bad", "skip")}}
    asked = recipe.model_dump(mode="json", exclude_unset=True)
    recipe = validate(BackboneEvaluation, asked | tree, "with what the net was trained with")
    sizes = []
    for url, (net, inputs, _) in zip(recipe.backbone, loaded, strict=True):
        size, crop_pct = given.get("size", inputs.size), given.get("crop_pct", inputs.crop_pct)
        if isinstance(net, VGG) and "multi-scale" in recipe.protocols and size // 32 != 7:
            raise UserError(
                f"{url}: a VGG is fully convolutional at 224 px; this one reads {size}: leave multi-scale out"
            )
        if isinstance(net, External) and "multi-scale" in recipe.protocols:
            raise UserError(f"{url}: only raybone's own nets are fully convolutional; leave multi-scale out")
        sizes.append((size, crop_pct))
    seed = trained_on.get("seed", 0)
    source = open_images(recipe.data, seed)
    for line in remarks(source):
        say(f"data.val: {line}")
    check_readable(source)
    targets = class_targets(
        recipe.backbone, [b["classes"] for _, _, b in loaded], loaded[0][0].num_classes, source, recipe.by_position
    )
    weights = [block["weights_sha256"] for _, _, block in loaded]
    beside_it = recipe.backbone[0].rstrip("/").removesuffix("/artifact")
    several = f"-ensemble-{hashlib.sha256(''.join(weights).encode()).hexdigest()[:8]}" if len(weights) > 1 else ""
    url = recipe.output or join(beside_it, f"evaluation-{'-'.join(recipe.protocols)}{several}-{source.fingerprint[:8]}")
    fs, path = filesystem(url)
    url = path if "://" not in url else url
    record = {"backbones": dict(zip(recipe.backbone, weights, strict=True)), "data": source.fingerprint}
    try:
        fs.makedirs(path, exist_ok=True)
        fs.pipe_file(join(path, "run.json"), json.dumps(record, indent=2).encode())
    except OSError as error:
        raise UserError(f"output {url} cannot be written: {error}; name another: --output FOLDER") from error
    return Evaluating(url, recipe, seed, sizes, targets, seen=(source.fingerprint,))


def open_images(data: Data, seed: int) -> Source:
    """The validation images; UserError as `open_source`."""
    if isinstance(data, SyntheticData):
        return SyntheticSource(seed, data.val_images, data.size, "val")
    return open_source(data.source, data.val, data.cache or None, data.keep_gb)


def class_targets(
    urls: Sequence[str], classes: list[list[str]], num_classes: int, source: Source, by_position: bool = False
) -> np.ndarray:
    """int64 [labels of the source]: the nets' class for each.

    Raises:
        UserError: nets know different classes, or the data hold some that they lack.
    """
    for url, names in zip(urls[1:], classes[1:], strict=True):
        if names != classes[0]:
            raise UserError(f"{url}: its classes are not those of {urls[0]}; no ensemble can be made of them")
    if by_position:
        if len(source.classes) > num_classes:
            raise UserError(f"data.val holds {len(source.classes)} classes, the nets know {num_classes}")
        return np.arange(len(source.classes))
    place = {name: k for k, name in enumerate(classes[0])}
    unknown = [name for name in source.classes if name not in place]
    if unknown:
        raise UserError(
            f"data.val holds {len(unknown)} class(es) that the nets were not trained on: {', '.join(unknown[:10])}; "
            f"they know {', '.join(classes[0][:20])}{'...' if len(classes[0]) > 20 else ''}. --by_position true takes "
            "label k for class k"
        )
    return np.array([place[name] for name in source.classes])


@out_of_memory_is_final(lambda payload: f"batch {payload.options.batch} is too much; give a smaller --batch")
def evaluate(payload: Evaluating, world: World, report: Report) -> dict[str, Any]:
    """What every worker runs: evaluate its share; the first one writes the results. Returns them, on every rank."""
    recipe = payload.options
    recipe = recipe.model_copy(update={"compute": agreed_precision(recipe.compute, world)})
    say_if_emulated(recipe.compute, world, report)
    members, blocks = [], []
    for url, (size, crop_pct) in zip(recipe.backbone, payload.sizes, strict=True):
        net, inputs, block = artifact.load(url)
        net = net.to(world.device)
        if recipe.compute.channels_last:
            net.to(memory_format=torch.channels_last)
        members.append(Member(net, replace(inputs, size=size, crop_pct=crop_pct), url))
        blocks.append(block)
    (source,) = open_together(lambda: (open_images(recipe.data, payload.seed),), world, report, payload.seen)
    results = score(members, source, payload.targets, recipe, world, report)
    data = recipe.data
    where = data.val if isinstance(data, StoredData) else f"synthetic scenes of seed {payload.seed}"
    trained = [training_of(block["provenance"]) or "unknown" for block in blocks]
    for result in results["results"]:
        result |= {"classes": members[0].net.num_classes, "data": where}
        if result["nets"] == 1:
            place = recipe.backbone.index(result["of"])
            options = members[place].net.options
            shortcut = options.shortcut if isinstance(options, NetOptions) else ""
            result |= {"net": options.name, "shortcut": shortcut, "trained": trained[place]}
        else:
            result |= {"net": "", "shortcut": "", "trained": " / ".join(dict.fromkeys(trained))}
    results["paper"] = beside(results["results"])
    if world.is_first:
        provenance = {
            "backbones": [
                {
                    "url": url,
                    "weights_sha256": block["weights_sha256"],
                    "net": block["net"],
                    "provenance": block["provenance"],
                }
                for url, block in zip(recipe.backbone, blocks, strict=True)
            ],
            "evaluation": recipe.model_dump(mode="json"),
            "sizes": [size for size, _ in payload.sizes],
            "data": {"val": source.fingerprint},
            "workers": world.size,
        }
        record = {**results, "provenance": provenance | environment()}
        files = {"results.json": (json.dumps(record, indent=2) + "\n").encode()}
        if results["paper"]:
            files = {"beside_paper.md": markdown(results["paper"]).encode()} | files
        write_folder(payload.url, files, "results")
    return results


EVALUATE = Job(prepare, evaluate)


def table(results: dict[str, Any]) -> str:
    """The results for a terminal."""
    lines = [f"{'protocol':<12}{'top-1 error':>12}{'top-5 error':>12}  of"]
    few = results["classes"] <= 5  # the five best are all there are
    for r in results["results"]:
        top5 = f"{'–':>12}" if few else f"{r['top5_error']:>10.2f} %"
        lines.append(f"{r['protocol']:<12}{r['top1_error']:>10.2f} %{top5}  {r['of']}")
    lines.append(f"{results['images']:,} images, {results['unreadable']} unreadable left out")
    lines += [f"  {name}" for name in results["unreadable_names"][:10]]
    none = "no row of the paper's tables 2 to 6 has such a net, as many classes and this protocol: none stands beside"
    return "\n".join([*lines, "", markdown(results["paper"])] if results["paper"] else [*lines, none])
