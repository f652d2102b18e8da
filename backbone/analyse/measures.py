"""Looking into a net: layer responses (section 4.2, Fig. 7), and the gradient each unit gets (arXiv:1603.05027).

Whatever is measured is measured on a copy; the net stays as it was.
"""

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbone.errors import UserError
from backbone.nets import Backbone, build
from backbone.nets.external import External
from backbone.nets.resnet import Unit
from backbone.options import NetOptions


def units(net: Backbone) -> dict[str, nn.Module]:
    """The units by name, from the image to the classes; of external nets the blocks of each stage.

    Raises:
        UserError: the net has none (VGG).
    """
    blocks = {id(block) for block in net.blocks()} if isinstance(net, External) else set()
    found = {name: m for name, m in net.named_modules() if isinstance(m, Unit) or id(m) in blocks}
    if not found:
        raise UserError(f"{net.options.name} has no units to look at; residual and plain nets have")
    return found


def no_responses(net: Backbone) -> str:
    """Why there are no layer responses of a net as in Fig. 7; empty: there are."""
    if isinstance(net.options, NetOptions) and net.options.preact:
        return f"{net.options.name} with preact: BN comes before the layer, so Fig. 7's responses do not exist"
    if not _normed_layers(net):
        return f"{net.options.name}: its BN has the activation in it, or there is none: no responses as in Fig. 7"
    return ""


def _normed_layers(net: Backbone) -> dict[str, nn.Module]:
    """The BN behind each 3x3 layer, by the layer's name."""
    pairs: dict[str, tuple[Any, Any]] = {}
    if not isinstance(net, External):
        pairs["conv1"] = net.get_submodule("conv1"), net.get_submodule("bn1")
    for name, unit in units(net).items():
        for i in (1, 2):
            pairs[f"{name}.conv{i}"] = getattr(unit, f"conv{i}", None), getattr(unit, f"bn{i}", None)
    return {
        name: norm
        for name, (layer, norm) in pairs.items()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and norm and not hasattr(norm, "act")
    }


@torch.no_grad()
def layer_responses(net: Backbone, batches: Iterable[Tensor]) -> list[dict[str, Any]]:
    """Standard deviation of each 3x3 layer's output, after BN and before ReLU or addition, as in Fig. 7.

    Over all samples, channels and positions, in eval mode. At initialisation it says nothing: BN gives every layer 1.

    Args:
        net: residual or plain net, or one of timm's of its ResNet family.
        batches: normalised images [N, 3, H, W].

    Returns:
        [{layer, std}], from the image to the classes.

    Raises:
        UserError: see `no_responses`.
    """
    if reason := no_responses(net):
        raise UserError(reason)
    net = copy.deepcopy(net).eval()
    norms = _normed_layers(net)
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in norms}

    def add(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            x = output.double()  # now: the ReLU that follows works in place
            sums[name] += torch.stack([torch.tensor(x.numel()), x.sum().cpu(), x.square().sum().cpu()])

        return hook

    for name, norm in norms.items():
        norm.register_forward_hook(add(name))
    for images in batches:
        net.classify(images)
    rows = []
    for name, (count, total, square) in ((name, found.tolist()) for name, found in sums.items()):
        rows.append({"layer": name, "std": math.sqrt(max(square / count - (total / count) ** 2, 0.0))})
    return rows


def gradient_norms(net: Backbone, images: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """The gradient that each unit gets, in training mode: with the batch's statistics.

    Args:
        net: residual, plain or external net.
        images: normalised [N, 3, H, W].
        labels: int64 [N].

    Returns:
        [{unit, output, weights}], from the image to the classes. `output`: of the sum of the samples' cross-entropies
        by what the unit gives out, the L2 norm of a sample, root mean square over samples. `weights`: of their mean by
        the weights of the unit's convolutions and linear layers, L2 norm.

    Raises:
        UserError: a VGG.
    """
    net = copy.deepcopy(net).train()
    outputs = _kept_outputs(net)
    F.cross_entropy(net.classify(images).float(), labels, reduction="sum").backward()
    rows = []
    for name, unit in units(net).items():
        layers = [m for m in unit.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        weights = [m.weight.grad for m in layers if m.weight.grad is not None]
        of_weights = torch.stack([gradient.double().square().sum() for gradient in weights]).sum().sqrt()
        rows.append(
            {
                "unit": name,
                "output": _per_sample(outputs[name]),
                "weights": of_weights.item() / len(images),
            }
        )
    return rows


def shortcut_path(options: NetOptions, images: Tensor) -> list[float]:
    """What is left, at each unit's output, of a gradient at the last one's that comes through the shortcuts alone.

    Measured: λ is the options' `shortcut_scale`; F is silenced by a `residual_scale` of 0, and pre-activation leaves
    nothing but additions between the units. Relative to λ = 1, so that what zero-padded shortcuts drop does not show.
    """
    lone = options.model_copy(update={"residual_scale": 0.0, "preact": True, "shortcut": "A"})

    def norms(scale: float) -> list[float]:
        torch.manual_seed(0)
        net = build(lone.model_copy(update={"shortcut_scale": scale}), 2).double().eval()
        outputs = _kept_outputs(net)
        net(images.double())
        *_, last = outputs.values()
        last.backward(torch.randn(last.shape, generator=torch.Generator().manual_seed(0), dtype=last.dtype))
        return [_per_sample(output) for output in outputs.values()]

    return [scaled / plain for scaled, plain in zip(norms(options.shortcut_scale), norms(1.0), strict=True)]


def shortcut_factors(scale: float, count: int) -> list[float]:
    """What the shortcuts alone make of the gradient: after unit 1, 2, ... of `count`, λ^(count - unit).

    The product of λ over the units above, the first term of arXiv:1603.05027's equations 8 and 9.
    """
    return [scale ** (count - unit) for unit in range(1, count + 1)]


def _kept_outputs(net: Backbone) -> dict[str, Tensor]:
    """Filled by the next forward pass: each unit's output, which will keep its gradient."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            output.retain_grad()
            outputs[name] = output

        return hook

    for name, unit in units(net).items():
        unit.register_forward_hook(keep(name))
    return outputs


def _per_sample(output: Tensor) -> float:
    assert output.grad is not None
    return (output.grad.double().square().sum() / len(output)).sqrt().item()
