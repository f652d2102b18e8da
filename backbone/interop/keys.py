"""What each framework calls the tensors of a residual net. Pure names, no tensors.

Ours are torchvision's: `conv1.weight`, `layer2.0.bn3.running_var`, `layer2.0.downsample.0.weight`, `fc.bias`. timm and
mmdetection use the same. Others have a function from our name to theirs; the way back is the table of all our names,
read from right to left, so that the two cannot disagree.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache

from backbone.errors import UserError
from backbone.nets.resnet import UNITS

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
HEAD = ("fc.weight", "fc.bias")
PAIR = (("conv", ("weight",)), ("bn", NORM))
MOST_CIFAR_UNITS = 200  # of ResNet-1202


@cache
def ours() -> tuple[str, ...]:
    """Every name that a tensor of a residual net of 18 to 152 layers with batch norm can have."""
    names = ["conv1.weight", *(f"bn1.{part}" for part in NORM)]
    for i in range(4):
        for unit in range(max(units[i] for units in UNITS.values())):
            place = f"layer{i + 1}.{unit}"
            for k in (1, 2, 3):
                names += [f"{place}.conv{k}.weight", *(f"{place}.bn{k}.{part}" for part in NORM)]
            names += [f"{place}.downsample.0.weight", *(f"{place}.downsample.1.{part}" for part in NORM)]
    return (*names, *HEAD)


def transformers(name: str) -> str:
    """transformers' `ResNetForImageClassification`; its backbones have the same names without `resnet.`."""
    owner, _, part = name.rpartition(".")
    if owner == "fc":
        return f"classifier.1.{part}"
    kind = "convolution" if _is_conv(owner) else "normalization"
    if not owner.startswith("layer"):
        return f"resnet.embedder.embedder.{kind}.{part}"
    layer, unit, leaf = owner.split(".", 2)
    within = "shortcut" if leaf.startswith("downsample") else f"layer.{int(leaf[-1]) - 1}"
    return f"resnet.encoder.stages.{int(layer[5:]) - 1}.layers.{unit}.{within}.{kind}.{part}"


def transformers_backbone(name: str) -> str:
    """transformers' `ResNetBackbone` and `ResNetModel`."""
    return transformers(name).removeprefix("resnet.")


def detectron2(name: str) -> str:
    """detectron2's ResNet, as of `build_resnet_backbone`; its classifier is called `linear`."""
    owner, _, part = name.rpartition(".")
    if owner == "fc":
        return f"linear.{part}"
    norm = "" if _is_conv(owner) else "norm."
    if not owner.startswith("layer"):
        return f"stem.conv1.{norm}{part}"
    layer, unit, leaf = owner.split(".", 2)
    within = "shortcut" if leaf.startswith("downsample") else f"conv{leaf[-1]}"
    return f"res{int(layer[5:]) + 1}.{unit}.{within}.{norm}{part}"


def caffe2(name: str) -> str:
    """Blobs of Detectron's MSRA/R-50.pkl: `res3_0_branch2a_w`, `res3_0_branch2a_bn_s`, `fc1000_w`.

    A norm there is `_s` and `_b` alone, y = s x + b. Statistics, where a file has them, are `_bn_rm` and `_bn_riv`.
    """
    owner, _, part = name.rpartition(".")
    if owner == "fc":
        return f"fc1000_{'w' if part == 'weight' else 'b'}"
    stem = not owner.startswith("layer")
    place = "conv1" if stem else _branch(owner, "_{}_")
    if _is_conv(owner):
        return f"{place}_w"
    norm = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
    return f"{'res_' if stem else ''}{place}_bn_{norm.get(part, part)}"


def caffe(name: str) -> str:
    """Blobs of MSRA's ResNet-50 caffemodel as LAYER.INDEX: `res3b_branch2a.0`, `bn3b_branch2a.1`, `scale3b_branch2a.0`.

    BatchNorm's blobs are 0 mean, 1 variance, 2 the factor both are to be divided by; Scale's are 0 gamma, 1 beta.
    """
    return _caffe(name, "letter")


def caffe_numbers(name: str) -> str:
    """The same for 101 and 152 layers, where the units of a stage are a, b1, b2, ...: `res4b22_branch2a.0`."""
    return _caffe(name, "number")


def _caffe(name: str, style: str) -> str:
    owner, _, part = name.rpartition(".")
    if owner == "fc":
        return f"fc1000.{0 if part == 'weight' else 1}"
    stem = not owner.startswith("layer")
    place = "conv1" if stem else _branch(owner, style)
    if _is_conv(owner):
        return f"{place}.0"
    place = "_conv1" if stem else place.removeprefix("res")
    norm = {"weight": "scale{}.0", "bias": "scale{}.1", "running_mean": "bn{}.0", "running_var": "bn{}.1"}
    return norm.get(part, "bn{}." + part).format(place)


def same(name: str) -> str:
    """torchvision, timm, mmdetection."""
    return name


def sequential(name: str) -> str:
    """`nn.Sequential(*model.children())`, as lightly and many a notebook have torchvision's net: 0 conv1, 4 layer1."""
    first, _, rest = name.partition(".")
    places = {"conv1": "0", "bn1": "1", **{f"layer{i}": str(i + 3) for i in range(1, 5)}}
    return f"{places.get(first, first)}.{rest}"


@cache
def cifar() -> dict[str, str]:
    """Names of nets for CIFAR of 6n+2 layers -> ours; projections and classifier are called in either of two ways."""
    found = {"conv1.weight": "conv1.weight", **{f"bn1.{part}": f"bn1.{part}" for part in NORM}}
    for place in (f"layer{i}.{unit}" for i in (1, 2, 3) for unit in range(MOST_CIFAR_UNITS)):
        leaves = [f"{kind}{k}.{part}" for k in (1, 2) for kind, parts in PAIR for part in parts]
        found |= {f"{place}.{leaf}": f"{place}.{leaf}" for leaf in leaves}
        for called in ("downsample", "shortcut"):
            tails = ["0.weight", *(f"1.{part}" for part in NORM)]
            found |= {f"{place}.{called}.{tail}": f"{place}.downsample.{tail}" for tail in tails}
    return found | {f"{called}.{part}": f"fc.{part}" for called in ("fc", "linear") for part in ("weight", "bias")}


@cache
def vgg() -> dict[str, str]:
    """torchvision's names of VGG."""
    layers = {f"features.{i}.{part}" for i in range(53) for part in NORM}
    return {name: name for name in layers | {f"classifier.{i}.{part}" for i in (0, 3, 6) for part in NORM[:2]}}


@cache
def timm_vgg() -> dict[str, str]:
    """timm's names of VGG -> ours; its linear layers are convolutions."""
    heads = {"pre_logits.fc1.": "classifier.0.", "pre_logits.fc2.": "classifier.3.", "head.fc.": "classifier.6."}
    inner = {name: name for name in vgg() if name.startswith("features.")}
    return inner | {f"{theirs}{part}": f"{ours}{part}" for theirs, ours in heads.items() for part in NORM[:2]}


@cache
def inverse(to_theirs: Callable[[str], str]) -> dict[str, str]:
    """Their name -> ours, for every name a residual net can have."""
    return {to_theirs(name): name for name in ours()}


def explained(names: Iterable[str], table: Mapping[str, str], where: str) -> dict[str, str]:
    """Their name -> ours for all `names`, by a `table` such as that of an `inverse`.

    Raises:
        UserError: names that no such net has; says which.
    """
    names = list(names)
    unknown = sorted(name for name in names if name not in table)
    if unknown:
        raise UserError(f"{where}: {len(unknown)} keys that no net of these names has: {some(unknown)}")
    return {name: table[name] for name in names}


def some(names: Iterable[str]) -> str:
    """The first few of many names."""
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _is_conv(owner: str) -> bool:
    return owner.rpartition(".")[2].startswith("conv") or owner.endswith("downsample.0")


def _branch(owner: str, style: str) -> str:
    """`layer2.0.bn3` -> `res3_0_branch2c`, `res3a_branch2c` or, for later units, `res3b1_branch2c`."""
    layer, unit, leaf = owner.split(".", 2)
    branch = "branch1" if leaf.startswith("downsample") else f"branch2{'abc'[int(leaf[-1]) - 1]}"
    number = int(unit)
    if style == "_{}_":
        between = f"_{unit}_"
    elif style == "letter" or number == 0:
        between = f"{chr(ord('a') + number)}_"
    else:
        between = f"b{unit}_"
    return f"res{int(layer[5:]) + 1}{between}{branch}"
