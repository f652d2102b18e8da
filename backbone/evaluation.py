"""Judging backbones as the paper does: 1-crop, 10-crop, multi-scale fully convolutional, ensembles (section 3.4).

Of an image's views the softmax scores are averaged, and of an ensemble's nets their averages. The paper says that
"scores" are averaged and not which; the released nets' 10-crop averages softmax, as AlexNet's. It is silent on mirror
images in the multi-scale test; the papers it takes the form from (VGG, arXiv:1409.1556, and PReLU-nets,
arXiv:1502.01852) use them, and so is done here.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbone import artifact
from backbone.cli import validate
from backbone.data.loader import make_loader
from backbone.data.options import Data
from backbone.data.sources import Source, open_source
from backbone.data.stream import share
from backbone.data.synthetic import SyntheticSource
from backbone.errors import UserError
from backbone.inputs import InputConvention
from backbone.judging import Judging
from backbone.nets import Backbone
from backbone.nets.vgg import VGG
from backbone.paper import beside, markdown
from backbone.storage import filesystem, join, write_folder
from backbone.training import engine
from backbone.training.world import World
from backbone.views import View, ViewSet


def dense(net: nn.Module, images: Tensor, size: int) -> Tensor:
    """Logits [N, K] of images of any size from `size` on: the net as one convolution, its score map averaged.

    The head reads every window of the last map that an image of `size` px fills, one cell apart; an image of that very
    size has one window and gets the scores of `classify`. Windows are averaged before the softmax, as in VGG.
    """
    assert isinstance(net, Backbone)
    *_, (last, stage) = zip(net(images).values(), net.stages.values(), strict=True)
    if isinstance(net, VGG):
        first, *rest = net.classifier
        assert isinstance(first, nn.Linear)
        x = F.conv2d(last, first.weight.view(len(first.weight), last.shape[1], 7, 7), first.bias)
        for layer in rest:
            x = F.conv2d(x, layer.weight[:, :, None, None], layer.bias) if isinstance(layer, nn.Linear) else layer(x)
        return x.mean((2, 3))
    pooled = F.avg_pool2d(last, -(-size // stage.stride), 1)
    return net.get_submodule("fc")(pooled.mean((2, 3)))  # linear, so the mean may come first


class Member(NamedTuple):
    """A net to judge."""

    net: Backbone
    inputs: InputConvention
    name: str


@torch.no_grad()
def probabilities(
    member: Member, view: View, groups: Iterable[tuple[Tensor, Tensor]], count: int, batch: int, channels_last: bool
) -> Tensor:
    """Softmax scores of `count` images, float32 [count, K], averaged over their views; 0 for images without any.

    `groups` as `ViewSet` gives them, `batch` as in `Judging`.
    """
    device = next(member.net.parameters()).device
    total = torch.zeros(count, member.net.num_classes, device=device)
    seen = torch.zeros(count, 1, device=device)
    for rows, images in groups:
        at_once = max(1, batch * member.inputs.size**2 // (images.shape[2] * images.shape[3]))
        for at, pixels in zip(rows.split(at_once), images.split(at_once), strict=True):
            at, pixels = at.to(device), pixels.to(device, non_blocking=True)
            for turned in (pixels,) if view.protocol == "1-crop" else (pixels, pixels.flip(3)):
                normal = member.inputs.normalize(turned)
                if channels_last:
                    normal = normal.contiguous(memory_format=torch.channels_last)
                whole = view.protocol == "multi-scale"
                logits = dense(member.net, normal, view.size) if whole else member.net.classify(normal)
                total.index_add_(0, at, logits.float().softmax(1))
                seen.index_add_(0, at, torch.ones(len(at), 1, device=device))
    return total / seen.clamp_min(1)


def judge(
    members: Sequence[Member],
    source: Source,
    targets: np.ndarray,
    options: Judging,
    world: World,
    report: engine.Report = lambda record: None,
) -> dict[str, Any]:
    """Top-1 and top-5 error, percent, of each net and of all together, by each protocol, over all of `source`.

    All ranks call it with the same arguments; each judges its contiguous share, nothing is padded.

    Args:
        members: the nets, on the world's device, in eval mode.
        source: labelled images.
        targets: int64 [labels of the source]: the nets' class for each.
        options: protocols, scales, batch, compute, loader; the rest is not read.
        world: who takes part.
        report: is told how far the first rank is.

    Returns:
        On every rank: `results`, a list of {protocol, of (name or ensemble), nets, top1_error, top5_error}, `images`
        read, `unreadable`, `unreadable_names`.

    Raises:
        RuntimeError: an image was counted twice or not at all.
        UserError: no image could be read.
    """
    wanted = [
        [View(p, m.inputs.size, m.inputs.crop_pct, options.scales if p == "multi-scale" else ()) for m in members]
        for p in options.protocols
    ]
    distinct = tuple(dict.fromkeys(view for row in wanted for view in row))
    mine = share(len(source), world.rank, world.size)
    judged = len(members) + (len(members) > 1)
    sums = torch.zeros(len(options.protocols), judged, 2, dtype=torch.float64, device=world.device)
    bad: list[str] = []
    read, done, tenth, began = 0, 0, 0, time.monotonic()
    data = ViewSet(source, distinct, options.data.on_bad)
    context = engine.autocast(options.compute, world.device)
    loader = make_loader(
        data, options.data.workers, world.device.type == "cuda", sampler=mine, batch_size=options.batch
    )
    for batch in loader:
        kept = batch["labels"] >= 0
        truth = torch.from_numpy(targets)[batch["labels"][kept]].to(world.device)
        for p, row in enumerate(wanted):
            scores: list[Tensor] = []
            for member, view in zip(members, row, strict=True):
                groups = batch["groups"][distinct.index(view)]
                with context:
                    found = probabilities(member, view, groups, len(kept), options.batch, options.compute.channels_last)
                scores.append(found[kept.to(found.device)])
            if len(members) > 1:
                scores.append(torch.stack(scores).mean(0))
            for m, found in enumerate(scores):
                hits = found.topk(min(5, found.shape[1]), dim=1).indices == truth[:, None]
                sums[p, m] += torch.stack([hits[:, 0].sum(), hits.any(1).sum()])
        bad += batch["bad"]
        read += int(kept.sum())
        done += len(kept)
        if world.is_first and (done * 10 // len(mine) > tenth or done == len(kept)):
            tenth = done * 10 // len(mine)
            report({"kind": "say", "text": _progress(done, len(mine), world.size, time.monotonic() - began)})
    counts = world.sum(torch.tensor([read, len(bad)], dtype=torch.float64, device=world.device))
    images, unread = map(int, counts.tolist())
    if images + unread != len(source):
        raise RuntimeError(f"{images} images judged and {unread} unreadable, of {len(source)}")
    if not images:
        raise UserError(f"none of {unread} images can be read, such as {bad[0] if bad else 'those of other workers'}")
    errors = (100 * (1 - world.sum(sums) / images)).tolist()
    names = [member.name for member in members] + [f"ensemble of {len(members)}"] * (len(members) > 1)
    return {
        "results": [
            {
                "protocol": protocol,
                "of": name,
                "nets": len(members) if m == len(members) else 1,
                "top1_error": errors[p][m][0],
                "top5_error": errors[p][m][1],
            }
            for p, protocol in enumerate(options.protocols)
            for m, name in enumerate(names)
        ],
        "images": images,
        "unreadable": unread,
        "unreadable_names": [name for part in world.gather(bad) for name in part],
    }


def _progress(done: int, of: int, ranks: int, seconds: float) -> str:
    """Of all ranks, taking them to be as far as the first."""
    left = f", about {(of - done) * seconds / done:.0f} s left" if done < of else ""
    count = f"{done:,} of {of:,} images" + (f" of the first of {ranks} workers" if ranks > 1 else "")
    return f"{count}, {done * ranks / max(seconds, 1e-9):.3g} img/s{left}"


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


def prepare(recipe: Judging) -> dict[str, Any]:
    """Check nets and data before workers start; returns what `evaluate` needs, picklable.

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
    tree = {} if "source" in given else trained_on.get("data", {})
    tree = {**tree, **given, "on_bad": given.get("on_bad", "skip")}
    data = validate(Data, tree, "data, with what the net was trained with")
    recipe = recipe.model_copy(update={"data": data})
    sizes = []
    for url, (net, inputs, _) in zip(recipe.backbone, loaded, strict=True):
        size, crop_pct = given.get("size", inputs.size), given.get("crop_pct", inputs.crop_pct)
        if isinstance(net, VGG) and "multi-scale" in recipe.protocols and size // 32 != 7:
            raise UserError(
                f"{url}: a VGG is fully convolutional at 224 px; this one reads {size}: leave multi-scale out"
            )
        sizes.append((size, crop_pct))
    seed = trained_on.get("seed", 0)
    source = open_images(data, seed)
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
        raise UserError(f"output {url} cannot be written: {error}") from error
    return {
        "recipe": recipe.model_dump(mode="json"),
        "seed": seed,
        "sizes": sizes,
        "targets": targets,
        "url": url,
    }


def open_images(data: Data, seed: int) -> Source:
    """The validation images; UserError as `open_source`."""
    if data.source == "synthetic":
        return SyntheticSource(seed, data.val_images, data.size, "val")
    return open_source(data.source, data.val, data.cache or None)


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


def evaluate(payload: dict[str, Any], world: World, report: engine.Report) -> dict[str, Any]:
    """What every worker runs: judge its share; the first one writes the results. Returns them, on every rank."""
    recipe = Judging.model_validate(payload["recipe"])
    members, blocks = [], []
    for url, (size, crop_pct) in zip(recipe.backbone, payload["sizes"], strict=True):
        net, inputs, block = artifact.load(url)
        net = net.to(world.device)
        if recipe.compute.channels_last:
            net.to(memory_format=torch.channels_last)
        members.append(Member(net, replace(inputs, size=size, crop_pct=crop_pct), url))
        blocks.append(block)
    source = open_images(recipe.data, payload["seed"])
    judged = judge(members, source, payload["targets"], recipe, world, report)
    where = recipe.data.val or f"synthetic scenes of seed {payload['seed']}"
    trained = [training_of(block["provenance"]) or "unknown" for block in blocks]
    for result in judged["results"]:
        result |= {"classes": members[0].net.num_classes, "data": where}
        if result["nets"] == 1:
            place = recipe.backbone.index(result["of"])
            options = members[place].net.options
            result |= {"net": options.name, "shortcut": options.shortcut, "trained": trained[place]}
        else:
            result |= {"net": "", "shortcut": "", "trained": " / ".join(dict.fromkeys(trained))}
    judged["paper"] = beside(judged["results"])
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
            "sizes": [size for size, _ in payload["sizes"]],
            "data": {"val": source.fingerprint},
            "workers": world.size,
        }
        record = {**judged, "provenance": provenance | artifact.environment()}
        files = {"results.json": (json.dumps(record, indent=2) + "\n").encode()}
        if judged["paper"]:
            files = {"beside_paper.md": markdown(judged["paper"]).encode()} | files
        write_folder(payload["url"], files, "results")
    return judged


def table(judged: dict[str, Any]) -> str:
    """The results for a terminal."""
    lines = [f"{'protocol':<12}{'top-1 error':>12}{'top-5 error':>12}  of"]
    lines += [
        f"{r['protocol']:<12}{r['top1_error']:>10.2f} %{r['top5_error']:>10.2f} %  {r['of']}" for r in judged["results"]
    ]
    lines.append(f"{judged['images']:,} images, {judged['unreadable']} unreadable left out")
    lines += [f"  {name}" for name in judged["unreadable_names"][:10]]
    none = "no row of the paper's tables 2 to 6 has such a net, as many classes and this protocol: none stands beside"
    return "\n".join([*lines, "", markdown(judged["paper"])] if judged["paper"] else [*lines, none])
