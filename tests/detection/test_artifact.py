"""The detector artifact: what comes back is what was saved, and nothing else is taken for it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from backbone.errors import UserError
from backbone.inputs import InputConvention
from backbone.nets import build as build_net
from backbone.options import NetOptions
from detection import artifact
from detection.data.contract import Categories
from detection.evaluate import prepared
from detection.nets import Detector, build
from detection.options import detector_options
from tests.detection.conftest import SMALL

CLASSES = Categories(("dog", "cat", "cow"), (18, 17, 21))
INPUTS = InputConvention(size=64, channel_order="BGR", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
FPN = SMALL["detector"] | {"roi": {"canonical": 32, "detections": 5, "score": 0.0}}
C4 = {
    "norm": "frozen",
    "freeze_at": 1,
    "kind": "c4",
    "anchor_sizes": [16, 48],
    "rpn": SMALL["detector"]["rpn"],
    "roi": {"size": 6, "pooling": "max", "detections": 5, "score": 0.0},
}
RETINA = {
    "kind": "retinanet",
    "norm": "frozen",
    "freeze_at": 1,
    "channels": 16,
    "anchor_sizes": [8, 16, 24, 32, 48],
    "score": 0.001,
    "detections": 5,
}
KINDS = {
    "fpn": FPN,
    "trained norms": FPN | {"norm": "trainable", "masks": True},
    "c4": C4,
    "c4 masks": C4 | {"masks": True},
    "retinanet": RETINA,
    "retinanet v2": RETINA | {"norm": "trainable", "p6": "C5", "channels": 64, "head_norm": "group"},
}


def detector(kind: str, **net: Any) -> Detector:
    """A random one whose norms have statistics of their own."""
    torch.manual_seed(0)
    body = build_net(NetOptions(**{"depth": 18, "width": 0.125, **net}), 4)
    for module in body.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return build(detector_options(KINDS[kind]), body, 3)


def save(url: Path, kind: str = "fpn", **net: Any) -> Detector:
    made = detector(kind, **net)
    artifact.save(url, made, INPUTS, CLASSES, (64, 96), {"made": "here"})
    return made


@torch.no_grad()
def found(model: Detector) -> list[dict[str, torch.Tensor]]:
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    sizes = torch.tensor([[64, 96], [60, 70]])
    return model.eval()(prepared(INPUTS, {"images": images, "sizes": sizes}), sizes)


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_back_detects_the_same(tmp_path: Path, kind: str) -> None:
    made = save(tmp_path / "a", kind)
    loaded = artifact.load(tmp_path / "a")
    one, two = found(made), found(loaded.detector)
    assert sum(len(image["boxes"]) for image in one) == 10
    for mine, theirs in zip(one, two, strict=True):
        assert mine.keys() == theirs.keys()
        assert ("masks" in mine) == bool(made.options.masks)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert loaded.detector.options == made.options
    assert loaded.inputs == INPUTS
    assert (loaded.longer_side, loaded.block["provenance"]["made"]) == (96, "here")
    assert not loaded.detector.training


def test_categories_both_ways(tmp_path: Path) -> None:
    """Label k is names[k - 1], number ids[k - 1] of the data set: order and holes as they were."""
    save(tmp_path / "a")
    assert artifact.load(tmp_path / "a").categories == CLASSES


def test_sync_and_grouped_statistics_come_back_as_plain_ones(tmp_path: Path) -> None:
    """They say how statistics were shared in training; the net that is left computes the same."""
    made = save(tmp_path / "a", "trained norms", bn_group=4)
    loaded = artifact.load(tmp_path / "a")
    assert loaded.block["net"]["bn_group"] == 0
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(found(made), found(loaded.detector), strict=True))


def test_saving_leaves_mode_and_generator_alone(tmp_path: Path) -> None:
    made = detector("fpn").train()
    before = torch.get_rng_state()
    artifact.probe(made, INPUTS)
    assert made.training
    assert torch.equal(before, torch.get_rng_state())


def change(field: str, value: Any) -> Callable[[Path], None]:
    """A hand that edits config.json: `detector.roi.canonical` is three levels down."""

    def edit(url: Path) -> None:
        config = json.loads((url / "config.json").read_text())
        node = config["raybone_detector"]
        *sections, last = field.split(".")
        for section in sections:
            node = node[section]
        assert node[last] != value
        node[last] = value
        (url / "config.json").write_text(json.dumps(config))

    return edit


def another_weight(url: Path) -> None:
    file = url / "model.safetensors"
    tensors = load_file(file)
    tensors["rpn.head.cls_logits.bias"][0] += 1e-3
    save_file(tensors, file)


def cut(url: Path) -> None:
    file = url / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


DAMAGE = [
    pytest.param("fpn", another_weight, "SHA-256 is not the one", id="a weight"),
    pytest.param("fpn", cut, "SHA-256 is not the one", id="cut off"),
    pytest.param("fpn", change("inputs.channel_order", "RGB"), "does not answer its probe", id="channel order"),
    pytest.param("fpn", change("inputs.mean", [0.485, 0.456, 0.406]), "does not answer its probe", id="mean"),
    pytest.param("fpn", change("detector.roi.canonical", 112), "does not answer its probe: classes", id="levels"),
    pytest.param("fpn", change("detector.anchor_sizes", [16, 8, 24, 32, 48]), "its probe: anchors", id="anchors"),
    pytest.param("c4", change("detector.roi.pooling", "align"), "its probe: classes", id="pooling"),
    pytest.param("retinanet", change("detector.octaves", 2), "weights are not those of config.json", id="octaves"),
    pytest.param("retinanet", change("detector.anchor_ratios", [2, 1, 0.5]), "its probe: cells", id="ratios"),
    pytest.param("retinanet", change("inputs.channel_order", "RGB"), "does not answer its probe", id="its channels"),
    pytest.param("retinanet", change("detector.kind", "fpn"), "cannot be read: .*is read by kind retinanet", id="kind"),
    pytest.param("fpn", change("net.depth", 34), "weights are not those of config.json", id="depth"),
    pytest.param("fpn", change("categories.names", ["dog", "cat"]), "weights are not those", id="classes"),
    pytest.param("fpn", change("detector.norm", "fixed"), r"cannot be read: .*norm", id="unknown option"),
    pytest.param("fpn", change("format", 2), "artifact format 2; this raybone reads 1", id="format"),
    pytest.param("fpn", lambda url: (url / "model.safetensors").unlink(), "incomplete artifact", id="no weights"),
    pytest.param("fpn", lambda url: (url / "config.json").unlink(), r"config\.json is missing", id="no config"),
    pytest.param("fpn", lambda url: (url / "config.json").write_text("{"), "cannot be read", id="no JSON"),
    pytest.param("fpn", lambda url: (url / "config.json").write_text("[]"), "not a detector artifact", id="a list"),
]


@pytest.mark.parametrize(("kind", "damage", "complaint"), DAMAGE)
def test_damage_is_refused(tmp_path: Path, kind: str, damage: Callable, complaint: str) -> None:
    save(tmp_path / "a", kind)
    damage(tmp_path / "a")
    with pytest.raises(UserError, match=complaint) as error:
        artifact.load(tmp_path / "a")
    assert str(tmp_path / "a") in str(error.value)


def test_a_backbone_is_no_detector(backbone: str) -> None:
    with pytest.raises(UserError, match=r"this is a backbone artifact; put it into a detector with jobs/finetune\.py"):
        artifact.load(backbone)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write artifact"):
        save(tmp_path / "file")
