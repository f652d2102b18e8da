"""Every option of a net that changes its mathematics. Imports neither torch nor anything slow.

The same model is the `model:` section of a recipe, what the builders in `backbone.nets` read, and what a backbone
artifact records.
"""

from math import gcd
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

IMAGENET_DEPTHS = (18, 34, 50, 101, 152)
VGG_DEPTHS = (11, 13, 16, 19)
NORM_GROUPS = 32  # of group norm (arXiv:1803.08494)
# Where norms see the smallest maps: (stride, fewest channels of such a norm at width 1). Other nets' are never 1x1.
NORM_MAPS = ((32, 512), (16, 256), (8, 128), (4, 64))

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""What every generator takes: torch's refuse 2**64, and what is added to a seed must not reach it."""


def scaled(channels: int, width: float) -> int:
    """`channels` times the width multiplier, to the nearest integer, at least 1."""
    return max(1, round(channels * width))


def norm_groups(channels: int) -> int:
    """Groups of a group norm: 32 where they divide the channels, else as many as do."""
    return gcd(NORM_GROUPS, channels)


class Strict(BaseModel):
    """Base of all options: unknown keys are errors, values never change, docstrings of fields are their help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class NetOptions(Strict):
    """The net. A plain net is a residual one with `shortcut: none`."""

    net: Literal["resnet", "cifar_resnet", "vgg"] = "resnet"
    """Family: resnet (ImageNet: 18, 34, 50, 101, 152 layers), cifar_resnet (6n+2 layers), vgg (11, 13, 16, 19)."""

    depth: int = 50
    """Weighted layers."""

    shortcut: Literal["A", "B", "C", "none"] = "B"
    """A: zero-padded identity, B: projection where the shape changes, C: projection everywhere, none: plain net."""

    shortcut_pad: Literal["end", "both"] = "end"
    """Option A only: where its zero channels go, behind, or half before and half behind (some nets for CIFAR)."""

    stride_in_1x1: bool = False
    """Bottlenecks only. True: stride 2 in the first 1x1 (the paper's nets). False: in the 3x3 (torchvision, timm)."""

    shortcut_scale: float = 1.0
    """λ in y = λ x + F(x) (arXiv:1603.05027, section 3)."""

    residual_scale: float = 1.0
    """Factor on F(x), before the addition."""

    preact: bool = False
    """Full pre-activation units (arXiv:1603.05027): BN, ReLU, convolution; the addition is left untouched."""

    zero_init_residual: bool = False
    """Start the last BN of every unit at gamma = 0, so that a unit begins as its shortcut (arXiv:1706.02677)."""

    stochastic_depth: float = Field(0.0, ge=0, lt=1)
    """Training: share of the images for which the last unit is its shortcut alone, likewise the others, rising from
    none at the first (arXiv:1603.09382; timm's drop path). 0 is off."""

    width: float = 1.0
    """Multiplies every channel count except the image's and the classes'."""

    norm: Literal["batch", "sync", "frozen", "group", "none"] = "batch"
    """Normalisation. sync: batch statistics over all ranks. none: VGG as published in 2014."""

    bn_group: int = 0
    """Samples that share batch statistics, the paper's "32 per GPU", inside a larger device batch. 0: all of it."""

    @property
    def name(self) -> str:
        """What people call this net: resnet50, plain34, cifar_resnet110, cifar_plain20, vgg16, vgg16_bn."""
        if self.net == "vgg":
            return f"vgg{self.depth}" + ("" if self.norm == "none" else "_bn")
        family = self.net.replace("resnet", "plain") if self.shortcut == "none" else self.net
        return f"{family}{self.depth}"

    @property
    def called(self) -> str:
        """The name, with the width where it is another than that net's."""
        return self.name + (f", width {self.width:g}" if self.width != 1 else "")

    @property
    def told(self) -> str:
        """What an import says of it besides."""
        return f"stride in the {'first 1x1' if self.stride_in_1x1 else '3x3'}"

    @property
    def lasting(self) -> "NetOptions":
        """What is left of it after training. How ranks and groups share statistics and which units are passed over are
        matters of training; the net that is left is the same."""
        norm = "batch" if self.norm == "sync" else self.norm
        return self.model_copy(update={"bn_group": 0, "norm": norm, "stochastic_depth": 0.0})

    @property
    def recorded(self) -> dict[str, Any]:
        """`lasting` as an artifact has it: what is of training alone and came later is not there."""
        return self.lasting.model_dump(mode="json", exclude={"stochastic_depth"})

    def check_maps(self, size: int, field: str, images: int) -> None:
        """Check that every map has pixels, and every norm more than one value to take statistics over.

        Args:
            size: side of the square images, pixels.
            field: of the recipe, which says so.
            images: how many the statistics of batch norm are taken over, see `bn_group`.

        Raises:
            ValueError: five pools leave nothing, or a norm sees a single value; what that is normalised to is always 0.
        """
        if self.net == "vgg" and size < 32:
            raise ValueError(f"{field} {size}: the five pools of {self.name} halve it to nothing; give 32 or more")
        if self.net != "resnet" or self.norm == "frozen":
            return
        for stride, base in NORM_MAPS:
            channels = scaled(base, self.width)
            if size > stride or (norm_groups(channels) < channels if self.norm == "group" else images > 1):
                continue
            what = f"model.norm {self.norm}: images of {field} {size} leave {self.name} a map of 1x1 pixels, where"
            if self.norm == "group":
                raise ValueError(
                    f"{what} each of its {channels} groups is a single value; set {field} above {stride}, or a "
                    "larger model.width"
                )
            one = "model.bn_group" if self.bn_group else "optim.micro_batch"
            raise ValueError(
                f"{what} {one} 1 gives it one value a channel; set {one} to 2 or more, {field} above {stride}, or "
                "model.norm group"
            )

    @model_validator(mode="after")
    def _possible(self) -> "NetOptions":
        if self.net == "resnet" and self.depth not in IMAGENET_DEPTHS:
            raise ValueError(f"depth {self.depth}: resnet has {', '.join(map(str, IMAGENET_DEPTHS))}")
        if self.net == "cifar_resnet" and (self.depth < 8 or (self.depth - 2) % 6):
            below = (self.depth - 2) // 6
            near = sorted({6 * max(n, 1) + 2 for n in (below, below + 1)})
            raise ValueError(f"depth {self.depth}: cifar_resnet has 6n+2 layers, so {' or '.join(map(str, near))}")
        if self.net == "vgg":
            if self.depth not in VGG_DEPTHS:
                raise ValueError(f"depth {self.depth}: vgg has {', '.join(map(str, VGG_DEPTHS))}")
            residual = (
                "shortcut",
                "shortcut_pad",
                "stride_in_1x1",
                "shortcut_scale",
                "residual_scale",
                "preact",
                "zero_init_residual",
                "stochastic_depth",
            )
            for field in residual:
                if getattr(self, field) != NetOptions.model_fields[field].default:
                    raise ValueError(f"{field} is an option of residual nets; remove it, vgg would not read it")
        elif self.norm == "none":
            raise ValueError("norm none: only vgg was published without; use batch, sync, frozen or group")
        if self.shortcut_pad != "end" and self.shortcut != "A":
            raise ValueError(f"shortcut_pad {self.shortcut_pad}: only shortcut A pads; shortcut is {self.shortcut}")
        if self.stride_in_1x1 and not (self.net == "resnet" and self.depth >= 50):
            raise ValueError(f"stride_in_1x1 concerns bottlenecks (50, 101, 152 layers); {self.name} has none")
        if self.shortcut == "none" and (self.shortcut_scale != 1 or self.residual_scale != 1 or self.preact):
            raise ValueError("shortcut none leaves shortcut_scale, residual_scale and preact without meaning")
        if self.shortcut == "none" and self.zero_init_residual:
            raise ValueError("zero_init_residual needs shortcuts: a plain net would put out nothing but zeros")
        if self.shortcut == "none" and self.stochastic_depth:
            raise ValueError("stochastic_depth needs shortcuts: a plain net would put out nothing but zeros")
        if self.zero_init_residual and self.norm == "frozen" and not self.preact:
            raise ValueError(
                "zero_init_residual: norm frozen would keep every unit's branch at 0 for ever; leave it out, or take "
                "norm batch or group"
            )
        if self.bn_group and self.norm != "batch":
            raise ValueError(f"bn_group is read by norm batch only, not by {self.norm}")
        if self.width <= 0:
            raise ValueError(f"width {self.width:g}: give a factor above 0")
        if self.bn_group < 0:
            raise ValueError(f"bn_group {self.bn_group}: give a number of images, or 0 for those of a micro-batch")
        return self


class ExternalNet(Strict):
    """A net that another library builds: of its registered names alone, without weights of its own."""

    net: Literal["external"] = "external"
    """Not one of raybone's."""

    library: Literal["timm"] = "timm"
    """Who builds it."""

    version: str
    """Of the library. Another version may build another net, and is refused."""

    model: str = Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?$")
    """Its name there, such as resnext50_32x4d; the tag of weights may follow."""

    arguments: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """What its builder is told beside the number of classes, such as drop_path_rate."""

    norm: Literal["batch", "group", "layer", "none"]
    """Normalisation. group: also where the library has batch norm."""

    @property
    def name(self) -> str:
        """What people call this net."""
        return self.model

    @property
    def called(self) -> str:
        """The name: nothing else of it has another width."""
        return self.name

    @property
    def told(self) -> str:
        """What an import says of it besides."""
        norms = "no norms" if self.norm == "none" else f"{self.norm} norm"
        given = "".join(f", {name} {value}" for name, value in self.arguments.items())
        return f"built by {self.library} {self.version}{given}, {norms}"

    @property
    def lasting(self) -> "ExternalNet":
        """What is left of it after training."""
        return self

    @property
    def recorded(self) -> dict[str, Any]:
        """What an artifact has of it."""
        return self.model_dump(mode="json")

    @model_validator(mode="after")
    def _harmless(self) -> "ExternalNet":
        # What loads files or downloads, and what raybone itself says.
        taken = [name for name in self.arguments if name in NOT_ARGUMENTS or name.startswith("pretrained")]
        if taken:
            raise ValueError(f"arguments: {', '.join(taken)}: not for a net's builder; leave it out")
        return self


NOT_ARGUMENTS = ("checkpoint_path", "cache_dir", "features_only", "num_classes", "in_chans", "out_indices")
AnyNet = NetOptions | ExternalNet


def net_options(tree: dict[str, Any]) -> AnyNet:
    """The options that an artifact records; pydantic's ValidationError where they are none."""
    model = ExternalNet if tree.get("net") == "external" else NetOptions
    return model.model_validate(tree)
