# ruff: noqa: E402  (what follows needs a package that may be absent)
"""A transformers export is read by its own `from_pretrained`, and its detectors run on it."""

from pathlib import Path

import pytest
import torch
from PIL import Image

transformers = pytest.importorskip("transformers", reason="transformers' own loader is the test")

from backbone.interop import transformers as ours
from backbone.interop.common import Source
from backbone.options import NetOptions
from tests.backbone.interop.conftest import BGR, CLASSES, INPUTS, assert_equal, maps_of, photos, source_of

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def write(folder: Path, source: Source) -> Path:
    for name, data in ours.write(source).items():
        (folder / name).write_bytes(data)
    return folder


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "inputs"),
    [
        (NetOptions(depth=18), INPUTS),
        (NetOptions(depth=34), BGR),
        (NetOptions(depth=50), INPUTS),
        (NetOptions(depth=101), INPUTS),
        (NetOptions(depth=152), INPUTS),
        (NetOptions(depth=50, stride_in_1x1=True), BGR),
        (NetOptions(depth=50, width=0.3), INPUTS),
    ],
    ids=["18", "34-BGR", "50", "101", "152", "50-stride-in-1x1-BGR", "50-narrow"],
)
def test_every_stage_and_the_logits(tmp_path: Path, options: NetOptions, inputs) -> None:
    source = source_of(options, inputs)
    folder, pixels = write(tmp_path, source), photos()[1]
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    x = processor(list(pixels), do_resize=False, do_center_crop=False, return_tensors="pt").pixel_values
    expected = maps_of(source, pixels)
    model, report = transformers.ResNetForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert_equal({"logits": model.eval()(x).logits}, expected)
    assert list(model.config.id2label.values()) == list(CLASSES)
    backbone = transformers.ResNetBackbone.from_pretrained(folder, out_features=STAGES).eval()
    assert_equal(dict(zip(("C2", "C3", "C4", "C5"), backbone(x).feature_maps, strict=True)), expected)


def test_the_image_processor_makes_the_size_of_our_evaluation(tmp_path: Path) -> None:
    processor = transformers.AutoImageProcessor.from_pretrained(write(tmp_path, source_of(NetOptions(depth=18))))
    assert processor.size["shortest_edge"] == 80
    assert processor(Image.new("L", (300, 200)), return_tensors="pt").pixel_values.shape == (1, 3, 64, 64)


def detr(backbone_config) -> torch.nn.Module:
    config = transformers.DetrConfig(
        backbone_config=backbone_config, d_model=32, encoder_layers=1, decoder_layers=1, num_queries=5, num_labels=3
    )
    return transformers.DetrForObjectDetection(config)


@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_detr_trains_on_our_maps(tmp_path: Path, stride_in_1x1: bool) -> None:
    source = source_of(NetOptions(depth=50, stride_in_1x1=stride_in_1x1))
    folder, pixels = write(tmp_path, source), photos()[1]
    config = transformers.ResNetConfig.from_pretrained(folder, out_features=STAGES)
    model = detr(config)
    weights = transformers.ResNetBackbone.from_pretrained(folder, out_features=STAGES).state_dict()
    absent, left = model.model.backbone.model.load_state_dict(weights, strict=False)
    assert not absent
    assert all(name.endswith("num_batches_tracked") for name in left)  # DETR's frozen norms have no counters
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    x = processor(list(pixels), do_resize=False, do_center_crop=False, return_tensors="pt").pixel_values
    maps: dict[str, torch.Tensor] = {}
    model.model.backbone.model.register_forward_hook(
        lambda module, args, out: maps.update(zip(("C2", "C3", "C4", "C5"), out.feature_maps, strict=True))
    )
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}] * 2
    model.train()
    loss = model(pixel_values=x, labels=labels).loss
    loss.backward()
    assert loss.isfinite()
    assert_equal({stage: value.detach() for stage, value in maps.items()}, maps_of(source, pixels))
