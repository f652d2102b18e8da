"""Residual and plain nets for ImageNet and CIFAR (arXiv:1512.03385, Tables 1 and 6), and their pre-activation form
(arXiv:1603.05027). Key names are torchvision's wherever torchvision has the net.
"""

from typing import cast

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, pad, relu

from backbone.nets.contract import Backbone, RegionLayers, Stage
from backbone.nets.norm import make_norm
from backbone.options import NetOptions, scaled

# Units a stage, Table 1.
UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class PadShortcut(nn.Module):
    """Option A: every stride-th pixel, then zero channels. No parameters, so no keys."""

    def __init__(self, stride: int, extra: int, where: str) -> None:
        super().__init__()
        self.stride = stride
        self.before = extra // 2 if where == "both" else 0
        self.behind = extra - self.before

    def forward(self, x: Tensor) -> Tensor:
        # The paper states neither how A subsamples nor where the zeros go. A strided pick is what a 1x1 convolution of
        # that stride sees; fb.resnet.torch picks so too and puts the zeros last. Weights of akamaster's
        # pytorch_resnet_cifar10, which are passed around, want half of them first.
        return pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.behind))


class Unit(nn.Module):
    """y = relu(λ shortcut(x) + r F(x)), with F two 3x3 convolutions or a bottleneck of 1x1, 3x3, 1x1.

    Pre-activation: y = λ shortcut(x) + r F(x), with norm and ReLU before each convolution of F instead of after.

    Args:
        inputs: channels of x.
        channels: channels of F's 3x3 convolutions; a bottleneck gives four times as many, else F gives these.
        first: the unit after the stem. With pre-activation it starts from the stem's norm and ReLU and has no `bn1`.
        dropped: share of the images for which F is left out in training; for the others it is scaled up.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        stride: int,
        options: NetOptions,
        *,
        bottleneck: bool,
        first: bool,
        dropped: float = 0.0,
    ) -> None:
        super().__init__()
        norm, kind = make_norm(options), options.shortcut
        self.preact, self.plain = options.preact, kind == "none"
        self.shortcut_scale, self.residual_scale = options.shortcut_scale, options.residual_scale
        outputs = channels * 4 if bottleneck else channels
        widths: tuple[int, ...] = (inputs, channels, channels, outputs) if bottleneck else (inputs, channels, outputs)
        kernels: tuple[int, ...] = (1, 3, 1) if bottleneck else (3, 3)
        # The paper's released nets stride in a bottleneck's first 1x1, torchvision's (the default) in its 3x3.
        strided = 1 if bottleneck and not options.stride_in_1x1 else 0

        def layer(i: int) -> nn.Conv2d:
            return conv(widths[i], widths[i + 1], kernels[i], stride if i == strided else 1)

        def normed(i: int) -> nn.Module:
            return norm(widths[i] if options.preact else widths[i + 1])

        self.activated = options.preact and first
        self.conv1, self.bn1 = layer(0), nn.Identity() if self.activated else normed(0)
        self.conv2, self.bn2 = layer(1), normed(1)
        self.conv3: nn.Module | None = layer(2) if bottleneck else None
        self.bn3: nn.Module | None = normed(2) if bottleneck else None

        self.drop = stochastic_depth(dropped) if dropped else None

        reshapes = stride != 1 or inputs != outputs
        self.downsample: nn.Module | None = None
        if kind == "A" and reshapes:
            self.downsample = PadShortcut(stride, outputs - inputs, options.shortcut_pad)
        elif kind == "C" or (kind == "B" and reshapes):
            projection = conv(inputs, outputs, 1, stride)
            # As in the authors' code, a pre-activation unit projects the activated input and has no norm after that.
            self.downsample = nn.Sequential(projection) if options.preact else nn.Sequential(projection, norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        if self.preact:
            return self._preact(x)
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)), inplace=True)))
        if self.conv3 is not None and self.bn3 is not None:
            y = self.bn3(self.conv3(relu(y, inplace=True)))
        if not self.plain:
            y = self._add(y, x)
        return relu(y, inplace=True)

    def _preact(self, x: Tensor) -> Tensor:
        a = x if self.activated else relu(self.bn1(x), inplace=True)
        y = self.conv2(relu(self.bn2(self.conv1(a)), inplace=True))
        if self.conv3 is not None and self.bn3 is not None:
            y = self.conv3(relu(self.bn3(y), inplace=True))
        # Projections read a, as in the authors' code. That has no option A; here A stays an identity of x itself, so
        # that nothing but additions lies between two stages. fb.resnet.torch pads a instead.
        return self._add(y, a if isinstance(self.downsample, nn.Sequential) else x)

    def _add(self, y: Tensor, x: Tensor) -> Tensor:
        """λ shortcut(x) + r y. λ scales projections too, so that it means the same under A, B and C."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = y if self.residual_scale == 1 else y * self.residual_scale
        y = y if self.drop is None else self.drop(y)
        return y.add_(shortcut, alpha=self.shortcut_scale)  # no backward needs y itself, so this saves a map


def stochastic_depth(dropped: float) -> nn.Module:
    """torchvision's, image by image. It draws from torch's generator, which the loop seeds by (seed, step,
    micro-batch): so what is drawn for an image does not depend on where it is trained, nor on where a run was stopped.
    """
    from torchvision.ops import StochasticDepth  # torchvision takes seconds to import

    return StochasticDepth(dropped, "row")


class ResNet(Backbone):
    """The nets of `net: resnet` and `net: cifar_resnet`.

    The map of a stage is its last unit's output. With pre-activation that is the sum as it leaves the addition, not
    yet normalised, except in the last stage, whose map has passed the net's closing norm and ReLU (key `norm`).
    """

    def __init__(self, options: NetOptions, num_classes: int) -> None:
        super().__init__()
        cifar = options.net == "cifar_resnet"
        bottleneck = not cifar and options.depth >= 50
        units = ((options.depth - 2) // 6,) * 3 if cifar else UNITS[options.depth]
        base, stem_stride = (16, 1) if cifar else (64, 4)
        norm = make_norm(options)

        inputs = scaled(base, options.width)
        self.options, self.num_classes, self.stages = options, num_classes, {}
        self.preact = options.preact
        self.conv1 = conv(3, inputs, 3) if cifar else conv(3, inputs, 7, 2)
        self.bn1 = norm(inputs)
        self.relu = nn.ReLU(inplace=True)
        # As torchvision. The paper's Caffe nets pool without padding and round up: same size, windows one px off.
        self.maxpool = nn.Identity() if cifar else nn.MaxPool2d(3, 2, padding=1)
        behind = 0  # units before this one
        for i, count in enumerate(units):
            channels, layer = scaled(base * 2**i, options.width), nn.Sequential()
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                # timm's line, from 0 at the first unit; the paper's ends at the same place and begins a unit earlier.
                dropped = options.stochastic_depth * behind / (sum(units) - 1)
                first = behind == 0
                layer.append(
                    Unit(inputs, channels, stride, options, bottleneck=bottleneck, first=first, dropped=dropped)
                )
                behind += 1
                inputs = channels * 4 if bottleneck else channels
            self.add_module(f"layer{i + 1}", layer)
            self.stages[f"C{i + 2}"] = Stage(inputs, stem_stride * 2**i)
        self.norm = norm(inputs) if options.preact else nn.Identity()
        self.fc = nn.Linear(inputs, num_classes)
        self._init_weights(options.zero_init_residual)

    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        """See `Backbone.parts`. With pre-activation the closing norm and ReLU end the last part."""
        parts: dict[str, tuple[nn.Module, ...]] = {"stem": (self.conv1, self.bn1, self.relu, self.maxpool)}
        for i, name in enumerate(self.stages):
            parts[name] = (self.get_submodule(f"layer{i + 1}"),)
        if self.preact:
            parts[name] = (*parts[name], self.norm, self.relu)
        return parts

    def region_layers(self) -> RegionLayers:
        """See `Backbone.region_layers`. C5 keeps its stride of 2, as in the paper's detectors (section 4)."""
        pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return RegionLayers(self.parts()["C5"], pool, self.stages["C5"].channels, size=None)

    def classify(self, x: Tensor) -> Tensor:
        """See `Backbone.classify`."""
        *_, last = self(x).values()
        return self.fc(adaptive_avg_pool2d(last, 1).flatten(1))

    def _init_weights(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # He et al. 2015 (arXiv:1502.01852) derive a forward rule, fan in (eq. 10), and a backward rule, fan out
                # (eq. 14), call either sufficient, and the paper does not say which it took. The authors' later code
                # (resnet-1k-layers), fb.resnet.torch and torchvision take fan out.
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for unit in self.modules():
            if zero_init_residual and isinstance(unit, Unit):
                # A pre-activation branch ends with a convolution, not with a norm, so that is what starts at 0 there.
                # Its input is not 0, so it learns from the first step on.
                last = (unit.conv3 or unit.conv2) if unit.preact else (unit.bn3 or unit.bn2)
                nn.init.zeros_(cast(Tensor, last.weight))
        # fc keeps torch's default, U(±1/sqrt(fan in)), as in torchvision.
