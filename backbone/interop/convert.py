"""Foreign weights to a backbone: names, net, input convention, each from where it is known, or an error."""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from backbone.errors import UserError
from backbone.inputs import InputConvention
from backbone.interop import caffe, detectron2, keys, mmdetection, timm, torchvision, transformers, weights
from backbone.interop.common import Facts, Files
from backbone.nets import Backbone, build
from backbone.nets.resnet import UNITS
from backbone.nets.vgg import CONVS
from backbone.options import NetOptions

NOTHING = Facts()
Converted = tuple[dict[str, Tensor], list[str]]


@dataclass(frozen=True)
class Imported:
    """What was made of foreign weights."""

    net: Backbone  # in eval mode, on CPU
    inputs: InputConvention
    classes: tuple[str, ...]
    has_head: bool
    notes: tuple[str, ...]  # what was renamed, filled in or left out


def _renamed(to_theirs: Callable[[str], str], tensors: dict[str, Tensor], where: str) -> Converted:
    names = keys.explained(tensors, keys.inverse(to_theirs), where)
    return {names[name]: t for name, t in tensors.items()}, []


def _torchvision(tensors: dict[str, Tensor], where: str) -> Converted:
    return (tensors, []) if _is_vgg(tensors) else _renamed(keys.same, tensors, where)


def _timm(tensors: dict[str, Tensor], where: str) -> Converted:
    if not _is_vgg(tensors):
        return _renamed(keys.same, tensors, where)
    linear = {"pre_logits.fc1.": "classifier.0.", "pre_logits.fc2.": "classifier.3.", "head.fc.": "classifier.6."}
    found = {}
    for name, t in tensors.items():
        start = next((s for s in linear if name.startswith(s)), "")
        found[linear.get(start, "") + name.removeprefix(start)] = t.flatten(1) if start and t.dim() > 1 else t
    return found, []


def _transformers(tensors: dict[str, Tensor], where: str) -> Converted:
    whole = any(name.startswith("resnet.") for name in tensors)
    return _renamed(keys.transformers if whole else keys.transformers_backbone, tensors, where)


def _detectron2(tensors: dict[str, Tensor], where: str) -> Converted:
    # Its own convert-torchvision-to-d2.py, which made its published torchvision files, names the classifier so.
    tensors = {re.sub(r"^stem\.fc\.", "linear.", name): t for name, t in tensors.items()}
    return _renamed(keys.detectron2, tensors, where)


@dataclass(frozen=True)
class Origin:
    """How one framework's weights are understood."""

    convert: Callable[[dict[str, Tensor], str], Converted]
    """Its tensors and their place -> ours, and notes."""
    facts: Callable[[Files], Facts]
    """What its config says."""
    defaults: Facts = NOTHING
    """What is so by the framework's own documentation where no config says otherwise."""
    entry: Callable[[str], str] = lambda name: ""
    """Where a file of this name has its weights."""


# Neither timm nor torchvision can have stride in the first 1x1, so that is known of all their weights.
_STRIDE = Facts(stride_in_1x1=False)
ORIGINS: dict[str, Origin] = {
    "torchvision": Origin(_torchvision, torchvision.facts, torchvision.DEFAULTS),
    "timm": Origin(_timm, timm.facts, _STRIDE),
    "transformers": Origin(_transformers, transformers.facts),
    "detectron2": Origin(_detectron2, detectron2.facts, entry=lambda name: "model" if name.endswith(".pkl") else ""),
    "mmdetection": Origin(_torchvision, mmdetection.facts),
    "caffe": Origin(caffe.convert, lambda files: Facts(), caffe.DEFAULTS),
}


def convert(
    source: str,
    files: Files,
    where: str,
    given: Facts = NOTHING,
    prefix: str = "",
    drop: tuple[str, ...] = (),
    entry: str = "",
) -> Imported:
    """Foreign weights, with the files beside them, to a net.

    Raises:
        UserError: anything is unexplained, missing, contradictory or not said; names it.
    """
    origin, notes = ORIGINS[source], []
    name = weights_file(files, where)
    raw = weights.read(name, files[name], entry or origin.entry(name))
    raw, dropped = _cut(raw, prefix, drop, where)
    tensors, done = origin.convert(raw, where)
    notes += dropped + done
    try:
        said = origin.facts(files)
    except (KeyError, TypeError, ValueError, AttributeError, SyntaxError, yaml.YAMLError) as error:
        raise UserError(f"{where}: the config beside the weights cannot be read: {error!r}") from error
    options = _options(tensors, where)
    facts = _settled(source, origin, said, given, options)
    options = options.model_copy(update={"stride_in_1x1": bool(facts.stride_in_1x1)})
    has_head = "fc.weight" in tensors or options.net == "vgg"
    tensors, filled = _filled(tensors, options)
    head = tensors["classifier.6.weight" if options.net == "vgg" else "fc.weight"]
    net = _net(options, len(head), tensors, where)
    unnamed = tuple(map(str, range(len(head)))) if has_head else ("none",)
    classes = facts.classes if has_head and facts.classes else unnamed
    if len(classes) != len(head):
        raise UserError(f"{where}: {len(classes)} classes are named, the head has {len(head)}")
    return Imported(net, _inputs(facts), classes, has_head, (*notes, *filled))


def weights_file(files: Files, where: str) -> str:
    """The one file that holds weights; UserError where there is none or more than one."""
    names = [name for name in files if name.endswith(weights.SUFFIXES)]
    if len(names) != 1:
        raise UserError(
            f"{where}: {'more than one file' if names else 'no file'} with weights"
            + (f" ({', '.join(sorted(names))}); give the file itself" if names else "")
        )
    return names[0]


def _cut(tensors: dict[str, Tensor], prefix: str, drop: tuple[str, ...], where: str) -> Converted:
    """Leave out what is named, then cut the prefix off; both must be true of the file."""
    notes = []
    for start in drop:
        out = [name for name in tensors if name.startswith(start)]
        if not out:
            raise UserError(f"{where}: --drop {start}: no key begins so; it has {keys.some(tensors)}")
        notes.append(f"left out, as asked: {start}* ({len(out)} keys)")
        tensors = {name: t for name, t in tensors.items() if name not in out}
    others = [name for name in tensors if not name.startswith(prefix)]
    if others:
        raise UserError(
            f"{where}: --prefix {prefix}: {len(others)} keys do not begin so: {keys.some(others)}. "
            "Keys to leave out are named by --drop"
        )
    return {name.removeprefix(prefix): t for name, t in tensors.items()}, notes


def _is_vgg(tensors: dict[str, Tensor]) -> bool:
    return any(name.startswith("features.") for name in tensors)


def _options(tensors: dict[str, Tensor], where: str) -> NetOptions:
    """The net that has tensors of these names and shapes; where its stride lies they do not say."""
    if _is_vgg(tensors):
        convs = sum(name.startswith("features.") and t.dim() == 4 for name, t in tensors.items())
        depth = next((depth for depth, counts in CONVS.items() if sum(counts) == convs), 0)
        if not depth:
            raise UserError(f"{where}: {convs} convolutions in `features`: no VGG has so many")
        norm = "batch" if any(name.endswith("running_mean") for name in tensors) else "none"
        return NetOptions.model_validate({"net": "vgg", "depth": depth, "norm": norm})
    units = tuple(len({name.split(".")[1] for name in tensors if name.startswith(f"layer{i}.")}) for i in range(1, 5))
    bottleneck = any(".conv3." in name for name in tensors)
    depth = next((d for d, found in UNITS.items() if found == units and (d >= 50) == bottleneck), 0)
    stem = "" if "conv1.weight" in tensors else " without the stem (conv1.weight)"
    if not depth or stem:
        raise UserError(
            f"{where}: {'bottlenecks' if bottleneck else 'pairs of 3x3'} in stages of {', '.join(map(str, units))} "
            f"units{stem}: not a residual net of 18, 34, 50, 101 or 152 layers, or keys are missing"
        )
    try:
        return NetOptions(depth=depth, width=len(tensors["conv1.weight"]) / 64)
    except ValidationError as error:
        raise UserError(f"{where}: {error}") from error


def _settled(source: str, origin: Origin, said: Facts, given: Facts, options: NetOptions) -> Facts:
    """Each fact from the config beside the weights, from the user or from the framework's documentation."""
    found: dict[str, Any] = {}
    for field in fields(Facts):
        config, user, default = (getattr(facts, field.name) for facts in (said, given, origin.defaults))
        compared = field.name not in ("size", "crop_pct", "classes")  # these three change nothing in the maps
        if compared and None not in (config, user) and not _same(config, user):
            raise UserError(f"{field.name}: {user} is given, the config beside the weights says {config}; remove one")
        if field.name == "stride_in_1x1" and source in ("torchvision", "timm") and user:
            raise UserError(f"stride_in_1x1: {source} has no such nets; name weights of its names --source mmdetection")
        values = [value for value in (user, config, default) if value is not None]
        found[field.name] = values[0] if values else None
    strides = options.net == "resnet" and options.depth >= 50
    needed = ["channel_order", "mean", "std", *(["stride_in_1x1"] if strides else [])]
    unsaid = [name for name in needed if found[name] is None]
    if unsaid:
        raise UserError(
            f"{', '.join(unsaid)}: no config beside the weights says, and the weights would load with any value: "
            + " ".join(f"--{name} ..." for name in unsaid)
        )
    if not strides:
        found["stride_in_1x1"] = False
    return Facts(**found)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return len(a) == len(b) and all(abs(x - y) < 1e-6 for x, y in zip(a, b, strict=True))
    return a == b


def _filled(tensors: dict[str, Tensor], options: NetOptions) -> Converted:
    """Complete by what files of bare backbones leave out, each named: counters of batches, and a head."""
    tensors, notes = dict(tensors), []
    norms = {name.rpartition(".")[0] for name in tensors if name.endswith(("running_mean", "running_var"))}
    absent = [f"{norm}.num_batches_tracked" for norm in norms if f"{norm}.num_batches_tracked" not in tensors]
    tensors |= {name: torch.tensor(0) for name in absent}
    if absent:
        notes.append(f"not in the file: {len(absent)} counters of batches (num_batches_tracked), set to 0")
    if options.net == "resnet" and not {"fc.weight", "fc.bias"} & tensors.keys():
        features = round(512 * options.width) * (4 if options.depth >= 50 else 1)
        tensors |= {"fc.weight": torch.zeros(1, features), "fc.bias": torch.zeros(1)}
        notes.append("not in the file: the classifier (fc.*); the artifact has one class, whose score is always 0")
    converted = sorted({str(t.dtype) for t in tensors.values() if t.is_floating_point() and t.dtype != torch.float32})
    if converted:
        notes.append(f"{', '.join(converted)} became float32")
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, notes


def _net(options: NetOptions, num_classes: int, tensors: dict[str, Tensor], where: str) -> Backbone:
    """The net with these tensors; UserError with every kind of misfit."""
    with torch.device("meta"):
        net = build(options, num_classes)
    own = net.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [
        f"{k} {list(tensors[k].shape)} instead of {list(own[k].shape)}"
        for k in own.keys() & tensors.keys()
        if own[k].shape != tensors[k].shape
    ]
    faults = [
        f"{len(found)} keys {kind}: {keys.some(sorted(found))}"
        for kind, found in (("missing", missing), (f"that {options.name} has not", extra), ("of another shape", shapes))
        if found
    ]
    if faults:
        raise UserError(f"{where}: not the weights of {options.name} (names are raybone's): " + "; ".join(faults))
    broken = [name for name, t in tensors.items() if not t.isfinite().all()]
    if broken:
        raise UserError(f"{where}: values that are not finite in {keys.some(broken)}")
    net.load_state_dict(tensors, assign=True)
    return net.eval()


def _inputs(facts: Facts) -> InputConvention:
    known = {
        name: getattr(facts, name)
        for name in ("channel_order", "mean", "std", "size", "crop_pct", "interpolation")
        if getattr(facts, name) is not None
    }
    return InputConvention(**known)
