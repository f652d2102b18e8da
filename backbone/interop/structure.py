"""The net that has tensors of given names and shapes."""

import torch
from pydantic import ValidationError
from torch import Tensor

from backbone.errors import UserError
from backbone.interop.keys import some
from backbone.interop.origins import Converted
from backbone.nets import Backbone, build
from backbone.nets.meta import on_meta
from backbone.nets.resnet import UNITS
from backbone.nets.vgg import CONVS
from backbone.options import NetOptions


def options_of(tensors: dict[str, Tensor], cifar: bool, where: str) -> NetOptions:
    """The net that has tensors of these names and shapes; where it strides and pads they do not say.

    `cifar`: whether it may be one of CIFAR's, whose pixels are none of ImageNet's conventions.

    Raises:
        UserError: no net has them.
    """
    if any(name.startswith("features.") for name in tensors):
        convs = sum(name.startswith("features.") and t.dim() == 4 for name, t in tensors.items())
        depth = next((depth for depth, counts in CONVS.items() if sum(counts) == convs), 0)
        if not depth:
            raise UserError(f"{where}: {convs} convolutions in `features`: no VGG has so many")
        norm = "batch" if any(name.endswith("running_mean") for name in tensors) else "none"
        return NetOptions.model_validate({"net": "vgg", "depth": depth, "norm": norm})
    units = tuple(len({name.split(".")[1] for name in tensors if name.startswith(f"layer{i}.")}) for i in range(1, 5))
    bottleneck = any(".conv3." in name for name in tensors)
    stem = "" if "conv1.weight" in tensors else " without the stem (conv1.weight)"
    if cifar and not units[3] and len(set(units[:3])) == 1 and units[0] and not bottleneck and not stem:
        projects = any(".downsample." in name for name in tensors)
        return NetOptions(
            net="cifar_resnet",
            depth=6 * units[0] + 2,
            shortcut="B" if projects else "A",
            width=len(tensors["conv1.weight"]) / 16,
        )
    depth = next((d for d, found in UNITS.items() if found == units and (d >= 50) == bottleneck), 0)
    if not depth or stem:
        raise UserError(
            f"{where}: {'bottlenecks' if bottleneck else 'pairs of 3x3'} in stages of {', '.join(map(str, units))} "
            f"units{stem}: not a residual net of 18, 34, 50, 101 or 152 layers, or keys are missing"
        )
    try:
        return NetOptions(depth=depth, width=len(tensors["conv1.weight"]) / 64)
    except ValidationError as error:
        raise UserError(f"{where}: {error}") from error


def filled(tensors: dict[str, Tensor], options: NetOptions) -> Converted:
    """Complete by what files of bare backbones leave out, each named: counters of batches, and a head."""
    tensors, notes = dict(tensors), []
    norms = {name.rpartition(".")[0] for name in tensors if name.endswith(("running_mean", "running_var"))}
    absent = [f"{norm}.num_batches_tracked" for norm in norms if f"{norm}.num_batches_tracked" not in tensors]
    tensors |= {name: torch.tensor(0) for name in absent}
    if absent:
        notes.append(f"not in the file: {len(absent)} counters of batches (num_batches_tracked), set to 0")
    if options.net != "vgg" and not {"fc.weight", "fc.bias"} & tensors.keys():
        last = max(int(name[5]) for name in tensors if name.startswith("layer"))
        channels = [len(t) for name, t in tensors.items() if name.startswith(f"layer{last}.0.conv")] or [1]
        tensors |= {"fc.weight": torch.zeros(1, channels[-1]), "fc.bias": torch.zeros(1)}
        notes.append("not in the file: the classifier (fc.*); the artifact has one class, whose score is always 0")
    converted = sorted({str(t.dtype) for t in tensors.values() if t.is_floating_point() and t.dtype != torch.float32})
    if converted:
        notes.append(f"{', '.join(converted)} became float32")
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, notes


def classes_of(tensors: dict[str, Tensor], options: NetOptions, where: str) -> int:
    """How many classes the head tells apart; UserError where half of it is missing."""
    head = "classifier.6.weight" if options.net == "vgg" else "fc.weight"
    if head not in tensors:
        raise UserError(f"{where}: 1 key missing: {head} (names are raybone's)")
    return len(tensors[head])


def net_of(options: NetOptions, num_classes: int, tensors: dict[str, Tensor], where: str) -> Backbone:
    """The net with these tensors; UserError with every kind of misfit."""
    try:
        with on_meta():
            net = build(options, num_classes)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise UserError(f"{where}: no net is as large as its first shapes say: {error}") from error
    faults = misfits(net.state_dict(), tensors, options.name)
    if faults:
        raise UserError(f"{where}: not the weights of {options.name} (names are raybone's): {faults}")
    check_finite(tensors, where)
    net.load_state_dict(tensors, assign=True)
    return net.eval()


def misfits(own: dict[str, Tensor], tensors: dict[str, Tensor], name: str) -> str:
    """Every kind in which a file's tensors are not those of a net called `name`, in words; empty where they fit."""
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [
        f"{key} {list(tensors[key].shape)} instead of {list(own[key].shape)}"
        for key in sorted(own.keys() & tensors.keys())
        if own[key].shape != tensors[key].shape
    ]
    kinds = (("missing", missing), (f"that {name} has not", extra), ("of another shape", shapes))
    return "; ".join(f"{len(found)} keys {kind}: {some(found)}" for kind, found in kinds if found)


def check_finite(tensors: dict[str, Tensor], where: str) -> None:
    """UserError that names those with values that are not finite."""
    broken = sorted(name for name, t in tensors.items() if not t.isfinite().all())
    if broken:
        raise UserError(f"{where}: values that are not finite in {some(broken)}")
