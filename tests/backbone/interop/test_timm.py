# ruff: noqa: E402  (what follows needs a package that may be absent)
"""A timm export is a timm model, as classifier, as features and with another head."""

import json
from pathlib import Path

import pytest
import torch

timm = pytest.importorskip("timm", reason="timm's own loader is the test")
from timm.data import create_transform, resolve_model_data_config

from backbone.interop import timm as ours
from backbone.options import NetOptions
from tests.backbone.interop.conftest import BGR, CLASSES, INPUTS, assert_equal, maps_of, photos, source_of


@torch.no_grad()
@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_every_stage_and_the_logits(tmp_path: Path, depth: int) -> None:
    source = source_of(NetOptions(depth=depth), BGR if depth == 34 else INPUTS)
    for name, data in ours.write(source).items():
        (tmp_path / name).write_bytes(data)
    place, pixels = f"local-dir:{tmp_path}", photos()[1]
    expected = maps_of(source, pixels)
    model = timm.create_model(place, pretrained=True).eval()
    given = resolve_model_data_config(model)
    assert [*given["input_size"], given["interpolation"]] == [3, 64, 64, "bilinear"]
    assert given["crop_pct"] == source.inputs.crop_pct
    mean, std = (torch.tensor(given[name]).view(3, 1, 1) for name in ("mean", "std"))
    x = (pixels.float() / 255 - mean) / std
    assert_equal({"logits": model(x)}, expected)
    assert list(model.pretrained_cfg["label_names"]) == list(CLASSES)
    features = timm.create_model(place, pretrained=True, features_only=True).eval()
    assert_equal(dict(zip(("C2", "C3", "C4", "C5"), features(x)[1:], strict=True)), expected)
    if depth == 18:
        assert timm.create_model(place, pretrained=True, num_classes=7)(x).shape == (2, 7)
        assert create_transform(**given, is_training=False) is not None


def test_its_config_has_what_timm_reads_and_nothing_of_ours() -> None:
    config = json.loads(ours.write(source_of(NetOptions(depth=18)))["config.json"])
    assert list(config) == ["architecture", "num_classes", "num_features", "pretrained_cfg"]
    assert config["architecture"] == "resnet18"


def test_class_names_of_a_hub_folder_at_the_root_of_its_config() -> None:
    files = ours.write(source_of(NetOptions(depth=18), INPUTS))
    config = json.loads(files["config.json"])
    del config["pretrained_cfg"]["label_names"]
    for names in (list(CLASSES), {str(i): name for i, name in enumerate(CLASSES)}):
        told = {**files, "config.json": json.dumps({**config, "label_names": names}).encode()}
        assert ours.facts(told).classes == tuple(CLASSES)
