"""How each framework's weights are understood: their names, what its config says, and what its users may mean."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property

from torch import Tensor

from backbone.inputs import IMAGENET_MEAN, IMAGENET_STD
from backbone.interop import caffe, detectron2, keys, mmdetection, timm, torchvision, transformers
from backbone.interop.common import Facts, Files

NOTHING = Facts()


@dataclass(frozen=True)
class Names:
    """One way of calling the tensors of a net."""

    table: Mapping[str, str]
    """Their name -> ours."""
    marks: tuple[str, ...]
    """Names that every such net has, the stem's first; the last is of its last stage."""
    further: frozenset[str] = frozenset()
    """What else keys within it may begin with, up to the first dot, or those of larger nets that have all of these."""

    @cached_property
    def inside(self) -> frozenset[str]:
        """What names within the net begin with, up to the first dot: all but its classifier's."""
        inner = {theirs for theirs, ours in self.table.items() if not ours.startswith(("fc.", "classifier."))}
        return self.further | {name.partition(".")[0] for name in inner}


Converted = tuple[dict[str, Tensor], list[str]]


def renamed(tensors: dict[str, Tensor], forms: tuple[Names, ...], where: str) -> Converted:
    """Our names, by the form that explains most of theirs; UserError names what it does not."""
    best = max(forms, key=lambda form: sum(name in form.table for name in tensors))
    names = keys.explained(tensors, best.table, where)
    return {ours: _flat(ours, tensors[theirs]) for theirs, ours in names.items()}, []


def _flat(name: str, value: Tensor) -> Tensor:
    """timm's VGG has its linear layers as convolutions."""
    return value.flatten(1) if name.startswith("classifier.") and value.dim() == 4 else value


@cache
def form(to_theirs: Callable[[str], str]) -> Names:
    """The names of ImageNet's residual nets in one framework."""
    marks = ("conv1.weight", "layer1.0.conv1.weight", "layer3.0.conv1.weight", "layer4.0.conv1.weight")
    return Names(keys.inverse(to_theirs), tuple(map(to_theirs, marks)))


RESNET, SEQUENTIAL = form(keys.same), form(keys.sequential)
VGG = Names(keys.vgg(), ("features.0.weight", "classifier.6.weight"))
# Its own convert-torchvision-to-d2.py, which made its published torchvision files, calls the classifier `stem.fc`.
DETECTRON2 = Names(
    keys.inverse(keys.detectron2) | {f"stem.fc.{part}": f"fc.{part}" for part in ("weight", "bias")},
    form(keys.detectron2).marks,
)
TIMM_VGG = Names(keys.timm_vgg(), ("features.0.weight", "head.fc.weight"))
CIFAR = Names(
    keys.cifar(), ("conv1.weight", "layer1.0.conv1.weight", "layer3.0.conv1.weight"), further=frozenset({"layer4"})
)
# Detectron's blobs may have biases of convolutions, and another name of the classifier.
CAFFE2 = replace(
    form(keys.caffe2),
    further=frozenset(
        {"pred_w", "pred_b"} | {f"{name[:-1]}b" for name in form(keys.caffe2).table if name[-2:] == "_w"}
    ),
)
CAFFE = (CAFFE2, form(keys.caffe), form(keys.caffe_numbers))


@dataclass(frozen=True)
class Origin:
    """How one framework's weights are understood."""

    forms: tuple[Names, ...]
    """How it calls them."""
    facts: Callable[[Files], Facts]
    """What its config says."""
    defaults: Facts = NOTHING
    """What is so by the framework's own documentation where no config says otherwise."""
    usual: tuple[tuple[str, Facts], ...] = ()
    """What may be so where nothing says: for whose weights -> facts. Only ever offered."""
    convert: Callable[[dict[str, Tensor], str], Converted] | None = None
    """Its tensors and their place -> ours, and notes, where that is more than `renamed`."""


_ONES = (1 / 255,) * 3
_TV = Facts(stride_in_1x1=False, channel_order="RGB", mean=IMAGENET_MEAN, std=IMAGENET_STD)
_MSRA = Facts(stride_in_1x1=True, channel_order="BGR", mean=IMAGENET_MEAN, std=_ONES)
_CIFAR10 = Facts(shortcut_pad="end", mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
_CIFAR100 = Facts(shortcut_pad="end", mean=(0.5070, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2761))
_AKAMASTER = Facts(shortcut_pad="both", mean=IMAGENET_MEAN, std=IMAGENET_STD)
# Neither timm nor torchvision can have stride in the first 1x1, so that is known of all their weights.
_STRIDE = Facts(stride_in_1x1=False)
ORIGINS: dict[str, Origin] = {
    "torchvision": Origin((RESNET, SEQUENTIAL, VGG), torchvision.facts, torchvision.DEFAULTS),
    "timm": Origin((RESNET, VGG, TIMM_VGG), timm.facts, _STRIDE, (("most of timm's ResNets", _TV),)),
    "transformers": Origin(
        (form(keys.transformers), form(keys.transformers_backbone)),
        transformers.facts,
        usual=(("microsoft/resnet-*", _TV),),
    ),
    "detectron2": Origin(
        (DETECTRON2,),
        detectron2.facts,
        usual=(
            ("its defaults, for nets that began as MSRA's R-50.pkl or R-101.pkl", _MSRA),
            ("nets that began as torchvision's weights", _TV),
        ),
    ),
    "mmdetection": Origin(
        (RESNET,),
        mmdetection.facts,
        usual=(("style='pytorch', from torchvision's weights", _TV), ("style='caffe'", _MSRA)),
    ),
    "cifar": Origin(
        (CIFAR,),
        lambda files: Facts(),
        Facts(channel_order="RGB", size=32, crop_pct=1.0),
        (
            ("akamaster/pytorch_resnet_cifar10", _AKAMASTER),
            ("CIFAR-10's own mean and std, as chenyaofo/pytorch-cifar-models", _CIFAR10),
            ("CIFAR-100's own mean and std", _CIFAR100),
        ),
    ),
    "caffe": Origin((*CAFFE, RESNET), lambda files: Facts(), caffe.DEFAULTS, convert=caffe.convert),
}


def convert(source: str, tensors: dict[str, Tensor], where: str) -> Converted:
    """Tensors by our names, and what was done to them besides renaming.

    Raises:
        UserError: names that no such net has, or blobs that contradict each other.
    """
    origin = ORIGINS[source]
    return origin.convert(tensors, where) if origin.convert else renamed(tensors, origin.forms, where)
