"""Weights of a net that timm builds to a backbone: the library says what the net is, its pretrained config what it
reads."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from backbone.errors import UserError
from backbone.inputs import InputConvention
from backbone.interop import timm, weights
from backbone.interop.advice import Advice, Way
from backbone.interop.common import Facts, Files
from backbone.interop.convert import Imported
from backbone.interop.facts import sound
from backbone.interop.files import weights_files
from backbone.interop.foreign import Foreign
from backbone.interop.keys import some
from backbone.interop.layouts import Layout, cut
from backbone.interop.options import Import
from backbone.interop.probe import images, ours
from backbone.interop.structure import check_finite, misfits
from backbone.nets.external import External, describe, library
from backbone.nets.meta import on_meta
from backbone.options import ExternalNet

COMPARED = ("channel_order", "mean", "std", "interpolation")


def bring(options: Import, files: Files, given: Facts) -> Imported:
    """The net of `options.model` with the tensors of `files`, or with random ones.

    Raises:
        UserError: timm is missing or has no such net, the net cannot be a backbone, a key is unexplained or missing, or
            what is said of its pixels contradicts itself.
    """
    where = options.weights or "random weights"
    beside, arguments = _said_beside(files, options.model, where)
    net_options = describe(options.model, {**arguments, **options.arguments})
    if options.random:
        torch.manual_seed(0)
        net = External(net_options, len(given.classes or ()) or _registered_classes(net_options))
        notes, has_head = ["random weights, drawn from seed 0"], True
    else:
        net, notes, has_head = _filled(net_options, files, options)
    facts, taken = _settled(net, beside, given)
    if taken:
        notes.append(
            f"as timm says of {net_options.name} and its own weights, for nothing else does: {', '.join(taken)}"
        )
    unnamed = tuple(map(str, range(net.num_classes))) if has_head else ("none",)
    classes = facts.classes if has_head and facts.classes else unnamed
    if len(classes) != net.num_classes:
        raise UserError(f"{where}: {len(classes)} classes are named, the head has {net.num_classes}")
    known = {field.name: getattr(facts, field.name) for field in fields(Facts) if field.name in PIXELS}
    inputs = InputConvention(**{name: value for name, value in known.items() if value is not None})
    _check_maps(net.eval(), inputs)
    return Imported(net, inputs, classes, has_head, tuple(notes))


PIXELS = ("channel_order", "mean", "std", "size", "crop_pct", "interpolation")


def _filled(options: ExternalNet, files: Files, told: Import) -> tuple[External, list[str], bool]:
    """The net with the file's tensors, notes, and whether they have a classifier."""
    where = told.weights
    names = weights_files(files, where)
    trees = [weights.tree(name, files[name]) for name in names]
    if not told.entry:
        _check_place(options, trees, told)
    values: dict[str, Any] = {}
    for name, tree in zip(names, trees, strict=True):
        values |= weights.part(name, tree, told.entry)
    values, notes = cut(values, Layout("timm", told.entry, told.prefix, told.drop), where)
    tensors = weights.tensors(where, values)
    with on_meta():
        head = External(options, 1).model.pretrained_cfg["classifier"]
    if not isinstance(head, str):
        raise UserError(f"model {options.name}: it has {len(head)} classifiers, where a backbone has one")
    has_head = f"{head}.weight" in tensors
    net = External(options, len(tensors[f"{head}.weight"]) if has_head else 1)
    own = {name.removeprefix(net.prefix): tensor for name, tensor in net.state_dict().items()}
    counters = [name for name in own if name.endswith("num_batches_tracked") and name not in tensors]
    tensors |= {name: torch.tensor(0) for name in counters}
    if counters:
        notes.append(f"not in the file: {len(counters)} counters of batches (num_batches_tracked), set to 0")
    if not has_head:
        tensors |= {name: torch.zeros_like(own[name]) for name in own if name.startswith(f"{head}.")}
        notes.append(f"not in the file: the classifier ({head}.*); the artifact has one class, whose score is always 0")
    converted = sorted({str(t.dtype) for t in tensors.values() if t.is_floating_point() and t.dtype != torch.float32})
    if converted:
        notes.append(f"{', '.join(converted)} became float32")
    _check_keys(own, tensors, options, where, head)
    check_finite(tensors, where)
    net.load_state_dict({net.prefix + name: t.to(own[name].dtype) for name, t in tensors.items()})
    return net, notes, has_head


def _check_place(options: ExternalNet, trees: list[Any], told: Import) -> None:
    """UserError where the file holds more than the net, and the net in a part of it: with the command that names it."""
    here = {key: value for tree in trees for key, value in (weights.named(tree) or {}).items()}
    more = [key for key, value in here.items() if not weights.is_tensor(value)]
    ways = places(options, trees) if more else []
    if ways:
        raise Advice(f"{told.weights}: holds more than tensors: {some(more)}", ways).commands(told)


def places(options: ExternalNet, trees: list[Any]) -> list[Way]:
    """Where in checkpoints all of a net's tensors lie, but for its classifier: as the options that name the place."""
    with on_meta():
        net = External(options, 1)
    head = f"{net.model.pretrained_cfg['classifier']}."
    own = [name.removeprefix(net.prefix) for name in net.state_dict()]
    needed = [name for name in own if not name.startswith(head) and not name.endswith("num_batches_tracked")]
    ways = []
    for entry, values in ((entry, values) for tree in trees for entry, values in weights.branches(tree).items()):
        starts = sorted({name.removesuffix(needed[0]) for name in values if name.endswith(needed[0])}, key=len)
        start = next((s for s in starts if all(s + name in values for name in needed)), None)
        if start is not None:
            words: dict[str, tuple[str, ...]] = {"entry": (entry,)} | ({"prefix": (start,)} if start else {})
            ways.append(Way(words, "another copy in the same file" if ways else ""))
    return ways


def by_its_name(odd: Foreign, files: Files, told: Import) -> UserError:
    """The fault of a net that raybone has not, with the command that has timm build it, if the file says its name."""
    trees = [weights.tree(name, files[name]) for name in weights_files(files, told.weights)]
    said = [(weights.named(tree) or {}).get("arch") for tree in trees]
    try:
        model = next(name for name in said if isinstance(name, str) and library().is_model(name))
        ways = places(describe(model, {}), trees)
    except Exception:  # it says none; timm is not here, or builds no such net: whatever that raises, the fault was told
        return odd
    words = {"source": ("timm",), "model": (model,)}
    return (
        Advice(f"{odd}: the file says {model}", [Way(words | way.words, way.comment) for way in ways]).commands(told)
        if ways
        else odd
    )


def _check_keys(
    own: dict[str, Tensor], tensors: dict[str, Tensor], options: ExternalNet, where: str, head: str
) -> None:
    """UserError with every kind of misfit."""
    faults = misfits(own, tensors, options.name)
    if faults:
        needed = [name for name in own if not name.startswith(f"{head}.") and not name.endswith("num_batches_tracked")]
        starts = {name.removesuffix(needed[0]) for name in tensors if name.endswith(needed[0])}
        prefix = next((s for s in starts if all(s + name in tensors for name in needed)), "")
        fix = "--entry names the part of a checkpoint, --prefix what stands before its keys, --drop keys beside the net"
        fix = f"It lies behind a prefix: --prefix {prefix}, and --drop for keys beside it" if prefix else fix
        raise UserError(f"{where}: not the weights of timm's {options.name}: {faults}. {fix}")


def _said_beside(files: Files, model: str, where: str) -> tuple[Facts, dict[str, Any]]:
    """What a `config.json` beside the weights says of pixels and classes, and the arguments of its net."""
    try:
        facts = sound(timm.facts(files))
        architecture, arguments = timm.architecture(files)
    except Exception as error:  # it is somebody else's file, and can be anything
        raise UserError(f"{where}: the config beside the weights cannot be read: {error!r}") from error
    if architecture and architecture != model.partition(".")[0]:
        raise UserError(f"{where}: its config.json is of {architecture}; give --model {architecture}")
    return facts, arguments


def _settled(net: External, beside: Facts, given: Facts) -> tuple[Facts, list[str]]:
    """Each fact from the config beside the weights, from the user, or from timm; and which are timm's alone."""
    told = library().data.resolve_model_data_config(net.model)
    registered = Facts(
        channel_order="RGB",
        mean=tuple(told["mean"]),
        std=tuple(told["std"]),
        size=told["input_size"][1],
        crop_pct=told["crop_pct"],
        interpolation=told["interpolation"],
    )
    known, taken = {}, []
    for field in fields(Facts):
        config, user, default = (getattr(facts, field.name) for facts in (beside, given, registered))
        if field.name in COMPARED and None not in (config, user) and config != user:
            raise UserError(f"{field.name}: {user} is given, the config beside the weights says {config}; remove one")
        known[field.name] = next((value for value in (user, config, default) if value is not None), None)
        if config is None and user is None and field.name in COMPARED[1:3]:
            taken.append(field.name)
    return Facts(**known), taken


def _registered_classes(options: ExternalNet) -> int:
    """How many classes timm's own weights tell apart."""
    config = library().get_pretrained_cfg(options.model)
    return max(config.num_classes if config else 0, 1)


def _check_maps(net: External, inputs: InputConvention) -> None:
    """UserError where the stages do not run one after the other on images of any size, or give other maps."""
    given = images(net)
    size = f"{given.shape[2]}x{given.shape[3]}"
    try:
        maps = ours(net, inputs, given)
    except Exception as error:  # each net of a thousand refuses in its own way
        raise UserError(
            f"model {net.options.name}: its stages do not run one after the other on images of {size} pixels, as those "
            f"of a backbone must: {' '.join(str(error).split())[:300]}"
        ) from error
    for name, stage in net.stages.items():
        wanted = [len(given), stage.channels, *(-(-side // stage.stride) for side in given.shape[2:])]
        if list(maps[name].shape) != wanted:
            raise UserError(
                f"model {net.options.name}: {name} is {list(maps[name].shape)} on images of {size} pixels, and timm's "
                f"stage information says {wanted}"
            )
