"""What the conversions to and from every framework share."""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from backbone.inputs import InputConvention
from backbone.nets import Backbone
from backbone.nets.external import External
from backbone.options import NetOptions

Files = dict[str, bytes]
"""Name -> content of a folder's files."""

Answer = Callable[[Tensor], dict[str, Tensor]]
"""uint8 RGB images [N, 3, H, W] -> stage maps and, where it has a head, `logits`, as a framework computes them."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A backbone on its way out: in eval mode on CPU, with inputs that have no mean image."""

    net: Backbone
    inputs: InputConvention
    classes: tuple[str, ...]
    place: str
    """Where the export will lie, as the user wrote it."""

    @property
    def options(self) -> NetOptions:
        """The net's, which is one of raybone's own."""
        assert isinstance(self.net.options, NetOptions)
        return self.net.options


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the files beside foreign weights say of them; None: nothing. Mean and std are RGB on the 0..1 scale."""

    stride_in_1x1: bool | None = None
    shortcut_pad: str | None = None
    dilation: str | None = None
    """`none`, `dropped` by the user's will, or `dilated`, which no net here can be."""
    channel_order: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    classes: tuple[str, ...] | None = None


def state(net: Backbone) -> dict[str, Tensor]:
    """The net's tensors, with the batch counters that frozen norms lack and strict loaders ask for."""
    tensors = {name.removeprefix(net.prefix): t.detach().cpu().contiguous() for name, t in net.state_dict().items()}
    for name in [name for name in tensors if name.endswith("running_var")]:
        tensors.setdefault(name.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    return tensors


def rgb_state(source: Source) -> dict[str, Tensor]:
    """`state`, of the net that reads RGB: one that reads BGR has the channels of its first kernels reversed.

    Exact, and needed where a framework feeds RGB and nothing else.
    """
    tensors = state(source.net)
    if source.inputs.channel_order == "BGR":
        first = "conv1.weight" if "conv1.weight" in tensors else "features.0.weight"
        if isinstance(source.net, External):
            first = f"{source.net.model.pretrained_cfg['first_conv']}.weight"
        tensors[first] = tensors[first].flip(1).contiguous()
    return tensors


def stage_modules(options: NetOptions) -> dict[str, str]:
    """Stage -> the module of torchvision's net, and timm's, that gives its map."""
    if options.net != "vgg":
        return {f"C{i + 1}": f"layer{i}" for i in range(1, 5)}
    from backbone.nets.vgg import CONVS

    per_conv, ends, at = (2 if options.norm == "none" else 3), [], 0
    for count in CONVS[options.depth]:
        at += per_conv * count + 1
        ends.append(at)  # past the pool
    # C2 to C4 are what pools 3 to 5 read, C5 is pool 5.
    return {"C2": f"features.{ends[2] - 2}", "C3": f"features.{ends[3] - 2}", "C4": f"features.{ends[4] - 2}"} | {
        "C5": f"features.{ends[4] - 1}"
    }


def with_maps(model: nn.Module, forward: Callable[[Tensor], Tensor | None], stages: dict[str, str]) -> Answer:
    """`forward`, which gives logits or nothing, as an answer with the outputs of the named modules of `model`."""
    model.eval()

    @torch.no_grad()
    def answer(images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = {}

        def keep(stage: str) -> Callable[..., None]:
            # Later modules work in place, so what passes here is copied.
            return lambda module, args, output: maps.__setitem__(stage, output.clone())

        hooks = [model.get_submodule(module).register_forward_hook(keep(stage)) for stage, module in stages.items()]
        logits = forward(images)
        for hook in hooks:
            hook.remove()
        return maps if logits is None else {**maps, "logits": logits}

    return answer


def normalized(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """uint8 RGB -> what torchvision's, timm's and transformers' pipelines make of it: 0..1, less mean, over std."""
    shape = (1, 3, 1, 1)
    return (images.float() / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def resize_size(inputs: InputConvention) -> int:
    """Pixels of the shorter side before the centre is cut out."""
    return int(inputs.size / inputs.crop_pct)


def saved(tensors: Mapping[str, Tensor]) -> bytes:
    """A `.pth` of tensors alone, which `torch.load(weights_only=True)` opens."""
    buffer = io.BytesIO()
    torch.save(dict(tensors), buffer)
    return buffer.getvalue()


def safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """A `.safetensors` with the mark that transformers asks for."""
    return save_safetensors(dict(tensors), metadata={"format": "pt"})


def to_json(tree: Mapping[str, Any]) -> bytes:
    """As it is written into every folder."""
    return (json.dumps(tree, indent=2) + "\n").encode()


def three(values: Any) -> tuple[float, ...]:
    """Three numbers, one a channel; ValueError otherwise."""
    numbers = tuple(float(v) for v in values)
    if len(numbers) != 3:
        raise ValueError(f"{len(numbers)} numbers where there are 3 channels")
    return numbers
