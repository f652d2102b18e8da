"""A detector's weights as the start of another: all but what belongs to its classes, and that where classes match."""

from dataclasses import dataclass

import torch
from torch import Tensor

from backbone.errors import UserError
from detection.artifact import Loaded
from detection.data.contract import Categories
from detection.nets import Detector
from detection.recipe import Finetune

OF_CLASSES = {
    "roi_heads.box_predictor.cls_score": "outer",
    "roi_heads.box_predictor.bbox_pred": "outer",
    "roi_heads.mask_predictor.mask_fcn_logits": "outer",
    "head.classification_head.cls_logits": "inner",
    "head.predictor": "outer",
}
"""Layers whose rows belong to classes, as many to each; the background's come first. outer: all rows of a class lie
together. inner: one row of each class for every anchor of RetinaNet, where the background stands for torchvision's
class 0."""


@dataclass(frozen=True)
class Taken:
    """What became of every key of both detectors."""

    whole: tuple[str, ...]
    """As they were."""
    by_class: tuple[str, ...]
    """The background's rows and those of `classes`; the others' stay new."""
    new: tuple[str, ...]
    """Of the new detector alone, or of another shape: they begin as without."""
    dropped: tuple[str, ...]
    """Of the old one alone, or of another shape."""
    classes: tuple[str, ...]
    """Taken, by their names in the new data."""
    left: tuple[str, ...]
    """Classes of the old one that were not, by their names there."""

    def told(self, count: int) -> str:
        """One line; `count` is how many classes the new data have."""
        some = f": {_some(self.classes)}" if self.classes else ""
        parts = [
            f"{len(self.whole)} tensors taken whole",
            f"{len(self.by_class)} for {len(self.classes)} of {count} classes by name{some}; {len(self.left)} left",
            f"{len(self.new)} new{_named(self.new)}",
            f"{len(self.dropped)} dropped{_named(self.dropped)}",
        ]
        return "; ".join(parts)


@torch.no_grad()
def fill(detector: Detector, categories: Categories, old: Loaded, recipe: Finetune) -> Taken:
    """Give `detector` the weights of `old`, in place.

    A tensor is taken whole where both have one of its name and shape. In layers of classes the rows of background and
    of classes with the same name are, `recipe.class_names` saying what a class was called there.

    Raises:
        UserError: no class is in both, or a name of `class_names` is none.
    """
    where = recipe.from_detector
    rows = {} if recipe.new_heads else _rows(categories, old.categories, recipe.class_names, where)
    own, theirs = detector.state_dict(), old.detector.state_dict()
    whole, by_class, new = [], [], []
    for name, tensor in own.items():
        given = theirs.get(name)
        of_classes = OF_CLASSES.get(name.rpartition(".")[0])
        classes, given_classes = len(categories) + 1, len(old.categories) + 1
        if of_classes and rows and given is not None and _rows_fit(tensor, classes, given, given_classes):
            _move(tensor, classes, given, given_classes, rows, of_classes == "inner")
            by_class.append(name)
        elif not of_classes and given is not None and given.shape == tensor.shape:
            tensor.copy_(given)
            whole.append(name)
        else:
            new.append(name)
    taken = {*whole, *by_class}
    return Taken(
        tuple(whole),
        tuple(by_class),
        tuple(new),
        dropped=tuple(name for name in theirs if name not in taken),
        classes=tuple(categories.names[k - 1] for k in rows if k),
        left=tuple(name for k, name in enumerate(old.categories.names, 1) if k not in rows.values()),
    )


def _rows(new: Categories, old: Categories, called: dict[str, str], where: str) -> dict[int, int]:
    """Label in the new data -> label in the old, background (0) included."""
    for name, there in called.items():
        if name not in new.names:
            raise UserError(f"class_names: {name} is no class of data.train, which has {_some(new.names)}")
        if there not in old.names:
            raise UserError(f"class_names.{name}: {there} is no class of {where}, which has {_some(old.names)}")
    place = {name: k for k, name in enumerate(old.names, 1)}
    found = {k: place[called.get(n, n)] for k, n in enumerate(new.names, 1) if called.get(n, n) in place}
    if not found:
        raise UserError(
            f"from_detector {where}: none of its classes ({_some(old.names)}) is called as one of data.train "
            f"({_some(new.names)}); say which is which, --class_names.{new.names[0]} {old.names[0]}, or begin their "
            "heads anew, --new_heads true"
        )
    return {0: 0, **found}


def _rows_fit(tensor: Tensor, classes: int, given: Tensor, given_classes: int) -> bool:
    """Whether each class has rows of one shape, and as many, in both."""
    return tensor.shape[1:] == given.shape[1:] and len(tensor) // classes == len(given) // given_classes


def _move(tensor: Tensor, classes: int, given: Tensor, given_classes: int, rows: dict[int, int], inner: bool) -> None:
    """Rows of classes from one to the other; background counted. `inner`: see `OF_CLASSES`."""
    if inner:
        to = tensor.view(-1, classes, *tensor.shape[1:])
        to[:, list(rows)] = given.view(-1, given_classes, *given.shape[1:])[:, list(rows.values())]
    else:
        to = tensor.view(classes, -1, *tensor.shape[1:])
        to[list(rows)] = given.view(given_classes, -1, *given.shape[1:])[list(rows.values())]


def _named(names: tuple[str, ...]) -> str:
    """Keys by what they begin with, up to the third dot."""
    starts = tuple(dict.fromkeys(".".join(name.split(".")[:3]) for name in names))
    return f" ({_some(starts)})" if names else ""


def _some(names: tuple[str, ...], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")
