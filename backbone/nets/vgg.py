"""VGG nets (arXiv:1409.1556, Table 1), with and without batch norm, under torchvision's key names."""

from typing import cast

from torch import Tensor, nn

from backbone.nets.contract import Backbone, RegionLayers, Stage
from backbone.nets.norm import make_norm
from backbone.options import NetOptions, scaled

CHANNELS = (64, 128, 256, 512, 512)
# 3x3 convolutions before each of the five pools.
CONVS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(Backbone):
    """The nets of `net: vgg`.

    C2, C3, C4 are the last activations before pools 3, 4, 5, and C5 is pool 5. So C4 is conv5_3, the map on which
    the ResNet paper's VGG-16 detectors stand (section 4 and appendix A of arXiv:1512.03385).
    """

    def __init__(self, options: NetOptions, num_classes: int) -> None:
        super().__init__()
        norm = make_norm(options)
        self.options, self.num_classes = options, num_classes
        channels = [scaled(c, options.width) for c in CHANNELS]
        strides = {"C2": (2, 4), "C3": (3, 8), "C4": (4, 16), "C5": (4, 32)}
        self.stages = {name: Stage(channels[i], stride) for name, (i, stride) in strides.items()}

        self.features, inputs = nn.Sequential(), 3
        for outputs, count in zip(channels, CONVS[options.depth], strict=True):
            for _ in range(count):
                # The bias is idle before a norm. torchvision has it there too, and its weights must load.
                self.features.append(nn.Conv2d(inputs, outputs, 3, padding=1))
                if options.norm != "none":
                    self.features.append(norm(outputs))
                self.features.append(nn.ReLU(inplace=True))
                inputs = outputs
            self.features.append(nn.MaxPool2d(2, 2))
        # Published nets read 224 px, hence 7x7 cells. Other sizes are pooled to 7x7, as in torchvision.
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        hidden = scaled(4096, options.width)
        self.classifier = nn.Sequential(
            nn.Linear(inputs * 49, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(hidden, num_classes),
        )
        for module in self.modules():
            # torchvision's. The VGG paper grew deep nets from a trained VGG-11; that rule came before He et al. 2015.
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, module.bias))
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        """See `Backbone.parts`. The stem is conv1_x, pool 1, conv2_x; later parts open with a pool; C5 is pool 5."""
        layers = list(self.features)
        pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        cuts = [0, *pools[1:], len(layers)]
        names = ("stem", *self.stages)
        return {name: tuple(layers[a:b]) for name, a, b in zip(names, cuts[:-1], cuts[1:], strict=True)}

    def region_layers(self) -> RegionLayers:
        """See `Backbone.region_layers`. Regions of 7x7 cells take the place of pool 5's map of a 224 px image."""
        layers = list(self.classifier)[:6]
        return RegionLayers((), (nn.Flatten(), *layers), cast(nn.Linear, layers[3]).out_features, size=7)

    def classify(self, x: Tensor) -> Tensor:
        """See `Backbone.classify`."""
        return self.classifier(self.avgpool(self(x)["C5"]).flatten(1))
