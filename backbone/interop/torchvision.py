"""torchvision: the file its nets load as they are, and the one its detectors' bodies load."""

import io
import json
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d

from backbone.inputs import IMAGENET_MEAN, IMAGENET_STD
from backbone.interop.common import (
    Answer,
    Facts,
    Files,
    Source,
    normalized,
    resize_size,
    rgb_state,
    saved,
    stage_modules,
    three,
    to_json,
    with_maps,
)
from backbone.nets.meta import on_meta
from backbone.options import NetOptions

# Of all weights that torchvision publishes for these nets: ImageNet's RGB statistics on the 0..1 scale.
DEFAULTS = Facts(stride_in_1x1=False, channel_order="RGB", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def write(source: Source) -> Files:
    """`model.pth` and `preprocessing.json`, which has the words of torchvision's `ImageClassification` preset."""
    i = source.inputs
    preset = {"crop_size": i.size, "resize_size": resize_size(i), "interpolation": i.interpolation}
    return {
        "model.pth": saved(rgb_state(source)),
        "preprocessing.json": to_json({**preset, "mean": list(i.mean), "std": list(i.std)}),
    }


def snippet(source: Source) -> str:
    """How to load it."""
    i, name = source.inputs, source.options.name
    return f"""
import torch
import torchvision
from torchvision.transforms import InterpolationMode, v2

model = torchvision.models.{name}(num_classes={source.net.num_classes})
model.load_state_dict(torch.load("{source.place}/model.pth", weights_only=True))
model.eval()
view = v2.Compose(
    [
        v2.PILToTensor(),
        v2.Resize({resize_size(i)}, InterpolationMode("{i.interpolation}"), antialias=True),
        v2.CenterCrop({i.size}),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean={list(i.mean)}, std={list(i.std)}),
    ]
)
""".strip()


def answers(folder: Path, source: Source) -> Answer:
    """torchvision's net, loaded from the folder, fed as the folder says."""
    given = json.loads((folder / "preprocessing.json").read_text())
    tensors = torch.load(io.BytesIO((folder / "model.pth").read_bytes()), weights_only=True)
    return net_answers(tensors, source.options, source.net.num_classes, given["mean"], given["std"])


def net_answers(
    tensors: dict[str, Tensor], options: NetOptions, num_classes: int, mean: list[float], std: list[float]
) -> Answer:
    """torchvision's own net with these tensors; RuntimeError where they are not all its own."""
    with on_meta():
        model = getattr(torchvision.models, options.name)(num_classes=num_classes)
    model.load_state_dict(tensors, assign=True)
    return with_maps(model, lambda images: model(normalized(images, mean, std)), stage_modules(options))


def write_detection(source: Source) -> Files:
    """`backbone.pth`, which is without `fc`, and `detector.json`, which has the words of `FasterRCNN` and the like."""
    tensors = {name: t for name, t in rgb_state(source).items() if not name.startswith("fc.")}
    given = {"image_mean": list(source.inputs.mean), "image_std": list(source.inputs.std)}
    return {"backbone.pth": saved(tensors), "detector.json": to_json(given)}


def detection_snippet(source: Source) -> str:
    """How to load it."""
    return f"""
import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

# fasterrcnn_resnet50_fpn(weights=None) would build norms that train, on two images at a time.
body = resnet_fpn_backbone(
    backbone_name="{source.options.name}", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
)
body.body.load_state_dict(torch.load("{source.place}/backbone.pth", weights_only=True))
# The detector normalises: feed it RGB images of 0..1, not normalised before.
model = FasterRCNN(
    body,
    num_classes=91,  # yours, the background counted
    image_mean={list(source.inputs.mean)},
    image_std={list(source.inputs.std)},
)
""".strip()


def detection_answers(folder: Path, source: Source) -> Answer:
    """The body of torchvision's FPN with frozen norms, and its detectors' own transform."""
    given = json.loads((folder / "detector.json").read_text())
    name = source.options.name
    fpn = resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3)
    fpn.body.load_state_dict(torch.load(io.BytesIO((folder / "backbone.pth").read_bytes()), weights_only=True))
    transform = GeneralizedRCNNTransform(1, 1, **given)

    def forward(images: Tensor) -> None:
        fpn.body(torch.stack([transform.normalize(image) for image in images.float() / 255]))

    return with_maps(fpn.body, forward, stage_modules(source.options))


def facts(files: Files) -> Facts:
    """What `preprocessing.json` or `detector.json` say; torchvision's own weights come without either."""
    if "detector.json" in files:
        given = json.loads(files["detector.json"])
        return Facts(channel_order="RGB", mean=three(given["image_mean"]), std=three(given["image_std"]))
    if "preprocessing.json" not in files:
        return Facts()
    given = json.loads(files["preprocessing.json"])
    return Facts(
        channel_order="RGB",
        mean=three(given["mean"]),
        std=three(given["std"]),
        size=int(given["crop_size"]),
        crop_pct=given["crop_size"] / given["resize_size"],
        interpolation=str(given["interpolation"]),
    )
