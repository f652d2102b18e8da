"""Nets that are no net of raybone's, called by their names instead of by hundreds of keys that do not fit."""

import re
from collections.abc import Mapping

from backbone.errors import UserError
from backbone.nets.resnet import UNITS


class Foreign(UserError):
    """The weights of a net that raybone has not; says of which."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(
            f"{where}: the weights of {what}, which no net of raybone computes; timm's nets come in by --source timm "
            "--model NAME"
        )


Shapes = Mapping[str, tuple[int, ...]]

# What a key shows, wherever it stands; the first that is seen counts.
MARKS: tuple[tuple[str, str], ...] = (
    (r"(^|\.)(trunk_output|s1\.b1)\.", "RegNet"),
    (r"\.se\.(fc|conv)\d?\.|\.se_module\.", "a ResNet with squeeze-and-excitation (SE, SK, ECA)"),
    (r"\.conv2\.(radix|fc1|bn0|bn1)\b.*|\.conv2\.conv\.weight$", "ResNeSt or SKNet"),
    (r"\.(convs|bns)\.\d+\.(weight|bias|running_mean)$", "Res2Net"),
    (r"\.conv2(_offset|\.conv_offset|\.offset)", "a ResNet with deformable convolutions"),
    (r"\.(context_block|gen_attention_block|nonlocal_block)", "a ResNet with attention blocks"),
    (r"\.(ca|sa|cbam|ChannelGate|SpatialGate)\.", "a ResNet with CBAM"),
    (r"(^|\.)stages\.\d\.blocks\.\d+\.(norm\d|conv\d)\.weight$", "a ResNetV2 (BiT)"),
    (r"(^|\.)(conv1\.(0|3|6)|stem\.(0|3|6))\.weight$", "a ResNet-C or -D (a stem of three 3x3 convolutions)"),
    (r"\.downsample\.2\.running_mean$", "a ResNet-D (pooling before its projections)"),
    (r"\.residual_function\.", "weiaicunzai/pytorch-cifar100's ResNet, of other stages"),
    (r"(^|\.)block\d\.layer\.\d+\.", "a wide ResNet for CIFAR"),
    (r"(^|\.)(cls_token|patch_embed|pos_embed)|\.attn\.qkv\.", "a vision transformer"),
    (
        r"(^|\.)downsample_layers\.\d|\.dwconv\.|\.conv_dw\.weight$",
        "ConvNeXt, or another net of depthwise convolutions",
    ),
    (r"\.denseblock\d", "DenseNet"),
    (r"(^|\.)features\.\d+\.(conv|block)\.\d", "MobileNet or EfficientNet"),
)


def foreign(shapes: Shapes) -> str:
    """What the net is that has tensors of these names (theirs) and shapes; empty: nothing that is known here."""
    return next((what for mark, what in MARKS if any(re.search(mark, name) for name in shapes)), "")


def foreign_shapes(shapes: Shapes) -> str:
    """The same of a net whose tensors bear our names, by their shapes alone."""
    stem = shapes.get("conv1.weight", ())
    first = shapes.get("layer1.0.conv1.weight", ())
    middle = shapes.get("layer1.0.conv2.weight", ())
    units = tuple(len({n.split(".")[1] for n in shapes if n.startswith(f"layer{i}.")}) for i in range(1, 5))
    bottleneck = "layer1.0.conv3.weight" in shapes
    depth = next((d for d, found in UNITS.items() if found == units and (d >= 50) == bottleneck), 0)
    name = f"resn{{}}{depth}" if depth else "a ResN{}"
    if not all(len(shape) == 4 and all(shape) for shape in (stem, first, middle)):
        return ""
    if bottleneck and middle[1] < first[0]:
        groups = first[0] // middle[1]
        return f"{name.format('ext')}_{groups}x{middle[1]}d ({groups} groups in its 3x3 convolutions)"
    if bottleneck and first[0] > stem[0]:
        return (
            f"wide_{name.format('et')}_{first[0] / stem[0]:g} (3x3 convolutions {first[0] / stem[0]:g} times as wide)"
        )
    if units[3] and stem[2:] == (3, 3):
        return f"{name.format('et')} for small images (a stem of one 3x3 convolution, as in kuangliu/pytorch-cifar)"
    if not units[3] and bottleneck:
        return "a ResNet for CIFAR of bottlenecks"
    if not units[3] and first[0] > stem[0]:
        return f"a wide ResNet for CIFAR ({first[0] / stem[0]:g} times as wide)"
    if not any(name.endswith("running_var") for name in shapes):
        return f"{name.format('et')} whose norms have no statistics (group norm?)"
    return ""
