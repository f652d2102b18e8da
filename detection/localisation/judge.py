"""Where a localiser puts its boxes in images seen by one crop or densely, and what that is worth (Table 13)."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from backbone.data.augment import Place, evaluation_place
from backbone.data.batches import make_loader
from backbone.data.sources import none_readable
from backbone.data.stream import share
from backbone.evaluate.protocols import Member, probabilities
from backbone.evaluate.views import ViewSet, ViewSpec, view_for
from backbone.inputs import InputConvention
from backbone.intervals import paired, wilson
from backbone.training.world import World
from detection.localisation.measure import GUESSES, is_found
from detection.localisation.net import Localiser, decode
from detection.localisation.sources import LocatedSource

ONE_CROP, DENSE = "1-crop", "dense"
ERRORS = ("own_class", "top1", "top5", "top5_classes")


class Guess(NamedTuple):
    """What is said of one image; J guesses."""

    image: int
    """Number in the source."""

    true_box: np.ndarray
    """float64 [4]: of the image's own class."""

    labels: list[int]
    """J classes of the classifier, the surest first."""

    boxes: np.ndarray
    """float64 [J, 4], pixels of the file."""

    probabilities: list[float]

    before: np.ndarray | None = None
    """float64 [1 + J, 4]: where a second step moved boxes, those of the first, of the image's own class and of the
    guesses."""


class Views(NamedTuple):
    """Views of N images, and how they go through a net."""

    inputs: InputConvention
    """How the net wants images."""

    sides: np.ndarray
    """int64 [N, 2], heights and widths of the files."""

    groups: Iterable[tuple[Tensor, Tensor]]
    """As `ViewSet` gives them."""

    view: ViewSpec
    """Which they are."""

    batch: int
    """Images that go through the net at once, by pixels, as in `probabilities`."""

    channels_last: bool
    """Memory format."""


class Step(Protocol):
    """What moves a localiser's boxes: the R-CNN step."""

    def boxes_of(
        self, localiser: Localiser, asked: Tensor, views: Views, shown: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """As the function of this name, of images that `ViewSet` has `shown`: the boxes, and those before."""
        ...


def protocols(scales: Sequence[int], member: Member) -> dict[str, ViewSpec]:
    """How images are shown for the two ways to test of Table 13, to classifier and localiser alike.

    The classifier also sees mirror images in dense testing, as in its own (see `backbone.evaluate.protocols`).
    """
    return {ONE_CROP: view_for(member.inputs, "1-crop"), DENSE: view_for(member.inputs, "multi-scale", scales)}


def images_of(
    source: LocatedSource, views: Sequence[ViewSpec], world: World, batch: int, workers: int, on_bad: str
) -> Iterable[Any]:
    """This rank's images, as `ViewSet` shows them; may be iterated again and again. `on_bad`: see the recipe's data."""
    mine = share(len(source), world.rank, world.size)
    pin = world.device.type == "cuda"
    return make_loader(ViewSet(source, tuple(views), on_bad), workers, pin, sampler=mine, batch_size=batch)


@torch.no_grad()
def guess(
    localiser: Localiser,
    classifier: Member,
    targets: np.ndarray,
    batches: Iterable[Any],
    view: ViewSpec,
    place: int,
    batch: int,
    channels_last: bool,
    step: Step | None = None,
) -> tuple[list[Guess], list[str]]:
    """Boxes of each image's own class and of its five most probable ones, and the images that could not be read.

    Of all anchors of all views the one that its class scores highest gives the box.

    Args:
        localiser: in eval mode, on its device.
        classifier: gives the classes.
        targets: int64 [N], the classifier's class of each image.
        batches: by `images_of`.
        view: which of their views, `place` among them.
        place: see `view`.
        batch: images that go through the nets at once, by pixels, as in `probabilities`.
        channels_last: memory format.
        step: moves the boxes; None: they stay.
    """
    found: list[Guess] = []
    bad: list[str] = []
    for shown in batches:
        samples, bad = shown["samples"], bad + shown["bad"]
        groups = shown["groups"][place]
        scores = probabilities(classifier, view, groups, len(samples), batch, channels_last)
        sure, labels = scores.topk(min(GUESSES, scores.shape[1]), dim=1)
        own = torch.from_numpy(targets[samples]).to(labels.device)
        asked = torch.cat([own[:, None], labels], 1)
        views = Views(classifier.inputs, shown["sides"], groups, view, batch, channels_last)
        if step:
            boxes, before = step.boxes_of(localiser, asked, views, shown)
        else:
            boxes, before = boxes_of(localiser, asked, views), None
        for row in (shown["labels"] >= 0).nonzero()[:, 0].tolist():  # others were not read and have no view
            mine, old = boxes[row], None if before is None else before[row]
            found.append(Guess(samples[row], mine[0], labels[row].tolist(), mine[1:], sure[row].tolist(), old))
    return found, bad


def boxes_of(localiser: Localiser, asked: Tensor, views: Views) -> np.ndarray:
    """Boxes of the classes `asked` of each image, int64 [N, J], in pixels of its file, float64 [N, J, 4]; 0 for images
    without any view. The localiser is in eval mode, and `asked` on its device.
    """
    return located(localiser, asked, views)[0]


@torch.no_grad()
def located(localiser: Localiser, asked: Tensor, views: Views) -> tuple[np.ndarray, np.ndarray]:
    """As `boxes_of`, and the score of each box, float64 [N, J] from 0 to 1."""
    device = asked.device
    best = torch.full(asked.shape, -torch.inf, device=device)
    boxes = torch.zeros(*asked.shape, 4, dtype=torch.float64, device=device)
    for some, normal in normal_parts(views, device):
        height, width = (int(side) for side in normal.shape[-2:])
        rows_there = some.to(device)
        value, box = locate(localiser, normal, asked[rows_there])
        moved = into_files(box.double().cpu().numpy(), (height, width), views.sides[some.numpy()], views.view)
        moved = torch.from_numpy(moved).to(device)
        better = value > best[rows_there]
        best[rows_there] = torch.where(better, value, best[rows_there])
        boxes[rows_there] = torch.where(better[..., None], moved, boxes[rows_there])
    return boxes.cpu().numpy(), best.double().sigmoid().cpu().numpy()


def normal_parts(views: Views, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """As many views at once as go through the net: rows int64 [M] on the host, and normalised images [M, 3, H, W] on
    the device."""
    for rows, pixels in views.groups:
        at_once = max(1, views.batch * views.view.size**2 // (pixels.shape[2] * pixels.shape[3]))
        for some, part in zip(rows.split(at_once), pixels.split(at_once), strict=True):
            normal = views.inputs.normalize(part.to(device))
            yield some, normal.contiguous(memory_format=torch.channels_last) if views.channels_last else normal


def locate(localiser: Localiser, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised images [N, 3, H, W] and classes [N, J] -> the highest score of each, [N, J], and its box within the
    image, [N, J, 4]."""
    logits, deltas = localiser(images, classes)
    score, at = logits.max(-1)
    height, width = images.shape[-2:]
    chosen = deltas.gather(2, at[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
    boxes = decode(chosen, localiser.anchors(height, width)[at])
    return score, torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height] * 2))


def into_files(boxes: np.ndarray, shape: tuple[int, int], sides: np.ndarray, view: ViewSpec) -> np.ndarray:
    """Boxes float64 [N, J, 4] in views of a `shape` -> in pixels of files of `sides` [N, 2], within them."""
    moved = np.empty_like(boxes)
    for row, (height, width) in enumerate(sides.tolist()):
        if view.protocol == "1-crop":
            place = evaluation_place(height, width, view.size, view.crop_pct)
        else:
            place = Place(shape[0] / height, shape[1] / width, 0, 0, shape[1])
        moved[row] = np.clip(place.into_image(boxes[row]), 0, [width, height] * 2)
    return moved


def errors(
    guesses: Sequence[Guess], source: LocatedSource, targets: np.ndarray, world: World, bad: Sequence[str]
) -> dict[str, Any]:
    """Localisation and classification errors, percent, over all ranks' images, each with its 95 % interval over images.

    Raises:
        RuntimeError: an image was judged twice or not at all.
        UserError: no image could be read.
    """
    counts = sum((wrong(one, source, targets) for one in guesses), np.zeros(len(ERRORS), np.int64))
    unread = [name for names in world.gather(list(bad)) for name in names]
    numbers = [number for part in world.gather([one.image for one in guesses]) for number in part]
    if len({*numbers}) != len(numbers) or len(numbers) + len(unread) != len(source):
        raise RuntimeError(f"{len(numbers)} images judged and {len(unread)} unreadable, of {len(source)}")
    if not numbers:
        raise none_readable(unread)
    total = world.sum(torch.from_numpy(counts).double().to(world.device)).long().tolist()
    n = len(numbers)
    result: dict[str, Any] = {name: 100 * count / n for name, count in zip(ERRORS, total, strict=True)}
    result |= {f"{name}_interval": wilson(100 * count / n, n) for name, count in zip(ERRORS, total, strict=True)}
    return result | {"images": n, "unreadable": unread}


def wrong(one: Guess, source: LocatedSource, targets: np.ndarray) -> np.ndarray:
    """Whether an image counts as an error, int64 [4], 1 or 0, by `ERRORS`."""
    truth, label = source.boxes(one.image), int(targets[one.image])
    found = (
        is_found(label, truth, [label], one.true_box[None]),
        is_found(label, truth, one.labels, one.boxes, 1),
        is_found(label, truth, one.labels, one.boxes),
        label in one.labels,
    )
    return 1 - np.array(found, np.int64)


def changes(guesses: Sequence[Guess], source: LocatedSource, targets: np.ndarray, world: World) -> dict[str, Any]:
    """What a second step changed, over all ranks' images: by name of the error its value `before`, percent, and the
    `change`, points, with its 95 % interval over images, each image being compared with itself."""
    before = [one._replace(true_box=one.before[0], boxes=one.before[1:]) for one in guesses if one.before is not None]
    first = np.array([wrong(one, source, targets) for one in before]).reshape(-1, len(ERRORS))
    second = np.array([wrong(one, source, targets) for one in guesses]).reshape(-1, len(ERRORS))
    rows = np.stack([first.sum(0), (second > first).sum(0), (first > second).sum(0), np.full(len(ERRORS), len(first))])
    total = world.sum(torch.from_numpy(rows).double().to(world.device)).long().tolist()
    found: dict[str, Any] = {}
    for name, old, worse, better, n in zip(ERRORS, *total, strict=True):
        value, low, high = paired(worse, better, n)
        found[name] = {"before": 100 * old / n, "change": value, "change_interval": (low, high)}
    return found
