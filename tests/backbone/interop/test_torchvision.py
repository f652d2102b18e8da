"""Exports load in torchvision's own nets and detectors, strictly, and give our maps."""

import io
import json

import pytest
import torch
import torchvision
from PIL import Image
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from backbone.data.augment import evaluation_view
from backbone.inputs import InputConvention
from backbone.interop import torchvision as ours
from backbone.interop.common import stage_modules, with_maps
from backbone.nets import build
from backbone.options import NetOptions
from tests.backbone.interop.conftest import BGR, INPUTS, assert_equal, maps_of, photos, source_of

STAGES = ("C2", "C3", "C4", "C5")
DEPTHS = (18, 34, 50, 101, 152)


@torch.no_grad()
@pytest.mark.parametrize(("depth", "inputs"), [*((depth, INPUTS) for depth in DEPTHS), (18, BGR), (50, BGR)])
def test_classification(depth: int, inputs: InputConvention) -> None:
    source = source_of(NetOptions(depth=depth), inputs)
    files = ours.write(source)
    model = getattr(torchvision.models, f"resnet{depth}")(num_classes=5).eval()
    model.load_state_dict(torch.load(io.BytesIO(files["model.pth"]), weights_only=True))
    given = json.loads(files["preprocessing.json"])
    given["interpolation"] = InterpolationMode(given["interpolation"])
    preset = ImageClassification(**{**given, "crop_size": 64, "resize_size": 64})
    pixels = photos()[1][..., :64]  # of the size that the preset leaves as it is
    x = torch.stack([preset(image) for image in pixels])
    maps, y = {}, model.maxpool(model.relu(model.bn1(model.conv1(x))))
    for i in range(1, 5):
        maps[f"C{i + 1}"] = y = getattr(model, f"layer{i}")(y)
    assert_equal({**maps, "logits": model(x)}, maps_of(source, pixels))


def test_resizing_is_as_in_our_evaluation() -> None:
    """Of a smooth image, since libraries interpolate edges differently."""
    given = json.loads(ours.write(source_of(NetOptions(depth=18)))["preprocessing.json"])
    assert (given["crop_size"], given["resize_size"]) == (64, 80)
    y, x = torch.meshgrid(torch.linspace(0, 200, 160), torch.linspace(0, 250, 200), indexing="ij")
    image = torch.stack([y, x, (x + y) / 2]).to(torch.uint8)
    pixels = image.permute(1, 2, 0).numpy()
    given["interpolation"] = InterpolationMode(given["interpolation"])
    theirs = ImageClassification(**given)(Image.fromarray(pixels))
    view = torch.from_numpy(evaluation_view(pixels, INPUTS.size, INPUTS.crop_pct).copy())
    mine = INPUTS.normalize(view.permute(2, 0, 1)[None])[0]
    assert (theirs - mine).abs().max() < 2.5 / 255 / min(INPUTS.std)


@torch.no_grad()
@pytest.mark.parametrize("depth", DEPTHS)
def test_detection(depth: int) -> None:
    source = source_of(NetOptions(depth=depth))
    files = ours.write_detection(source)
    backbone = resnet_fpn_backbone(
        backbone_name=f"resnet{depth}", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    backbone.body.load_state_dict(torch.load(io.BytesIO(files["backbone.pth"]), weights_only=True))
    given = json.loads(files["detector.json"])
    detector = FasterRCNN(backbone, num_classes=4, **given, min_size=64, max_size=96).eval()
    pixels = photos()[1]
    maps: dict[str, torch.Tensor] = {}
    body = detector.backbone.body
    body.register_forward_hook(lambda module, args, out: maps.update(zip(STAGES, out.values(), strict=True)))
    found = detector(list(pixels.float() / 255))  # through its own transform, which normalises
    assert len(found) == 2
    assert list(maps) == ["C2", "C3", "C4", "C5"]
    assert_equal(maps, maps_of(source, pixels))


@torch.no_grad()
@pytest.mark.parametrize("options", [NetOptions(net="vgg", depth=11), NetOptions(net="vgg", depth=16, norm="none")])
def test_vgg(options: NetOptions) -> None:
    """Every key and shape; the maps by the modules that are asked. The head, 0.5 GB, stays without values."""
    with torch.device("meta"):
        net, model = build(options, 5).eval(), getattr(torchvision.models, options.name)(num_classes=5)
    assert {k: t.shape for k, t in net.state_dict().items()} == {k: t.shape for k, t in model.state_dict().items()}
    features = net.get_submodule("features").to_empty(device="cpu")
    for value in features.state_dict().values():
        value.copy_(torch.rand(value.shape) * 0.1 if value.dim() != 4 else torch.randn(value.shape) / 50)
    model.features.load_state_dict(features.state_dict(), assign=True)

    def forward(images: torch.Tensor) -> None:
        model.features(images)

    answer = with_maps(model, forward, stage_modules(options))
    x = torch.rand(1, 3, 64, 64)
    assert_equal(answer(x), net(x))
