"""Localisation as a job: it stops and goes on bit for bit, judges every image once, and its files say the same."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backbone import artifact as backbones
from backbone.data.stream import mix
from backbone.data.synthetic import SyntheticSource
from backbone.errors import BadImage, UserError
from backbone.evaluate.protocols import dense
from backbone.evaluate.views import views
from backbone.training.world import World
from detection.localisation import artifact
from detection.localisation.judge import errors, guess, images_of, protocols
from detection.localisation.localise import Localisation, finished, localise, prepare
from detection.localisation.measure import is_found
from detection.localisation.net import Localiser, encode
from detection.localisation.recipe import Localise
from detection.localisation.sources import OneObjectScenes, open_located
from tests.detection.localisation.conftest import Make, write_classifier
from tests.detection.localisation.test_clsloc import CAT, DOG, write_image, write_list

ALONE = World(0, 1, torch.device("cpu"))


class Stop(Exception):
    pass


def run(recipe: Localise, stop_at: int = -1) -> dict[str, Any]:
    def report(record: dict[str, Any]) -> None:
        if 0 <= stop_at <= record.get("step", -1):
            raise Stop

    with contextlib.suppress(Stop):
        return localise(prepare(recipe, lambda text: None), ALONE, report)
    return {}


def place(recipe: Localise) -> Path:
    return Path(recipe.run.storage, recipe.run_name)


def test_stopped_and_submitted_again_it_is_the_same_to_the_bit(where: Make) -> None:
    whole, parts = where({"name": "whole"}), where({"name": "parts"})
    assert finished(str(place(whole))) is None
    one = run(whole)
    run(parts, stop_at=4)
    two = run(parts)
    files = ("artifact/model.safetensors", "results/guesses.json")
    assert all((place(whole) / name).read_bytes() == (place(parts) / name).read_bytes() for name in files)
    assert one["results"] == two["results"]
    assert finished(str(place(whole)))["results"] == json.loads(json.dumps(one["results"]))  # ty: ignore
    assert (place(whole) / "results/pictures.png").read_bytes().startswith(b"\x89PNG")


def test_its_files_add_up_to_its_errors(where: Make) -> None:
    recipe = where()
    last = run(recipe)["results"][-1]
    assert last["protocol"] == "dense"
    told = json.loads((place(recipe) / "results/guesses.json").read_text())
    assert len(told) == 14 == last["images"]
    wrong = {"own_class": 0, "top1": 0, "top5": 0, "top5_classes": 0}
    for image in told:
        truth, labels = np.array(image["truth"]), [one["class"] for one in image["guesses"]]
        boxes = np.array([one["box"] for one in image["guesses"]])
        assert len(labels) == 5
        assert (boxes >= 0).all()
        assert (boxes <= 48).all()
        numbers = [0 if label == image["class"] else 1 for label in labels]
        wrong["own_class"] += not is_found(0, truth, [0], np.array([image["own_class_box"]]))
        wrong["top1"] += not is_found(0, truth, numbers, boxes, 1)
        wrong["top5"] += not is_found(0, truth, numbers, boxes)
        wrong["top5_classes"] += image["class"] not in labels
    assert {name: last[name] for name in wrong} == pytest.approx({k: 100 * v / 14 for k, v in wrong.items()})
    assert last["paper"]["RPN, ResNet-101, top-5"] == 14.4


def test_the_artifact_says_what_was_trained_and_a_changed_one_is_refused(where: Make) -> None:
    recipe = where()
    run(recipe)
    url = place(recipe) / "artifact"
    loaded = artifact.load(url)
    assert loaded.localiser.classes == len(loaded.classes) == 12
    assert (loaded.inputs.size, loaded.inputs.mean) == (48, (0.5, 0.4, 0.3))
    assert loaded.block["provenance"]["metrics"][0]["protocol"] == "1-crop"
    config = json.loads((url / "config.json").read_text())
    config["raybone_localiser"]["inputs"]["mean"] = [0.1, 0.1, 0.1]
    (url / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="does not answer its probe"):
        artifact.load(url)
    weights = bytearray((url / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (url / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="SHA-256"):
        artifact.load(url)


@pytest.mark.parametrize("augment", [{"kind": "cifar"}, {"kind": "modern", "area": [0.2, 0.6]}])
def test_boxes_go_along_with_crops(where: Make, augment: dict[str, Any]) -> None:
    """The object is nowhere but in its box, and in most of it: seen by its mask, drawn in place of the image."""
    task = Localisation(where({"data.augment": augment}), ALONE, lambda record: None)
    source = task.train_source
    assert isinstance(source, OneObjectScenes)
    view, dropped = task.train.view, 0
    for position in range(96):  # two epochs
        epoch, image = task.train.stream[position]
        located = task.located([image], position)
        scene = source.scene(image)
        planes = np.empty((3, 48, 48), np.uint8)
        black = view.__class__(view.options, 48, 1.0, (0, 0, 0))
        black.fill(planes, np.repeat(255 * scene.masks[0][..., None], 3, 2), mix(task.recipe.seed, epoch, image))
        rows, columns = np.nonzero(planes[0] > 127)
        assert located["classes"].tolist() == [scene.labels[0]]
        if not int(located["counts"]):
            dropped += 1
            continue
        x1, y1, x2, y2 = located["boxes"][0, 0].tolist()
        if not len(rows):
            continue
        assert x1 - 1.5 <= columns.min()
        assert columns.max() + 1 <= x2 + 1.5
        assert y1 - 1.5 <= rows.min()
        assert rows.max() + 1 <= y2 + 1.5
    assert (dropped > 0) == (augment["kind"] == "modern")


class Knows(torch.nn.Module):
    """In a localiser's place: it says the truth, which it recognises each image by, for class 0 alone."""

    def __init__(self, model: Localiser, truth: Tensor, size: int) -> None:
        super().__init__()
        self.model, self.truth, self.size, self.row = model, truth, size, 0
        self.anchors = model.anchors

    def forward(self, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        anchors = self.anchors(*images.shape[-2:])
        scale = images.shape[-1] / self.size
        boxes = self.truth[self.row : self.row + len(images)] * scale
        self.row = (self.row + len(images)) % len(self.truth)
        deltas = encode(boxes[:, None, None].expand(-1, classes.shape[1], len(anchors), -1), anchors)
        return torch.zeros(deltas.shape[:-1]), deltas

    def parameters(self, recurse: bool = True) -> Any:
        return self.model.parameters(recurse)


@pytest.mark.parametrize("protocol", ["1-crop", "dense"])
def test_who_knows_where_things_are_is_never_wrong(where: Make, protocol: str) -> None:
    """What is judged goes through views, scales and back to pixels of the file without losing a box."""
    recipe = where({"scales": [256]})
    task = Localisation(recipe, ALONE, lambda record: None)
    source, targets = task.val_source, task.val_targets
    truth = torch.tensor(np.concatenate([source.boxes(i) for i in range(len(source))]), dtype=torch.float32)
    knows: Any = Knows(task.model, truth, 48)
    views = protocols(recipe.scales, task.classifier)
    view = views[protocol]
    batches = images_of(source, [view], ALONE, 4, 0, "stop")
    found, bad = guess(knows, task.classifier, targets, batches, view, 0, 64, False)
    for one in found:
        np.testing.assert_allclose(one.true_box, source.boxes(one.image)[0], atol=0.01)
        np.testing.assert_allclose(one.boxes, np.repeat(one.true_box[None], 5, 0), atol=0.01)
    judged = errors(found, source, targets, ALONE, bad)
    assert judged["own_class"] == 0
    assert judged["top5"] == judged["top5_classes"] > 0  # the classifier knows nothing
    with pytest.raises(RuntimeError, match="13 images judged"):
        errors(found[1:], source, targets, ALONE, bad)
    with pytest.raises(RuntimeError, match="15 images judged"):
        errors([*found, found[0]], source, targets, ALONE, bad)


def test_classes_come_from_the_classifier_as_it_is(where: Make) -> None:
    recipe = where()
    task = Localisation(recipe, ALONE, lambda record: None)
    view = protocols(recipe.scales, task.classifier)["dense"]
    _, found = task.judge(task.model.eval(), "dense")
    net, inputs, _ = backbones.load(recipe.backbone)
    with torch.no_grad():
        for i in (0, 7):
            total = torch.zeros(12)
            for seen in views(task.val_source.image(i), view):
                pixels = torch.from_numpy(seen.transpose(2, 0, 1).copy())[None]
                for turned in (pixels, pixels.flip(3)):
                    total += dense(net, inputs.normalize(turned), 48).softmax(1)[0]
            assert found[i].labels == total.topk(5).indices.tolist()


def test_an_image_that_cannot_be_read_is_left_out_and_named(where: Make, tmp_path: Path) -> None:
    root = tmp_path / "ILSVRC"
    names = [f"{synset}/{synset}_{k}" for synset in (CAT, DOG) for k in range(8)]
    for name in names:
        write_image(root, f"train/{name}", [(name[:9], (5, 6, 30, 40))])
    write_list(root, "train_loc", names)
    write_list(root, "val", ["a", "b"])
    write_image(root, "val/a", [(DOG, (1, 1, 60, 40))])
    write_image(root, "val/b", [(CAT, (1, 1, 60, 40))])
    torn = root / "Data/CLS-LOC/val/b.JPEG"
    torn.write_bytes(torn.read_bytes()[:30])
    url = write_classifier(tmp_path / "classifier", (CAT, DOG))
    data = {
        "source": "clsloc",
        "train": f"{root}:train_loc",
        "val": f"{root}:val",
        "cache": str(tmp_path / "cache"),
        "workers": 0,
        "augment": {"kind": "paper", "shorter_side": [50, 60]},
    }
    with pytest.raises(BadImage, match=r"b\.JPEG.*set data\.on_bad: skip"):
        run(where({"data": data, "backbone": url, "schedule.total": 2, "name": "stops"}))
    recipe = where({"data": data, "backbone": url, "schedule.total": 2, "data.on_bad": "skip"})
    first = run(recipe)["results"][0]
    assert (first["images"], len(first["unreadable"])) == (1, 1)
    assert "b.JPEG" in first["unreadable"][0]
    told = json.loads((place(recipe) / "results/guesses.json").read_text())
    assert [(one["class"], len(one["guesses"])) for one in told] == [(DOG, 2)]  # there are but two classes


def test_classes_are_matched_by_name_or_by_position(where: Make, tmp_path: Path) -> None:
    other = write_classifier(tmp_path / "other", tuple("abcdefghijkl"))
    with pytest.raises(UserError, match=r"lacks 12 \(disc-stripes, .*--by_position true"):
        prepare(where({"backbone": other}), lambda text: None)
    recipe = where({"backbone": other, "by_position": True})
    task = Localisation(recipe, ALONE, lambda record: None)
    assert task.val_targets.tolist() == task.val_source.labels.tolist()
    few = write_classifier(tmp_path / "few", tuple("abc"))
    with pytest.raises(UserError, match="lacks 9"):
        prepare(where({"backbone": few, "by_position": True}), lambda text: None)


def test_scenes_are_those_that_classifiers_learn_from(where: Make) -> None:
    train, val = open_located(where().data, 48)
    theirs = SyntheticSource(0, 48, 48, "train")
    assert np.array_equal(train.image(5), theirs.image(5))
    assert np.array_equal(train.labels, theirs.labels)
    assert not np.array_equal(train.image(5), val.image(5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.augment": {"kind": "modern", "mixup": 0.2}}, "would move objects out of their boxes"),
        ({"data.augment": {"kind": "modern", "policy": "trivial"}}, "would move objects out of their boxes"),
        ({"data.augment.kind": "modern", "data.resident": True}, "resident is for augment cifar or none"),
        ({"compute.compile": "default"}, r"compute\.compile"),
        ({"scales": [100]}, r"scales \[100\]: below 224"),
        ({"data": {"source": "clsloc", "val": "x:val"}}, r"data\.train is empty: source clsloc needs folder:list"),
        ({"localiser.bg_iou": 0.9}, "bg_iou must not be above fg_iou"),
    ],
)
def test_recipes_that_cannot_be_meant(where: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        where(changes)


def test_views_too_large_for_the_classifier_are_said(where: Make) -> None:
    with pytest.raises(UserError, match="below the crop of 48"):
        prepare(where({"data.augment": {"kind": "paper", "shorter_side": [30, 60]}}), lambda text: None)
