"""A detector that begins as another one: every key is accounted for, and rows of classes go to the right ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backbone import artifact as backbones
from backbone.errors import UserError
from detection import artifact
from detection.data.contract import Categories
from detection.data.sources import open_sources
from detection.finetune import begin, build_detector, finetune, load_backbone, prepare
from detection.initial import Taken
from detection.nets import Detector, build
from detection.options import detector_options
from detection.plan import describe
from detection.recipe import Finetune
from tests.detection.conftest import ALONE, SMALL, recipe

OLD = ("star-dots", "tv", "disc-stripes")


def write(url: Path, backbone: str, **options: Any) -> str:
    """Folder of a detector of random weights and three classes, two of them the scenes'."""
    net, inputs, _ = backbones.load(backbone)
    torch.manual_seed(5)
    made = options if "kind" in options else SMALL["detector"] | options
    detector = build(detector_options(made), net, len(OLD))
    for tensor in detector.state_dict().values():
        if tensor.is_floating_point() and not tensor.any():
            tensor.uniform_(0.1, 0.2)  # biases begin at 0, and would look as if they were taken
    artifact.save(url, detector, inputs, Categories(OLD, (3, 1, 2)), (64, 64), {})
    return str(url)


@pytest.fixture
def old(tmp_path: Path, backbone: str) -> str:
    return write(tmp_path / "old", backbone)


def chosen(tmp_path: Path, old: str, **changes: Any) -> Finetune:
    return recipe(tmp_path / "runs", "", {"from_detector": old, **changes})


def begun(one: Finetune) -> tuple[Detector, Taken, dict[str, Tensor]]:
    """The detector, what it took, and what it was before."""
    train, _ = open_sources(one.data)
    detector = build_detector(one, load_backbone(one)[0], train)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    taken = begin(one, detector, train)
    assert taken
    own, theirs = set(before), set(artifact.load(one.from_detector).detector.state_dict())
    used = {*taken.whole, *taken.by_class}
    assert used | set(taken.new) == own
    assert len(taken.whole) + len(taken.by_class) + len(taken.new) == len(own)
    assert set(taken.dropped) == theirs - used
    return detector, taken, before


def test_all_but_the_class_heads_and_those_by_name(tmp_path: Path, old: str) -> None:
    one = chosen(tmp_path, old, **{"class_names": {"ring-dots": "tv"}})
    detector, taken, before = begun(one)
    theirs = artifact.load(old).detector.state_dict()
    scenes = open_sources(one.data)[0].categories.names
    pairs = {0: 0} | {
        scenes.index(name) + 1: OLD.index(there) + 1
        for name, there in (("star-dots", "star-dots"), ("ring-dots", "tv"), ("disc-stripes", "disc-stripes"))
    }
    assert set(taken.classes) == {"star-dots", "ring-dots", "disc-stripes"}
    assert (taken.left, taken.new, taken.dropped) == ((), (), ())
    assert len(taken.by_class) == 4
    for name, tensor in detector.state_dict().items():
        if name not in taken.by_class:
            assert torch.equal(tensor, theirs[name]), name
            continue
        each = 4 if "bbox_pred" in name else 1
        for k in range(len(scenes) + 1):
            rows = slice(k * each, (k + 1) * each)
            there = slice(pairs.get(k, 0) * each, (pairs.get(k, 0) + 1) * each)
            assert torch.equal(tensor[rows], theirs[name][there] if k in pairs else before[name][rows]), (name, k)
    assert f"{len(taken.whole)} tensors taken whole; 4 for 3 of 12 classes by name: " in describe(one)


def test_other_norms_and_another_kind(tmp_path: Path, old: str) -> None:
    _, taken, _ = begun(chosen(tmp_path, old, **{"detector.norm": "trainable"}))
    assert taken.left == ("tv",)
    assert {name.rpartition(".")[2] for name in taken.new} == {"num_batches_tracked"}
    assert taken.dropped == ()
    c4 = {"norm": "frozen", "freeze_at": 0, "kind": "c4", "anchor_sizes": [16, 32]}
    _, taken, before = begun(chosen(tmp_path, old, detector=c4))
    assert set(taken.whole) >= {name for name in before if name.startswith("backbone.body.")}
    assert any(name.startswith("backbone.fpn.") for name in taken.dropped)
    _, taken, _ = begun(chosen(tmp_path, old, new_heads=True))
    assert taken.by_class == taken.classes == ()
    assert set(taken.new) == set(taken.dropped)
    assert len(taken.new) == 4


def test_masks_have_classes_too(tmp_path: Path, old: str, backbone: str) -> None:
    _, taken, _ = begun(chosen(tmp_path, old, **{"detector.masks": True}))
    assert {name.split(".")[1] for name in taken.new} == {"mask_head", "mask_predictor"}
    masks = write(tmp_path / "masks", backbone, masks=True)
    detector, taken, _ = begun(chosen(tmp_path, masks, **{"detector.masks": True}))
    assert (taken.new, taken.dropped, len(taken.by_class)) == ((), (), 6)
    layers = [d.roi_heads.mask_predictor.mask_fcn_logits for d in (detector, artifact.load(masks).detector)]
    there = open_sources(chosen(tmp_path, masks).data)[0].categories.names.index("star-dots") + 1
    assert torch.equal(layers[0].weight[there], layers[1].weight[1])


def test_retinanets_classes_lie_within_each_anchors_rows(tmp_path: Path, backbone: str) -> None:
    retina = {"kind": "retinanet", "norm": "frozen", "freeze_at": 0, "channels": 16}
    old = write(tmp_path / "old", backbone, **retina)
    one = chosen(tmp_path, old, detector=retina)
    detector, taken, before = begun(one)
    assert (set(taken.classes), taken.left, taken.new, taken.dropped) == (
        {"star-dots", "disc-stripes"},
        ("tv",),
        (),
        (),
    )
    scenes = open_sources(one.data)[0].categories.names
    theirs = artifact.load(old).detector.state_dict()
    assert set(taken.by_class) == {f"head.classification_head.cls_logits.{kind}" for kind in ("weight", "bias")}
    pairs = {0: 0} | {scenes.index(name) + 1: OLD.index(name) + 1 for name in taken.classes}
    for name in taken.by_class:
        for anchor in range(9):
            for k in range(len(scenes) + 1):
                row, there = anchor * (len(scenes) + 1) + k, anchor * 4 + pairs.get(k, 0)
                wanted = theirs[name][there] if k in pairs else before[name][row]
                assert torch.equal(detector.state_dict()[name][row], wanted), (name, anchor, k)
    fewer = retina | {"octaves": 1}
    _, taken, _ = begun(chosen(tmp_path, old, detector=fewer))
    assert {name.split(".")[1] for name in taken.new} == {"classification_head", "regression_head"}
    _, taken, _ = begun(chosen(tmp_path, old))  # to Faster R-CNN: the backbone alone is the same
    assert {name.split(".")[0] for name in taken.dropped} == {"head", "backbone"}
    assert all(name.startswith("backbone.") for name in taken.whole)


def test_a_semantic_heads_classes_are_rows_of_its_predictor(tmp_path: Path, backbone: str, old: str) -> None:
    semantic = {"kind": "semantic", "norm": "frozen", "freeze_at": 0, "channels": 16, "head_channels": 64}
    given = write(tmp_path / "given", backbone, **semantic)
    one = chosen(tmp_path, given, detector=semantic)
    detector, taken, before = begun(one)
    assert (taken.left, taken.new, taken.dropped) == (("tv",), (), ())
    assert set(taken.by_class) == {"head.predictor.weight", "head.predictor.bias"}
    scenes = open_sources(one.data)[0].categories.names
    theirs = artifact.load(given).detector.state_dict()
    pairs = {0: 0} | {scenes.index(name) + 1: OLD.index(name) + 1 for name in taken.classes}
    assert len(pairs) == 3
    for name in taken.by_class:
        for row in range(len(scenes) + 1):
            wanted = theirs[name][pairs[row]] if row in pairs else before[name][row]
            assert torch.equal(detector.state_dict()[name][row], wanted), (name, row)
    _, taken, _ = begun(chosen(tmp_path, old, detector=semantic))  # from Faster R-CNN: backbone and pyramid
    assert {name.split(".")[0] for name in taken.new} == {"head"}
    assert any(name.startswith("backbone.fpn.") for name in taken.whole)


def test_a_run_goes_on_from_it(tmp_path: Path, old: str) -> None:
    one = chosen(tmp_path, old, **{"schedule.total": 1})
    said: list[str] = []
    finetune(prepare(one, said.append), ALONE, lambda record: None)
    assert any(line.startswith(f"from {old}: ") for line in said)
    block = json.loads((tmp_path / "runs" / "small" / "artifact" / "config.json").read_text())["raybone_detector"]
    made = block["provenance"]["from_detector"]
    assert (made["url"], made["left"]) == (old, ["tv"])
    assert (
        block["provenance"]["backbone"]["weights_sha256"]
        == artifact.read_config(old)["raybone_detector"]["weights_sha256"]
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"backbone": "x"}, "backbone, from_detector: give one of them"),
        ({"from_detector": ""}, "backbone, from_detector: give one of them"),
        ({"from_scratch": True, "detector.norm": "group"}, "from_scratch, from_detector: give one of them"),
        ({"new_heads": True, "class_names": {"a": "b"}}, "class_names, new_heads: give one of them"),
        ({"from_detector": "", "backbone": "x", "new_heads": True}, "are read with from_detector only"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        chosen(tmp_path, "old", **changes)


def test_classes_that_are_not_there(tmp_path: Path, old: str) -> None:
    with pytest.raises(UserError, match=r"class_names: cup is no class of data.train, which has disc-stripes, "):
        begun(chosen(tmp_path, old, class_names={"cup": "tv"}))
    with pytest.raises(UserError, match=r"class_names.ring-dots: cup is no class of .*old, which has star-dots, tv, "):
        begun(chosen(tmp_path, old, class_names={"ring-dots": "cup"}))
    config = Path(old, "config.json")
    tree = json.loads(config.read_text())
    tree["raybone_detector"]["categories"]["names"] = ["cat", "dog", "tv"]
    config.write_text(json.dumps(tree))
    with pytest.raises(
        UserError, match=r"none of its classes \(cat, dog, tv\) .* --class_names.disc-stripes cat, or .*--new"
    ):
        prepare(chosen(tmp_path, old), lambda text: None)
    with pytest.raises(UserError, match="no detector artifact here"):
        prepare(chosen(tmp_path, str(tmp_path / "none")), lambda text: None)
