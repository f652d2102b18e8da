"""Foreign weights to a backbone: names, net, input convention, each from where it is known, or an error."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from backbone.errors import UserError
from backbone.inputs import InputConvention
from backbone.interop import origins, weights
from backbone.interop.advice import Advice, Way, typed
from backbone.interop.common import Facts, Files
from backbone.interop.facts import asked, inner_config, said_beside, settled
from backbone.interop.files import weights_files
from backbone.interop.foreign import Foreign, foreign, foreign_shapes
from backbone.interop.keys import some
from backbone.interop.layouts import Layout, cut, layouts
from backbone.interop.origins import NOTHING, ORIGINS
from backbone.interop.structure import classes_of, filled, net_of, options_of
from backbone.nets import Backbone
from backbone.options import NetOptions

MOST_LAYOUTS = 3  # offered


@dataclass(frozen=True)
class Imported:
    """What was made of foreign weights."""

    net: Backbone  # in eval mode, on CPU
    inputs: InputConvention
    classes: tuple[str, ...]
    has_head: bool
    notes: tuple[str, ...]  # what was renamed, filled in or left out


def convert(layout: Layout, files: Files, where: str, given: Facts = NOTHING) -> Imported:
    """Foreign weights, with the files beside them, to a net.

    Raises:
        UserError: anything is unexplained, missing, contradictory or not said; names it and, as an `Advice`, the
            options that say it.
    """
    origin, tree = ORIGINS[layout.source], _tree(files, where)
    layout = _entered(layout, tree)
    try:
        tensors, options, notes = _understood(layout, tree, where)
    except UserError as fault:
        raise _advised(layout, tree, where, files, given, str(fault)) from fault
    notes += _left_out(layout, tree)
    if inner_config(layout, tree, files):
        notes.append("its config was read from the checkpoint itself (meta)")
    facts, more = settled(layout, tree, origin.defaults, said_beside(layout, tree, files, where), given, options)
    notes += more
    options = options.model_copy(
        update={"stride_in_1x1": bool(facts.stride_in_1x1), "shortcut_pad": facts.shortcut_pad or "end"}
    )
    has_head = "fc.weight" in tensors or options.net == "vgg"
    tensors, added = filled(tensors, options)
    count = classes_of(tensors, options, where)
    net = net_of(options, count, tensors, where)
    unnamed = tuple(map(str, range(count))) if has_head else ("none",)
    classes = facts.classes if has_head and facts.classes else unnamed
    if len(classes) != count:
        raise UserError(f"{where}: {len(classes)} classes are named, the head has {count}")
    return Imported(net, _inputs(facts), classes, has_head, (*notes, *added))


def _tree(files: Files, where: str) -> Any:
    names = weights_files(files, where)
    trees = [weights.tree(name, files[name]) for name in names]
    if len(trees) == 1:
        return trees[0]
    parts = [weights.part(name, tree, "") for name, tree in zip(names, trees, strict=True)]
    return {key: value for part in parts for key, value in part.items()}


def _entered(layout: Layout, tree: Any) -> Layout:
    """With the entry that a format always has, such as `model` in detectron2's `.pkl`."""
    usual = {"detectron2": ("model", {"__author__", "matching_heuristics"}), "caffe": ("blobs", {"cfg"})}
    entry, beside = usual.get(layout.source, ("", set()))
    here = weights.named(tree) or {}
    fits = not layout.entry and entry in here and not here.keys() - {entry, *beside}
    return replace(layout, entry=entry) if fits else layout


def _understood(layout: Layout, tree: Any, where: str) -> tuple[dict[str, Tensor], NetOptions, list[str]]:
    """Tensors by our names and the net they are of, before it is known where it strides and pads.

    Raises:
        UserError: the layout is not the file's, or the net is not ours.
    """
    values, notes = cut(weights.part(where, tree, layout.entry), layout, where)
    raw = weights.tensors(where, values)
    _check_ours(raw, where, unknown=set(raw) - set().union(*(form.table for form in ORIGINS[layout.source].forms)))
    try:
        tensors, done = origins.convert(layout.source, raw, where)
    except (RuntimeError, IndexError) as error:  # of shapes that do not go together
        raise UserError(f"{where}: not the shapes of such a net: {error}") from error
    _check_ours(tensors, where)
    odd = [name for name, t in tensors.items() if not t.numel() or not (t.dim() or name.endswith("batches_tracked"))]
    if odd:
        raise UserError(f"{where}: no values in {some(sorted(odd))}, by our names")
    options = options_of(tensors, layout.source == "cifar", where)
    whole, _ = filled(tensors, options)
    net_of(options, classes_of(whole, options, where), whole, where)
    return tensors, options, notes + done


def _check_ours(tensors: dict[str, Tensor], where: str, unknown: Collection[str] = ()) -> None:
    """UserError for the tensors of a net that raybone has not, where it is known by name."""
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    odd = (foreign(shapes) if unknown else "") or foreign_shapes(shapes)
    if odd:
        raise Foreign(where, odd)


def _advised(layout: Layout, tree: Any, where: str, files: Files, given: Facts, fault: str) -> UserError:
    """The fault with the options that mend it, where there are any; or what the net is, where it is none of ours."""
    ways: list[Way] = []
    reasons: list[tuple[Layout, str]] = []
    for other in layouts(tree, layout.source):
        if len(ways) >= MOST_LAYOUTS or other == layout:
            continue
        try:
            _, options, _ = _understood(other, tree, where)
            said = said_beside(other, tree, files, where)
        except Foreign as reason:
            return reason
        except UserError as reason:
            reasons.append((other, str(reason)))
            continue
        if other.source != layout.source and ways:
            break
        comment = f"{other.called}{' in the same file' if ways else ''}" if ways or other.called != "the net" else ""
        _, answers = asked(other, tree, ORIGINS[other.source].defaults, said, given, options)
        found = [Way({**other.words(), **way.words}, way.comment or comment) for way in answers]
        found = found or [Way(other.words(), comment)]
        ways += found[:1] if ways else found
    if ways:
        return Advice(fault, ways)
    if reasons:
        other, reason = reasons[0]
        return UserError(f"{fault}. With {typed(other.words())} it is found that {reason}")
    shapes = {name: () for values in weights.branches(tree).values() for name in values}
    odd = foreign(shapes)
    return Foreign(where, odd) if odd else UserError(fault)


def _left_out(layout: Layout, tree: Any) -> list[str]:
    """Of a checkpoint, what was not read, and what of it would have had to be run."""
    notes, here = [], weights.named(tree) or {}
    if layout.entry:
        beside = [key for key in here if key != layout.entry.partition(".")[0]]
        notes += [f"not read, beside {layout.entry}: {', '.join(beside)}"] if beside else []
    unmade = weights.unmade(tree)
    return notes + ([f"objects in it that were not run: {some(unmade)}"] if unmade else [])


def _inputs(facts: Facts) -> InputConvention:
    known = {
        name: getattr(facts, name)
        for name in ("channel_order", "mean", "std", "size", "crop_pct", "interpolation")
        if getattr(facts, name) is not None
    }
    return InputConvention(**known)
