"""Looking into a net: layer responses (section 4.2, Fig. 7), and the gradient each unit gets (arXiv:1603.05027).

Whatever is measured is measured on a copy; the net stays as it was.
"""

import copy
import json
import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbone import artifact
from backbone.data.loader import ValSet
from backbone.data.sources import Source
from backbone.errors import UserError
from backbone.evaluation import class_targets, open_images, training_of
from backbone.figures import draw_gradients, draw_responses, draw_scaling
from backbone.inputs import InputConvention
from backbone.judging import Analysis
from backbone.nets import Backbone, build
from backbone.nets.resnet import Unit
from backbone.options import NetOptions
from backbone.storage import write_folder


def units(net: Backbone) -> dict[str, Unit]:
    """The units by name, from the image to the classes.

    Raises:
        UserError: the net has none (VGG).
    """
    found = {name: module for name, module in net.named_modules() if isinstance(module, Unit)}
    if not found:
        raise UserError(f"{net.options.name} has no units to look at; residual and plain nets have")
    return found


@torch.no_grad()
def layer_responses(net: Backbone, batches: Iterable[Tensor]) -> list[dict[str, Any]]:
    """Standard deviation of each 3x3 layer's output, after BN and before ReLU or addition, as in Fig. 7.

    Over all samples, channels and positions, in eval mode. At initialisation it says nothing: BN gives every layer 1.

    Args:
        net: residual or plain net.
        batches: normalised images [N, 3, H, W].

    Returns:
        [{layer, std}], from the image to the classes.

    Raises:
        UserError: a VGG, or pre-activation, where BN comes before the layer.
    """
    if net.options.preact:
        raise UserError(
            f"{net.options.name} with preact: BN comes before the layer, so Fig. 7's responses do not exist"
        )
    net = copy.deepcopy(net).eval()
    layers: dict[str, tuple[nn.Module, nn.Module]] = {"conv1": (net.get_submodule("conv1"), net.get_submodule("bn1"))}
    for name, unit in units(net).items():
        pairs = {"conv1": (unit.conv1, unit.bn1), "conv2": (unit.conv2, unit.bn2)}
        layers |= {f"{name}.{layer}": pair for layer, pair in pairs.items()}
    norms = {
        name: norm
        for name, (conv, norm) in layers.items()
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3)
    }
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
        net: residual or plain net.
        images: normalised [N, 3, H, W].
        labels: int64 [N].

    Returns:
        [{unit, output, weights}], from the image to the classes. `output`: of the sum of the samples' cross-entropies
        by what the unit gives out, the L2 norm of a sample, root mean square over samples. `weights`: of their mean by
        the weights of the unit's convolutions, L2 norm.

    Raises:
        UserError: a VGG.
    """
    net = copy.deepcopy(net).train()
    outputs = _kept_outputs(net)
    F.cross_entropy(net.classify(images).float(), labels, reduction="sum").backward()
    rows = []
    for name, unit in units(net).items():
        weights = [m.weight.grad for m in unit.modules() if isinstance(m, nn.Conv2d) and m.weight.grad is not None]
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


def analyse(options: Analysis) -> dict[str, Any]:
    """Everything that `jobs/analyse.py` writes: pictures, and the numbers they are drawn from. Returns the numbers.

    Raises:
        UserError: an artifact does not verify, has no units or reads another size; bad data; the output cannot be
            written.
    """
    loaded = [(url, *artifact.load(url)) for url in options.backbone]
    plain = InputConvention(size=options.size, crop_pct=1.0)
    size, crop_pct = (loaded[0][2].size, loaded[0][2].crop_pct) if loaded else (plain.size, plain.crop_pct)
    if any(inputs.size != size for _, _, inputs, _ in loaded):
        raise UserError("backbone: nets that read images of different sizes cannot share a figure; analyse them apart")
    data = options.data.model_copy(update={"size": size, "crop_pct": crop_pct})
    source = open_images(data, options.seed)
    count = min(options.images, len(source))
    ids = [i * len(source) // count for i in range(count)]
    batch = ValSet(source, data).batch(ids)
    labels, images = batch["labels"], plain.normalize(batch["images"])
    gradients, responses, scaling = [], [], []
    for depth in options.depths:
        for shortcut in ("none", "A"):
            net = initial(NetOptions(net="cifar_resnet", depth=depth, shortcut=shortcut), options.seed, source)
            rows = gradient_norms(net, images, labels)
            gradients.append({**about(net), "state": "at initialisation", "of": f"seed {options.seed}", "units": rows})
    for url, net, inputs, block in loaded:
        seen = inputs.normalize(batch["images"])
        places = torch.from_numpy(class_targets((url,), [block["classes"]], net.num_classes, source))
        of = {**about(net), "of": url, "trained": training_of(block["provenance"])}
        gradients.append({**of, "state": "trained", "units": gradient_norms(net, seen, places[labels])})
        responses.append({**of, "layers": layer_responses(net, seen.split(32))})
    for scale in options.scales if options.depths else ():
        scaled = NetOptions(net="cifar_resnet", depth=max(options.depths), shortcut="A", shortcut_scale=scale)
        net = initial(scaled, options.seed, source)
        rows = gradient_norms(net, images, labels)
        measured = shortcut_path(scaled, images[:2])
        closed = shortcut_factors(scale, len(measured))
        scaling.append({"scale": scale, **about(net), "units": rows, "measured": measured, "closed_form": closed})
    record = {
        "gradients": gradients,
        "responses": responses,
        "scaling": scaling,
        "provenance": {
            "analysis": options.model_dump(mode="json"),
            "images": count,
            "data": {"val": source.fingerprint},
            "backbones": {url: block["weights_sha256"] for url, _, _, block in loaded},
            **artifact.environment(),
        },
    }
    files = {}
    if gradients:
        files["gradients.png"] = draw_gradients(gradients)
    if responses:
        files["responses.png"] = draw_responses(responses)
    if scaling:
        files["scaling.png"] = draw_scaling(scaling, scaling[0]["name"])
    write_folder(options.output, {**files, "analysis.json": (json.dumps(record, indent=1) + "\n").encode()}, "analysis")
    return record


def initial(options: NetOptions, seed: int, source: Source) -> Backbone:
    """The net as it begins."""
    torch.manual_seed(seed)
    return build(options, len(source.classes))


def about(net: Backbone) -> dict[str, Any]:
    """What a figure calls a net."""
    kind = "plain" if net.options.shortcut == "none" else "residual"
    return {"name": net.options.name.removeprefix("cifar_"), "kind": kind, "depth": net.options.depth}


def table(record: dict[str, Any]) -> str:
    """The gist for a terminal: of each net the gradient at the first and the last unit, and the middle response."""
    lines = [f"{'net':<12}{'state':<20}{'first unit':>12}{'last unit':>12}{'first / last':>14}"]
    for row in record["gradients"]:
        first, last = row["units"][0]["output"], row["units"][-1]["output"]
        lines.append(f"{row['name']:<12}{row['state']:<20}{first:>12.3g}{last:>12.3g}{first / last:>14.3g}")
    for row in record["scaling"]:
        first, last, state = row["units"][0]["output"], row["units"][-1]["output"], f"λ = {row['scale']:g}"
        alone = f"   shortcuts alone {row['measured'][0]:.3g}"
        lines.append(f"{row['name']:<12}{state:<20}{first:>12.3g}{last:>12.3g}{first / last:>14.3g}{alone}")
    for row in record["responses"]:
        deviations = [layer["std"] for layer in row["layers"]]
        lines.append(
            f"{row['name']:<12}layer responses: median {statistics.median(deviations):.3g}, of {len(deviations)}"
        )
    return "\n".join(lines)


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
