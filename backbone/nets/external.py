"""Nets that timm builds, behind the contract of raybone's own."""

import difflib
import inspect
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import ValidationError
from torch import Tensor, nn

from backbone.errors import UserError
from backbone.extras import how_to_install
from backbone.nets.contract import Backbone, RegionLayers, Stage
from backbone.nets.meta import on_meta
from backbone.options import ExternalNet, norm_groups

STAGES = {4: "C2", 8: "C3", 16: "C4", 32: "C5"}
NORMS = {"batch": nn.BatchNorm2d, "layer": nn.LayerNorm, "group": nn.GroupNorm}
NO_NORMS = ("GlobalResponseNorm",)  # of ConvNeXt V2: a layer like others, with nothing to fix


class Permute(nn.Module):
    """[N, H, W, C] to [N, C, H, W], or back."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


class External(Backbone):
    """The nets of `net: external`. Keys are the library's, below `model.`.

    The maps are those of timm's `features_only` at strides 4, 8, 16 and 32. They are as the stages leave them: norms
    between the last one and the classifier, which ConvNeXt and transformers have, are no part of C5.
    """

    prefix: ClassVar[str] = "model."

    def __init__(self, options: ExternalNet, num_classes: int) -> None:
        super().__init__()
        self.options = self.external = options
        self.num_classes = num_classes
        self.model = create(options, num_classes)
        self.nhwc = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        features = stage_features(self.model, options.name)
        self.stages = {name: Stage(f["num_chs"], f["reduction"]) for name, f in features.items()}
        self.stage_modules = {name: f["module"] for name, f in features.items()}
        """Stage -> the library's module that gives its map."""
        self._names = _cut(self.model, list(self.stage_modules.values()), options.name)

    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        """See `Backbone.parts`. Where the net computes in NHWC, each stage ends in NCHW and the next turns it back."""
        found: dict[str, tuple[nn.Module, ...]] = {}
        for part, names in self._names.items():
            # Looked up anew each time, since norms among them may have been exchanged.
            modules = tuple(self.model.get_submodule(name) for name in names)
            if self.nhwc and part != "stem":
                begin = () if part == "C2" else (Permute(0, 2, 3, 1),)
                modules = (*begin, *modules, Permute(0, 3, 1, 2))
            found[part] = modules
        return found

    def blocks(self) -> list[nn.Module]:
        """What each stage repeats, from the image to the classes."""
        found: list[nn.Module] = []
        for module in (m for part, modules in self.parts().items() if part != "stem" for m in modules):
            # In timm a stage is a sequence of blocks, or has one called so beside what reduces its input.
            inner = getattr(module, "blocks", module)
            found += [block for block in inner.children() if any(True for _ in block.parameters())]
        return found

    def region_layers(self) -> RegionLayers:
        """See `Backbone.region_layers`: C5, then the average pool."""
        pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return RegionLayers(self.parts()["C5"], pool, self.stages["C5"].channels, size=None)

    def classify(self, x: Tensor) -> Tensor:
        """See `Backbone.classify`: the library's own way from image to logits."""
        return self.model(x)


def library() -> Any:
    """timm; UserError with the command that installs it."""
    try:
        import timm
    except ImportError as error:
        raise UserError(f"nets of timm need it, and it is not installed: {how_to_install('timm')}") from error
    return timm


def describe(model: str, arguments: dict[str, Any]) -> ExternalNet:
    """The options of a net of the installed timm, with the kind of its norms.

    Raises:
        UserError: timm is missing or has no such net; the net cannot be a backbone, and why.
    """
    timm = library()
    try:
        given = ExternalNet(version=timm.__version__, model=model, arguments=arguments, norm="none")
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))} {fault['msg']}".strip() for fault in error.errors()]
        raise UserError(f"model {model}: no name or arguments of a net of timm's: {'; '.join(faults)}") from error
    with on_meta():
        net = create(given, 1)
        if "strict_img_size" not in arguments and "strict_img_size" in inspect.signature(type(net).__init__).parameters:
            # Swin asks for images of one size otherwise. At that size it computes the same either way.
            given = given.model_copy(update={"arguments": {**arguments, "strict_img_size": False}})
        return given.model_copy(update={"norm": norm_of(External(given, 1))})


def create(options: ExternalNet, num_classes: int) -> Any:
    """The library's net with random weights, on torch's current default device.

    Raises:
        UserError: the library is missing or another version, or does not build such a net.
    """
    timm = library()
    if timm.__version__ != options.version:
        raise UserError(
            f"{options.name}: built by timm {options.version}, and {timm.__version__} is installed, which may build "
            f"another net: pip install timm=={options.version}, or import its weights again"
        )
    if not timm.is_model(options.model.partition(".")[0]):
        near = difflib.get_close_matches(options.model, timm.list_models(), 3)
        there = f"; there is {', '.join(near)}" if near else ""
        raise UserError(f"model {options.model}: timm {timm.__version__} has no such net{there}")
    try:
        model = timm.create_model(options.model, pretrained=False, num_classes=num_classes, **options.arguments)
    except Exception as error:  # each net of a thousand refuses in its own way
        told = f" with {options.arguments}" if options.arguments else ""
        raise UserError(
            f"model {options.model}: timm does not build it{told}: {' '.join(str(error).split())}"
        ) from error
    if options.norm == "group":
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                model.set_submodule(name, _group(module))
    return model


def stage_features(model: Any, name: str) -> dict[str, dict[str, Any]]:
    """C2 to C5 -> what timm says of the stage: num_chs, reduction, module.

    Raises:
        UserError: it says nothing, or has other stages than one at each of the strides 4, 8, 16 and 32.
    """
    told = getattr(model, "feature_info", None)
    if not told:
        raise UserError(
            f"model {name}: timm has no stage information (feature_info) for it, by which a backbone is cut up; "
            "name a net that has it, such as --model resnet50d"
        )
    features = [feature for feature in told if feature["reduction"] >= min(STAGES)]
    strides = [feature["reduction"] for feature in features]
    if strides != list(STAGES):
        raise UserError(
            f"model {name}: a backbone has four stages, at strides 4, 8, 16 and 32; this net's are at "
            f"{', '.join(str(feature['reduction']) for feature in told)}"
        )
    return {STAGES[feature["reduction"]]: dict(feature) for feature in features}


def norm_of(net: External) -> str:
    """The kind of norms in the net's parts: batch, layer, group or none; UserError for others, and for two kinds."""
    found: dict[str, None] = {}
    for part in net.parts().values():
        for module in (inner for m in part for inner in m.modules()):
            kind = next((kind for kind, norm in NORMS.items() if isinstance(module, norm)), "")
            called = type(module).__name__
            # What is called a norm and has weights of its own is one, and not a layer that contains one.
            own = [*module._parameters.values(), *module._buffers.values()]
            if not kind and "norm" in called.lower() and any(t is not None for t in own) and called not in NO_NORMS:
                raise UserError(f"model {net.options.name}: {called}: norms are batch, layer or group norm here")
            found |= {kind: None} if kind else {}
    if len(found) > 1:
        raise UserError(
            f"model {net.options.name}: norms of kinds {' and '.join(found)}, where detector.norm says one thing of all"
        )
    return next(iter(found), "none")


def _cut(model: Any, ends: list[str], name: str) -> dict[str, list[str]]:
    """The modules of each part, by name: `stem`, then those up to and with each of `ends`.

    Whether one really runs after the other no name says: an import asks the net itself.
    """
    order = list(_in_order(model, "", ends))
    if [module for module in order if module in ends] != ends:
        raise UserError(f"model {name}: its stages are not modules that follow one another")
    before = [feature["module"] for feature in model.feature_info if feature["reduction"] < min(STAGES)]
    at = order.index(before[-1]) + 1 if before and before[-1] in order else order.index(ends[0])
    while order[at] not in ends and not any(True for _ in model.get_submodule(order[at]).parameters()):
        at += 1  # a pool belongs to the stem
    parts, begin = {}, 0
    for part, end in zip(("stem", *STAGES.values()), (at, *(order.index(end) + 1 for end in ends)), strict=True):
        parts[part], begin = order[begin:end], end
    return parts


def _in_order(module: nn.Module, prefix: str, ends: list[str]) -> Iterator[str]:
    """The net's modules by name as they are registered, those that contain one of `ends` taken apart."""
    for name, child in module.named_children():
        if any(end.startswith(f"{prefix}{name}.") for end in ends):
            yield from _in_order(child, f"{prefix}{name}.", ends)
        else:
            yield prefix + name


def _group(norm: Any) -> nn.Module:
    """A group norm in its place, with its activation where it has one."""
    new = nn.GroupNorm(norm_groups(norm.num_features), norm.num_features, norm.eps).to(norm.weight)
    # timm's norms that end with an activation carry it as `act`.
    return nn.Sequential(new, norm.drop, norm.act) if hasattr(norm, "act") else new
