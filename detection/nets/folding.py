"""Frozen norms folded, under autocast, into the convolutions before them, at every step anew: those go on to train.

A frozen norm is a factor s and a shift t for each channel, and s (w * x) + t = (s w) * x + t: weights are scaled, of
which there are few, in place of maps. And maps stay in the lower precision, as behind a norm that trains, where
torchvision's frozen norm gives float32, which the next convolution casts back. In fp32 there is less to gain, and norm
and convolution are computed as in torchvision: rounding otherwise (some 1e-6 of a map) can change which proposals are
kept, and with them the losses.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from backbone.nets import Backbone
from backbone.nets.external import External
from backbone.nets.resnet import ResNet, Unit


def _in_lower_precision(x: Tensor) -> bool:
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


class FoldedBatchNorm2d(FrozenBatchNorm2d):
    """A frozen norm that, under autocast, the convolution before it has applied."""

    def forward(self, x: Tensor) -> Tensor:
        return x if _in_lower_precision(x) else super().forward(x)


class NormedConv2d(nn.Conv2d):
    """A convolution, under autocast with the frozen norm behind it; keys and parameters are the convolution's alone."""

    _norm: tuple[FoldedBatchNorm2d]  # in a tuple, so that it is not registered here too

    def forward(self, input: Tensor) -> Tensor:
        if not _in_lower_precision(input):
            return super().forward(input)
        (norm,) = self._norm
        weight, bias, mean, variance = map(norm.get_buffer, ("weight", "bias", "running_mean", "running_var"))
        scale = weight * (variance + norm.eps).rsqrt()
        mean = mean if self.bias is None else mean - self.bias
        return self._conv_forward(input, self.weight * scale.view(-1, 1, 1, 1), bias - mean * scale)


def pairs(net: Backbone) -> Iterator[tuple[str, str]]:
    """Names of a convolution and the norm that reads it and is the only one to do so. Nets of other libraries are left
    as they are: their names do not say what follows what."""
    if isinstance(net, External):
        return
    for name, module in net.named_modules():
        at = f"{name}." if name else ""
        if isinstance(module, nn.Sequential):
            children = list(module.named_children())
            couples = [(a, b) for (a, _), (b, _) in itertools.pairwise(children)]
        elif isinstance(module, (ResNet, Unit)) and not module.preact:
            couples = [
                (f"conv{i}", f"bn{i}") for i in (1, 2, 3) if isinstance(getattr(module, f"bn{i}", None), nn.Module)
            ]
        else:
            continue
        yield from ((at + a, at + b) for a, b in couples)


def fold(net: Backbone) -> None:
    """Fold every frozen norm of `net` that directly follows a convolution, in place. State dicts stay as they are."""
    for conv_name, norm_name in list(pairs(net)):
        conv, norm = net.get_submodule(conv_name), net.get_submodule(norm_name)
        if type(conv) is nn.Conv2d and type(norm) is FrozenBatchNorm2d:
            # Neither has state beyond its attributes, and whoever holds one of them already holds the folded one.
            conv.__class__, norm.__class__ = NormedConv2d, FoldedBatchNorm2d
            object.__setattr__(conv, "_norm", (norm,))
