"""A submission against what the nets say when they are asked one image at a time."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from backbone import artifact as backbones
from backbone.cli import validate
from backbone.errors import BadImage, UserError
from backbone.evaluate.protocols import dense
from backbone.inputs import InputConvention
from backbone.nets import build as build_backbone
from backbone.options import NetOptions
from backbone.training.world import World
from detection.localisation import artifact as localisers
from detection.localisation.net import build, decode
from detection.localisation.recipe import LocaliserOptions
from detection.submission.options import Submission
from detection.submission.submit import load, of_nets, prepare, submit
from tests.detection.localisation.test_clsloc import write_image

WNIDS = ("n01", "n02", "n03", "n04", "n05", "n06")
NUMBERS = {"n01": 4, "n02": 2, "n03": 6, "n04": 1, "n05": 3, "n06": 5}
ALONE = World(0, 1, torch.device("cpu"))
SCALES = Submission.model_fields["scales"].default
DETECTION: dict[str, Any] = {"backbone": [], "scales": SCALES, "batch": 32, "loaders": 4}
"""What a detection submission leaves as it is."""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nets of six classes, a localiser of them, and five images of three sizes."""
    root = tmp_path_factory.mktemp("planted")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, size in (("a", 48), ("b", 64)):
            inputs = InputConvention(size=size, crop_pct=0.9, mean=(0.5, 0.4, 0.3))
            net = build_backbone(NetOptions(depth=18, width=0.125), 6)
            backbones.save(root / name, net, inputs, WNIDS, {"train_images": 0})
        fields: Any = {"norm": "frozen", "channels": 8, "anchor_sizes": (16, 40), "anchor_ratios": (1.0,)}
        localiser = build(LocaliserOptions(**fields), net, 6)
        torch.nn.init.normal_(localiser.reg.weight, std=0.3)
        localisers.save(root / "localiser", localiser.eval(), InputConvention(size=48), WNIDS, {})
    for k, sides in enumerate([(40, 60), (60, 40), (50, 50), (40, 60), (44, 48)]):
        write_image(root / "ILSVRC", f"test/ILSVRC2012_test_0000000{k}", [], sides)
        pixels = np.random.default_rng(k).integers(0, 256, 3) + np.zeros((*sides, 3))  # of one colour each, in stripes
        pixels[:: k + 2] = 255 - pixels[:: k + 2]
        file = root / f"ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_0000000{k}.JPEG"
        file.write_bytes(cv2.imencode(".jpg", pixels.astype(np.uint8))[1].tobytes())
    (root / "map_clsloc.txt").write_text("".join(f"{wnid} {k} name{k}\n" for wnid, k in NUMBERS.items()))
    return root


def options(planted: Path, tmp_path: Path, **fields: Any) -> Submission:
    tree = {
        "backbone": [str(planted / "a"), str(planted / "b")],
        "images": str(planted / "ILSVRC/Data/CLS-LOC/test"),
        "synsets": str(planted / "map_clsloc.txt"),
        "output": str(tmp_path / "entry"),
        "scales": [224, 256],
        "loaders": 0,
        "batch": 2,
        **fields,
    }
    return validate(Submission, tree, "t")


def images(planted: Path) -> list[np.ndarray]:
    files = sorted((planted / "ILSVRC/Data/CLS-LOC/test").iterdir())
    return [cv2.imread(str(file))[:, :, ::-1] for file in files]


def shown(image: np.ndarray, side: int) -> Tensor:
    """uint8 [1, 3, H, W]: the whole image with this shorter side."""
    from PIL import Image

    height, width = image.shape[:2]
    size = side * width // min(height, width), side * height // min(height, width)
    pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]


@torch.no_grad()
def scores_of(planted: Path, image: np.ndarray) -> Tensor:
    """[6], of both nets at two scales and their mirror images."""
    total = torch.zeros(6)
    for name, size in (("a", 48), ("b", 64)):
        net, inputs, _ = backbones.load(planted / name)
        for scale in (224, 256):
            pixels = shown(image, scale * size // 224)
            for turned in (pixels, pixels.flip(3)):
                total += dense(net, inputs.normalize(turned), size).softmax(1)[0] / 8
    return total


def test_an_ensembles_five_classes_an_image_in_order(planted: Path, tmp_path: Path) -> None:
    chosen = options(planted, tmp_path)
    told = submit(prepare(chosen, lambda text: None), ALONE, lambda record: None)
    assert told == {"images": 5, "lines": 5}
    read = np.loadtxt(tmp_path / "entry/predictions.txt", dtype=int)
    expected = []
    for image in images(planted):
        best = scores_of(planted, image).topk(5).indices.tolist()
        expected.append([NUMBERS[WNIDS[k]] for k in best])
    assert read.tolist() == expected
    assert len({tuple(row) for row in expected}) > 1  # so that another order of images would show
    about = json.loads((tmp_path / "entry/submission.json").read_text())
    assert set(about["weights_sha256"]) == {str(planted / "a"), str(planted / "b")}


def test_ranks_write_one_files_parts(planted: Path, tmp_path: Path) -> None:
    chosen = options(planted, tmp_path, protocol="1-crop", scales=SCALES, batch=1)
    payload = prepare(chosen, lambda text: None)
    nets = load(chosen)
    parts = [
        of_nets(chosen, nets, payload.images, payload.numbers, World(rank, size, torch.device("cpu")))
        for size in (1, 2)
        for rank in range(size)
    ]
    assert [len(part) for part in parts] == [5, 2, 3]
    assert parts[0] == parts[1] + parts[2]


def test_a_box_goes_with_each_class(planted: Path, tmp_path: Path) -> None:
    chosen = options(planted, tmp_path, localiser=[str(planted / "localiser")], scales=[224])
    submit(prepare(chosen, lambda text: None), ALONE, lambda record: None)
    read = np.loadtxt(tmp_path / "entry/predictions.txt").reshape(5, 5, 5)
    model, inputs, _, _ = localisers.load(planted / "localiser")
    wnids = {number: wnid for wnid, number in NUMBERS.items()}
    for image, guesses in zip(images(planted), read, strict=True):
        pixels = shown(image, 48)
        height, width = image.shape[:2]
        zoom = torch.tensor([pixels.shape[3] / width, pixels.shape[2] / height] * 2)
        for number, *box in guesses.tolist():
            label = WNIDS.index(wnids[int(number)])
            with torch.no_grad():
                logits, deltas = model(inputs.normalize(pixels), torch.tensor([[label]]))
            at = int(logits[0, 0].argmax())
            whole = decode(deltas[0, 0, at][None], model.anchors(*pixels.shape[2:])[at][None])[0] / zoom
            x1, y1, x2, y2 = torch.minimum(whole.clamp(min=0), torch.tensor([width, height] * 2)).tolist()
            np.testing.assert_allclose(box, [x1 + 1, y1 + 1, x2, y2], atol=0.01)


def test_an_unreadable_image_stops_it(planted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "torn.JPEG").write_bytes(b"\xff\xd8\xff")
    payload = prepare(options(planted, tmp_path, images=str(folder)), lambda text: None)
    with pytest.raises(BadImage, match=r"torn\.JPEG"):
        submit(payload, ALONE, lambda record: None)


def test_what_jobs_detect_left_becomes_a_file(planted: Path, tmp_path: Path) -> None:
    found = tmp_path / "found"
    found.mkdir()
    (tmp_path / "ILSVRC/Data/DET/test").mkdir(parents=True)
    (tmp_path / "ILSVRC/Data/DET/test/x.JPEG").write_bytes(b"")
    (tmp_path / "ILSVRC/ImageSets/DET").mkdir(parents=True)
    (tmp_path / "ILSVRC/ImageSets/DET/test.txt").write_text("x 7\n")
    chosen = options(planted, tmp_path, **DETECTION, detections=str(found), images=f"{tmp_path}/ILSVRC:test")
    with pytest.raises(UserError, match=r"no complete results of jobs/detect\.py"):
        prepare(chosen, lambda text: None)
    assert not (tmp_path / "entry").exists()
    entries = {"images": [{"id": 1, "file_name": "x.JPEG"}], "categories": [{"id": 3, "name": "n02"}]}
    rows = [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}]
    mark = {"plan": {"detector": "abc"}, "provenance": {"detector": "runs/d/artifact"}}
    for name, tree in (("detect", mark), ("images", entries), ("detections", rows)):
        (found / f"{name}.json").write_text(json.dumps(tree))
    assert submit(prepare(chosen, lambda text: None), ALONE, lambda record: None) == {"images": 1, "lines": 1}
    assert np.loadtxt(tmp_path / "entry/predictions.txt").tolist() == [7, 2, 0.5, 2, 3, 4, 6]
    (found / "images.json").write_text(json.dumps({**entries, "categories": [{"id": 3, "name": "tench"}]}))
    with pytest.raises(UserError, match=r"lacks 1 of the 1 classes of the detector: tench") as told:
        prepare(chosen, lambda text: None)
    assert "by_position" not in str(told.value)  # which detections do not read


def test_a_net_that_multi_scale_is_not_for_is_told_a_protocol_that_it_may_have(planted: Path, tmp_path: Path) -> None:
    net = build_backbone(NetOptions(net="vgg", depth=16, width=0.125), 6)
    backbones.save(tmp_path / "vgg", net, InputConvention(size=48), WNIDS, {"train_images": 0})
    own = {"backbone": [str(tmp_path / "vgg")]}
    with pytest.raises(UserError, match="--protocol 10-crop"):
        prepare(options(planted, tmp_path, **own), lambda text: None)
    with pytest.raises(UserError, match="--protocol 1-crop"):
        prepare(options(planted, tmp_path, **own, localiser=[str(planted / "localiser")]), lambda text: None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": []}, "give one of them, none is given"),
        ({"detections": "found"}, "give one of them, both are given"),
        ({"backbone": ["a", "a"]}, "one is named twice"),
        ({"localiser": ["l"], "protocol": "10-crop"}, "a localiser sees 1-crop or multi-scale"),
        ({"backbone": [], "detections": "found", "localiser": ["l"]}, "says where, not what"),
        ({**DETECTION, "detections": "found", "by_position": True}, "by_position: read with backbone only"),
        ({**DETECTION, "detections": "found", "protocol": "1-crop"}, "protocol: read with backbone only"),
        ({"backbone": [], "detections": "found"}, "scales, batch, loaders: read with backbone only"),
        ({"protocol": "1-crop"}, "scales are read by protocol multi-scale only"),
    ],
)
def test_options_that_cannot_be_meant(planted: Path, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        options(planted, tmp_path, **fields)
