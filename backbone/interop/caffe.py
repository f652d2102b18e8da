"""MSRA's Caffe nets as they are passed around: Detectron's blobs, LAYER.INDEX blobs, or torchvision's names.

All were trained on BGR of 0..255 less a mean, with stride in the first 1x1, and have nothing beside them that says so.
"""

import torch
from torch import Tensor

from backbone.errors import UserError
from backbone.inputs import IMAGENET_MEAN
from backbone.interop import keys
from backbone.interop.common import Facts

# detectron2's PIXEL_MEAN for these, BGR 103.530, 116.280, 123.675, is ImageNet's; std is 1 on the 0..255 scale.
DEFAULTS = Facts(stride_in_1x1=True, channel_order="BGR", mean=IMAGENET_MEAN, std=(1 / 255,) * 3)
EPS = 1e-5
NOTE = "Caffe pools the stem unpadded and rounds up; detectron2, torchvision and this net pad: windows one px off"
CONV = ("conv1.weight", "conv2.weight", "conv3.weight", "downsample.0.weight")
HEAD = {"pred_w": "fc1000_w", "pred_b": "fc1000_b"}


def convert(tensors: dict[str, Tensor], where: str) -> tuple[dict[str, Tensor], list[str]]:
    """Blobs -> our names and values, and what was done to them.

    Raises:
        UserError: blobs that no such net has.
    """
    if any(name.startswith("layer") for name in tensors):
        keys.explained(tensors, keys.inverse(keys.same), where)
        return tensors, [NOTE]
    if "conv1_w" in tensors:
        tensors = {HEAD.get(name, name): t for name, t in tensors.items()}
        table = keys.inverse(keys.caffe2)
        convs = {f"{theirs[:-1]}b": ours for theirs, ours in table.items() if ours.endswith(CONV)}
        return _ours(tensors, table, convs, {}, where)
    # The net of 50 layers calls its units a, b, c; those of 101 and 152 call them a, b1, b2.
    table = keys.inverse(keys.caffe_numbers) | keys.inverse(keys.caffe)
    convs = {f"{theirs[:-1]}1": ours for theirs, ours in table.items() if ours.endswith(CONV)}
    factors = {f"{theirs[:-1]}2": ours for theirs, ours in table.items() if ours.endswith("running_mean")}
    return _ours(tensors, table, convs, factors, where)


def _ours(
    tensors: dict[str, Tensor], table: dict[str, str], convs: dict[str, str], factors: dict[str, str], where: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename by `table`; fold biases of convolutions (named in `convs`) and scales of statistics (in `factors`).

    Without `factors`, the form is Detectron's, whose norms may have no statistics.
    """
    biases = {convs[name]: t for name, t in tensors.items() if name in convs}
    scales = {factors[name]: t for name, t in tensors.items() if name in factors}
    names = keys.explained(tensors.keys() - convs.keys() - factors.keys(), table, where)
    found, notes = {ours: _shaped(ours, tensors[name]) for name, ours in names.items()}, [NOTE]
    for mean, factor in scales.items():
        scale = 1 / factor.item() if factor.numel() == 1 and factor.item() else 0.0
        for name in (mean, mean.replace("running_mean", "running_var")):
            if name not in found:
                raise UserError(f"{where}: a scale for {name}, which is not there")
            found[name] = found[name] * scale
    gammas = [] if factors else [name for name in found if _is_gamma(name)]
    statistics = {name: {name.replace("weight", part) for part in ("running_mean", "running_var")} for name in gammas}
    merged = [name for name in gammas if not statistics[name] & found.keys()]
    for name in merged:  # the statistics are in gamma and beta; these make the norm divide by 1
        found[name.replace("weight", "running_mean")] = torch.zeros_like(found[name])
        found[name.replace("weight", "running_var")] = torch.full_like(found[name], 1 - EPS)
    for conv, bias in biases.items():
        mean = _norm_of(conv) + ".running_mean"
        if mean not in found:
            raise UserError(f"{where}: a bias for {conv}, whose norm is not there")
        found[mean] = found[mean] - bias.reshape(-1)
    if merged:
        notes.append(f"{len(merged)} norms came as scale and bias alone: mean 0, variance 1 - eps")
    if biases:
        notes.append(f"{len(biases)} biases of convolutions were moved into the means of their norms")
    return found, notes


def _is_gamma(name: str) -> bool:
    return name.endswith(".weight") and not name.endswith(CONV) and not name.startswith("fc.")


def _norm_of(conv: str) -> str:
    owner = conv.removesuffix(".weight")
    return owner[:-1] + "1" if owner.endswith("downsample.0") else owner.replace("conv", "bn")


def _shaped(name: str, blob: Tensor) -> Tensor:
    """Caffe's blobs can have leading axes of 1."""
    if name.endswith(CONV):
        return blob
    return blob.reshape(blob.shape[-2:]) if name == "fc.weight" else blob.reshape(-1)
