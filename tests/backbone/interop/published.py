"""detectron2's and mmdetection's ResNets, written down again from their published code, and how each feeds pixels.

Nothing here is raybone's: names, places of strides and the way of a pixel are those of the frameworks.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}


class FrozenNorm(nn.Module):
    """detectron2/layers/batch_norm.py: four buffers and no counter."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)


class NormedConv(nn.Conv2d):
    """detectron2/layers/wrappers.py: a convolution that owns its norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = FrozenNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Detectron2Block(nn.Module):
    """BasicBlock and BottleneckBlock of detectron2/modeling/backbone/resnet.py."""

    def __init__(self, inputs: int, outputs: int, middle: int | None, stride: int, stride_in_1x1: bool) -> None:
        super().__init__()
        if inputs != outputs:
            self.shortcut = NormedConv(inputs, outputs, 1, stride)
        if middle is None:
            self.conv1 = NormedConv(inputs, outputs, 3, stride)
            self.conv2 = NormedConv(outputs, outputs, 3, 1)
        else:
            stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
            self.conv1 = NormedConv(inputs, middle, 1, stride_1x1)
            self.conv2 = NormedConv(middle, middle, 3, stride_3x3)
            self.conv3 = NormedConv(middle, outputs, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x)))
        y = self.conv3(F.relu(y)) if hasattr(self, "conv3") else y
        return F.relu(y + (self.shortcut(x) if hasattr(self, "shortcut") else x))


class Detectron2(nn.Module):
    """`build_resnet_backbone` and GeneralizedRCNN.preprocess_image, from a config's tree."""

    def __init__(self, cfg: dict) -> None:
        super().__init__()
        net, self.cfg = cfg["MODEL"]["RESNETS"], cfg
        depth, inputs, outputs = net["DEPTH"], net["STEM_OUT_CHANNELS"], net["RES2_OUT_CHANNELS"]
        if depth in (18, 34):
            assert outputs == 64
        middle = net["NUM_GROUPS"] * net["WIDTH_PER_GROUP"]
        self.stem = nn.Module()
        self.stem.conv1 = NormedConv(3, inputs, 7, 2)
        for i, count in enumerate(BLOCKS[depth]):
            blocks = nn.Sequential()
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                inner = middle if depth >= 50 else None
                blocks.append(Detectron2Block(inputs, outputs, inner, stride, net["STRIDE_IN_1X1"]))
                inputs = outputs
            setattr(self, f"res{i + 2}", blocks)
            outputs, middle = outputs * 2, middle * 2

    def forward(self, rgb: np.ndarray) -> dict[str, Tensor]:
        """Images uint8 RGB [N, H, W, 3] -> maps."""
        pixels = rgb[..., ::-1] if self.cfg["INPUT"]["FORMAT"] == "BGR" else rgb
        x = torch.from_numpy(pixels.astype("float32").transpose(0, 3, 1, 2).copy())
        mean, std = (torch.tensor(self.cfg["MODEL"][name]).view(1, 3, 1, 1) for name in ("PIXEL_MEAN", "PIXEL_STD"))
        x = F.max_pool2d(F.relu(self.stem.conv1((x - mean) / std)), 3, 2, 1)
        maps = {}
        for i in (2, 3, 4, 5):
            x = getattr(self, f"res{i}")(x)
            maps[f"C{i}"] = x
        return maps


class MMDetBlock(nn.Module):
    """BasicBlock and Bottleneck of mmdet/models/backbones/resnet.py."""

    def __init__(self, inputs: int, planes: int, expansion: int, stride: int, style: str) -> None:
        super().__init__()
        first, second = (1, stride) if style == "pytorch" else (stride, 1)
        if expansion == 1:
            shapes = [(inputs, planes, 3, stride), (planes, planes, 3, 1)]
        else:
            shapes = [(inputs, planes, 1, first), (planes, planes, 3, second), (planes, planes * 4, 1, 1)]
        for i, (a, b, kernel, s) in enumerate(shapes):
            setattr(self, f"conv{i + 1}", nn.Conv2d(a, b, kernel, s, kernel // 2, bias=False))
            setattr(self, f"bn{i + 1}", nn.BatchNorm2d(b))
        self.downsample, self.count = None, len(shapes)
        if stride != 1 or inputs != planes * expansion:
            conv = nn.Conv2d(inputs, planes * expansion, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(planes * expansion))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y) if i < self.count else y
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class MMDetection(nn.Module):
    """`ResNet(**backbone)` and `DetDataPreprocessor(**data_preprocessor)`, from a config's `model`."""

    def __init__(self, model: dict) -> None:
        super().__init__()
        net, self.given = model["backbone"], model["data_preprocessor"]
        assert net["type"] == "ResNet"
        depth, inputs = net["depth"], net["stem_channels"]
        expansion = 4 if depth >= 50 else 1
        self.conv1, self.bn1 = nn.Conv2d(3, inputs, 7, 2, 3, bias=False), nn.BatchNorm2d(inputs)
        for i, count in enumerate(BLOCKS[depth]):
            planes, blocks = net["base_channels"] * 2**i, nn.Sequential()
            for j in range(count):
                blocks.append(MMDetBlock(inputs, planes, expansion, 2 if i > 0 and j == 0 else 1, net["style"]))
                inputs = planes * expansion
            setattr(self, f"layer{i + 1}", blocks)

    def forward(self, rgb: np.ndarray) -> dict[str, Tensor]:
        """Images uint8 RGB [N, H, W, 3], which LoadImageFromFile would read as BGR -> maps."""
        x = torch.from_numpy(rgb[..., ::-1].transpose(0, 3, 1, 2).copy())
        if self.given["bgr_to_rgb"]:
            x = x[:, [2, 1, 0]]
        mean, std = (torch.tensor(self.given[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
        x = F.max_pool2d(F.relu(self.bn1(self.conv1((x.float() - mean) / std))), 3, 2, 1)
        maps = {}
        for i in (1, 2, 3, 4):
            x = getattr(self, f"layer{i}")(x)
            maps[f"C{i + 1}"] = x
        return maps
