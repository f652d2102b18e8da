"""Several localisers as one: what the paper's last step, an ensemble, makes of them (Tables 13 and 14)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from backbone.data.sources import Labelled
from backbone.errors import UserError
from backbone.evaluate.views import ViewSpec
from backbone.inputs import InputConvention
from detection.localisation import artifact
from detection.localisation.judge import Views, located
from detection.localisation.net import Localiser
from detection.localisation.rcnn import RegionNet, refine
from detection.localisation.regions import propose

SAME = 0.5
"""IoU from which on two members' boxes are of one object. The paper does not say how its ensemble is made."""


@dataclass(frozen=True)
class Where:
    """What says boxes: a proposal network, or the R-CNN on its proposals."""

    url: str
    inputs: InputConvention
    localiser: Localiser
    step: RegionNet | None
    weights: dict[str, str]
    """Place -> SHA-256, of all that is read."""

    @property
    def nets(self) -> list[torch.nn.Module]:
        """All there are, to be put on a device."""
        return [self.localiser] if self.step is None else [self.localiser, self.step]

    def boxes_of(
        self, asked: Tensor, views: Views, shown: dict[str, Any], source: Labelled
    ) -> tuple[np.ndarray, np.ndarray]:
        """Boxes of the classes `asked` of images that `ViewSet` has `shown` of `source`, float64 [N, J, 4] in pixels of
        their files, and how sure it is of each, float64 [N, J] from 0 to 1."""
        if self.step is None:
            return located(self.localiser, asked, views)
        proposals = propose(self.localiser, asked, views, self.step.options)
        pairs = zip(shown["samples"], shown["labels"].tolist(), strict=True)
        images = [source.image(sample) if label >= 0 else None for sample, label in pairs]
        how = (views.batch, views.channels_last)
        return refine(self.step, self.inputs, images, asked.cpu().numpy(), proposals, *how)


def load(urls: Sequence[str], proposals: Sequence[str], classes: Sequence[str], whose: str) -> list[Where]:
    """The localisers of these artifacts, verified; `proposals` are artifacts of localisers that R-CNNs among them read,
    where they no longer lie where their recipes say.

    Raises:
        UserError: one does not verify or is of other classes than `whose`, or what an R-CNN was trained on is not
            there.
    """
    given: dict[str, tuple[str, Localiser]] = {}
    for url in proposals:
        net, loaded = artifact.load_localiser(url, "proposals")
        given[loaded.block["weights_sha256"]] = url, net
    found, read = [], set[str]()
    for url in urls:
        loaded = artifact.load(url)
        if list(loaded.classes) != list(classes):
            raise UserError(f"{url}: its classes are not those of {whose}")
        weights = {url: loaded.block["weights_sha256"]}
        if isinstance(loaded.localiser, Localiser):
            found.append(Where(url, loaded.inputs, loaded.localiser, None, weights))
            continue
        provenance = loaded.block["provenance"]
        wanted = provenance["proposals"]["weights_sha256"]
        place, net = given[wanted] if wanted in given else _recorded(url, provenance["recipe"]["proposals"], wanted)
        read.add(place)
        found.append(Where(url, loaded.inputs, net, loaded.localiser, {**weights, place: wanted}))
    if unread := [url for url in proposals if url not in read]:
        raise UserError(f"proposals {unread[0]}: no localiser given was trained on them; leave it out")
    return found


def _recorded(url: str, place: str, wanted: str) -> tuple[str, Localiser]:
    """The localiser that the recipe of the R-CNN at `url` names, if it is still the one; UserError where not."""
    fix = "give the artifact of the localiser that it was trained on: --proposals FOLDER"
    try:
        net, loaded = artifact.load_localiser(place, "proposals")
    except UserError as error:
        raise UserError(
            f"{url}: an R-CNN, and what its recipe names as proposals is not read; {fix} ({error})"
        ) from error
    if loaded.block["weights_sha256"] != wanted:
        raise UserError(f"{url}: an R-CNN, whose recipe names {place}, where another localiser lies by now; {fix}")
    return place, net


def voted(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Boxes float64 [K, N, J, 4] and scores [K, N, J] of K members -> boxes [N, J, 4]: that of the member which is
    surest of its own, averaged with those of the others that overlap it by half or more, by scores."""
    members, *shape, _ = boxes.shape
    if members == 1:
        return boxes[0]
    found = np.zeros((*shape, 4))
    for at in np.ndindex(*shape):
        mine, sure = boxes[:, *at], scores[:, *at]
        best = int(sure.argmax())
        overlap = box_iou(torch.from_numpy(mine), torch.from_numpy(mine[best : best + 1]))[:, 0].numpy()
        weight = np.where(overlap >= SAME, sure, 0.0)
        weight[best] = max(sure[best], np.finfo(float).tiny)
        found[at] = (weight[:, None] * mine).sum(0) / weight.sum()
    return found


def boxes_of_all(
    members: Sequence[Where],
    specs: Sequence[ViewSpec],
    distinct: Sequence[ViewSpec],
    asked: Tensor,
    shown: dict[str, Any],
    source: Labelled,
    batch: int,
    channels_last: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Of each member the boxes [K, N, J, 4] and scores [K, N, J] of `Where.boxes_of`; `specs` are its views, which
    `shown` has at their places in `distinct`."""
    found = []
    for member, spec in zip(members, specs, strict=True):
        groups = shown["groups"][distinct.index(spec)]
        views = Views(member.inputs, shown["sides"], groups, spec, batch, channels_last)
        found.append(member.boxes_of(asked, views, shown, source))
    boxes, scores = zip(*found, strict=True)
    return np.stack(boxes), np.stack(scores)
