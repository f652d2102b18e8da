"""Evaluating backbones as the paper does: 1-crop, 10-crop, multi-scale fully convolutional, ensembles (section 3.4).

Of an image's views the softmax scores are averaged, and of an ensemble's nets their averages. The paper says that
"scores" are averaged and not which; the released nets' 10-crop averages softmax, as AlexNet's. It is silent on mirror
images in the multi-scale test; the papers it takes the form from (VGG, arXiv:1409.1556, and PReLU-nets,
arXiv:1502.01852) use them, and so is done here.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbone import artifact
from backbone.data.batches import make_loader
from backbone.data.sources import Source, none_readable
from backbone.data.stream import share
from backbone.errors import UserError
from backbone.evaluate.options import BackboneEvaluation
from backbone.evaluate.views import ViewSet, ViewSpec, view_for
from backbone.inputs import InputConvention
from backbone.nets import Backbone
from backbone.nets.vgg import VGG
from backbone.training import engine
from backbone.training.world import Report, World


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


def load_members(urls: Sequence[str]) -> tuple[list[Member], list[str], dict[str, str]]:
    """The nets of an ensemble, verified; the classes that all of them know; place -> SHA-256 of the weights.

    Raises:
        UserError: one does not verify, or they know different classes.
    """
    members, classes, weights = [], list[str](), dict[str, str]()
    for url in urls:
        net, inputs, block = artifact.load(url)
        if members and list(block["classes"]) != classes:
            raise UserError(f"{url}: its classes are not those of {urls[0]}; no ensemble can be made")
        classes, weights[url] = list(block["classes"]), block["weights_sha256"]
        members.append(Member(net, inputs, url))
    return members, classes, weights


@torch.no_grad()
def probabilities(
    member: Member, view: ViewSpec, groups: Iterable[tuple[Tensor, Tensor]], count: int, batch: int, channels_last: bool
) -> Tensor:
    """Softmax scores of `count` images, float32 [count, K], averaged over their views; 0 for images without any.

    `groups` as `ViewSet` gives them, `batch` as in `BackboneEvaluation`.
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


def member_scores(
    members: Sequence[Member],
    views: Sequence[ViewSpec],
    groups: Sequence[Iterable[tuple[Tensor, Tensor]]],
    count: int,
    batch: int,
    channels_last: bool,
) -> list[Tensor]:
    """`probabilities` of each net, and of several also, last, their mean; `views` and `groups` are by net."""
    scores = [
        probabilities(member, view, seen, count, batch, channels_last)
        for member, view, seen in zip(members, views, groups, strict=True)
    ]
    return [*scores, torch.stack(scores).mean(0)] if len(scores) > 1 else scores


def score(
    members: Sequence[Member],
    source: Source,
    targets: np.ndarray,
    options: BackboneEvaluation,
    world: World,
    report: Report = lambda record: None,
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
        On every rank: `results`, a list of {protocol, of (name or ensemble), nets, top1_error, top5_error}, `classes`,
        `images` read, `unreadable`, `unreadable_names`.

    Raises:
        RuntimeError: an image was counted twice or not at all.
        UserError: no image could be read.
    """
    wanted = [
        [view_for(member.inputs, protocol, options.scales) for member in members] for protocol in options.protocols
    ]
    distinct = tuple(dict.fromkeys(view for row in wanted for view in row))
    mine = share(len(source), world.rank, world.size)
    rows = len(members) + (len(members) > 1)
    sums = torch.zeros(len(options.protocols), rows, 2, dtype=torch.float64, device=world.device)
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
            groups = [batch["groups"][distinct.index(view)] for view in row]
            with context:
                scores = member_scores(members, row, groups, len(kept), options.batch, options.compute.channels_last)
            for m, every in enumerate(scores):
                found = every[kept.to(every.device)]
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
    unread_names = [name for part in world.gather(bad) for name in part]
    if images + unread != len(source):
        raise RuntimeError(f"{images} images judged and {unread} unreadable, of {len(source)}")
    if not images:
        raise none_readable(unread_names)
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
        "classes": members[0].net.num_classes,
        "images": images,
        "unreadable": unread,
        "unreadable_names": unread_names,
    }


def _progress(done: int, of: int, ranks: int, seconds: float) -> str:
    """Of all ranks, taking them to be as far as the first."""
    left = f", about {(of - done) * seconds / done:.0f} s left" if done < of else ""
    count = f"{done:,} of {of:,} images" + (f" of the first of {ranks} workers" if ranks > 1 else "")
    return f"{count}, {done * ranks / max(seconds, 1e-9):.3g} img/s{left}"
