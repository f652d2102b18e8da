"""The R-CNN step: its net, its boxes, and the job that trains it on a localiser's proposals."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou

from backbone.errors import UserError
from backbone.inputs import InputConvention
from backbone.nets import build as build_net
from backbone.options import NetOptions
from backbone.training.notice import Leaving
from backbone.training.recipe import identity
from backbone.training.world import World
from detection.localisation import artifact
from detection.localisation.judge import DENSE, wrong
from detection.localisation.localise import finished, localise, prepare
from detection.localisation.picture import table
from detection.localisation.plan import describe
from detection.localisation.rcnn import RegionNet, build_regions, losses, refine
from detection.localisation.recipe import Localise, RegionOptions
from detection.localisation.refinement import Refinement, proposals_bytes
from detection.localisation.regions import warp
from tests.detection.localisation.conftest import Make, write_classifier
from tests.detection.localisation.test_clsloc import CAT, DOG
from tests.detection.localisation.test_localise import place, run
from tests.detection.localisation.test_ranks import plant, run_ranks

ALONE = World(0, 1, torch.device("cpu"))
CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))
RCNN: dict[str, Any] = {"kind": "rcnn", "norm": "trainable", "proposals": 6, "nms": 0.6}


def make(net: NetOptions, classes: int = 5, **fields: Any) -> RegionNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = RegionOptions.model_validate({**RCNN, **fields})
        model = build_regions(options, build_net(net, classes), classes)
        torch.nn.init.normal_(model.reg.weight, std=0.1)
        torch.nn.init.normal_(model.cls.weight, std=0.5)
    return model.eval()


NETS = [NetOptions(depth=18, width=0.125), NetOptions(depth=18, width=0.125, shortcut="none")]
VGG = NetOptions(net="vgg", depth=16, width=0.125)


@pytest.mark.parametrize("net", [*NETS, VGG])
@torch.no_grad()
def test_asked_for_a_class_it_says_what_the_whole_layers_do(net: NetOptions) -> None:
    model = make(net)
    images, classes = torch.randn(3, 3, 64, 64), torch.tensor([4, 0, 4])
    logits, deltas = model(images, classes)
    last = model.body(images)["C5"]
    if net.net == "vgg":
        every = list(model.body.get_submodule("classifier").children())
        vectors = torch.nn.Sequential(*every)(F.adaptive_avg_pool2d(last, 7).flatten(1))
    else:
        vectors = last.mean((2, 3))
    for i, label in enumerate(classes.tolist()):
        torch.testing.assert_close(logits[i], model.cls(vectors)[i, label])
        torch.testing.assert_close(deltas[i], model.reg(vectors)[i, 4 * label : 4 * label + 4])


def test_every_parameter_is_trained() -> None:
    model = make(NETS[0]).train()
    logits, deltas = model(torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3]))
    score, box = losses(logits, deltas, torch.tensor([True, False, True, True]), torch.ones(4, 4), model.options)
    (score + box).sum().backward()
    assert all(p.grad is not None for p in model.parameters())  # else DDP waits for ever
    assert box[1] == 0
    p = torch.sigmoid(logits.detach())
    torch.testing.assert_close(score.detach(), -torch.log(torch.stack([p[0], 1 - p[1], p[2], p[3]])))
    with pytest.raises(UserError, match="has C2, C3, C4 and no C5"):
        make(NetOptions(net="cifar_resnet", depth=8, shortcut="A"))


def test_refined_boxes_against_a_plain_loop() -> None:
    """A class that is asked for twice, an image that could not be read, chunks that end anywhere."""
    model, inputs = make(NETS[0], padding=20), InputConvention(size=48, mean=(0.5, 0.4, 0.3))
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, (40, 60, 3), dtype=np.uint8),
        None,
        rng.integers(0, 256, (50, 30, 3), dtype=np.uint8),
    ]
    corners = rng.uniform(0, 20, (3, 2, 3, 4))
    boxes = np.concatenate([corners[..., :2], corners[..., :2] + corners[..., 2:] + 5], -1)
    classes = np.array([[1, 4], [0, 0], [2, 2]])
    boxes[2, 1] = boxes[2, 0]
    proposals = [[boxes[i, j, : 3 - j if i == 0 else 3] for j in range(2)] for i in range(3)]
    found, _ = refine(model, inputs, images, classes, proposals, 4, False)
    assert not found[1].any()
    for i in (0, 2):
        image = images[i]
        assert image is not None
        for j in range(2):
            best, expected = -np.inf, np.zeros(4)
            for box in proposals[i][j]:
                seen = warp(image, box, 48, 20 * 48 // 224, (128, 102, 76))
                pixels = torch.from_numpy(seen.transpose(2, 0, 1).copy())[None]
                with torch.no_grad():
                    logits, deltas = model(inputs.normalize(pixels), torch.tensor([int(classes[i, j])]))
                moved = CODER.decode_single(deltas.double(), torch.from_numpy(box[None]))[0].numpy()
                if float(logits) > best:
                    height, width = image.shape[:2]
                    best, expected = float(logits), moved.clip(0, [width, height, width, height])
            np.testing.assert_allclose(found[i, j], expected, atol=1e-3)


class Knows(torch.nn.Module):
    """In the R-CNN's place: it is surest of the proposal nearest to the object of an image, and moves it there."""

    def __init__(self, model: RegionNet, boxes: list[np.ndarray], truth: list[np.ndarray]) -> None:
        super().__init__()
        self.options, self.cls = model.options, model.cls
        self.seen, self.truth = iter(boxes), iter(truth)

    def forward(self, regions: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        boxes = torch.from_numpy(np.stack([next(self.seen) for _ in classes]))
        truth = torch.from_numpy(np.stack([next(self.truth) for _ in classes]))
        return box_iou(boxes, truth).diagonal(), CODER.encode_single(truth, boxes)


def test_who_knows_where_things_are_is_right_whatever_was_proposed() -> None:
    images = [np.zeros((40, 60, 3), np.uint8)] * 2
    truth = [np.array([10.0, 5, 50, 35]), np.array([20.0, 10, 25, 30])]
    boxes = [np.array([[0.0, 0, 9, 9], [12, 8, 44, 30]]), np.array([[1.0, 1, 40, 30], [18, 8, 30, 30], [0, 0, 5, 5]])]
    flat = [box for some in boxes for box in some]
    knows: Any = Knows(make(NETS[0]), flat, [truth[0]] * 2 + [truth[1]] * 3)
    found, _ = refine(knows, InputConvention(size=48), images, np.array([[1], [2]]), [[boxes[0]], [boxes[1]]], 3, False)
    np.testing.assert_allclose(found[:, 0], np.stack(truth), atol=1e-3)


@pytest.fixture
def second(where: Make) -> Make:
    """As `where`, but of the R-CNN step on a localiser that is trained first."""
    first = where({"name": "first", "schedule.total": 3})
    run(first)
    proposals = str(place(first) / "artifact")

    def make(overrides: dict[str, Any] | None = None) -> Localise:
        own = {"localiser": RCNN, "data.augment": {"kind": "none"}, "proposals": proposals, "name": "second"}
        return where({**own, **(overrides or {})})

    return make


def test_stopped_and_submitted_again_it_is_the_same_to_the_bit(second: Make) -> None:
    whole, parts = second({"name": "whole"}), second({"name": "parts"})
    one = run(whole)
    run(parts, stop_at=4)
    two = run(parts)
    files = ("artifact/model.safetensors", "results/guesses.json", "proposals/boxes.npy")
    assert all((place(whole) / name).read_bytes() == (place(parts) / name).read_bytes() for name in files)
    assert one["results"] == two["results"]
    assert finished(str(place(whole)))["results"] == json.loads(json.dumps(one["results"]))  # ty: ignore
    assert "change" in table(one)


def test_what_stood_before_is_what_the_localiser_says_alone(second: Make) -> None:
    recipe = second()
    rows = run(recipe)["results"]
    alone = json.loads((place(recipe).parent / "first/results/results.json").read_text())["results"]
    for row, before in zip(rows, alone, strict=True):
        assert row["protocol"] == before["protocol"]
        for name in ("own_class", "top1", "top5", "top5_classes"):
            changed = row["changed"][name]
            assert changed["before"] == before[name]
            assert changed["before"] + changed["change"] == pytest.approx(row[name])
            low, high = changed["change_interval"]
            assert low <= changed["change"] <= high
    loaded = artifact.load(place(recipe) / "artifact")
    assert isinstance(loaded.localiser, RegionNet)
    theirs = artifact.load(recipe.proposals)
    assert loaded.block["provenance"]["proposals"]["weights_sha256"] == theirs.block["weights_sha256"]
    with pytest.raises(UserError, match=r"is an R-CNN \(localiser.kind rcnn\)"):
        artifact.load_localiser(place(recipe) / "artifact", "localiser")


def test_proposals_are_of_each_training_images_own_class(second: Make) -> None:
    recipe = second()
    run(recipe)
    task = Refinement(recipe, ALONE, lambda record: None, str(place(recipe)))
    boxes = task.train_set().boxes
    assert len(boxes) == 48
    for i in (0, 17, 47):
        mine = boxes.of(i)
        assert 1 <= len(mine) <= 6
        assert mine.min() >= 0
        assert mine.max() <= 48
        iou = box_iou(torch.from_numpy(mine), torch.from_numpy(mine)).fill_diagonal_(0)
        assert iou.max() <= 0.6 + 1e-6
        pixels = torch.from_numpy(task.train_source.image(i).transpose(2, 0, 1).copy())[None]
        larger = F.interpolate(pixels.float(), (54, 54), mode="bilinear", antialias=True).round().byte()
        own = torch.from_numpy(task.train_targets[i : i + 1])[:, None]
        with torch.no_grad():
            logits, _ = task.localiser(task.inputs.normalize(larger), own)
        anchor = task.localiser.anchors(54, 54)[int(logits[0, 0].argmax())] * 48 / 54
        assert box_iou(anchor[None], torch.from_numpy(mine[:1]).float()) > 0.2  # the best one is there
    batch = next(iter(task.batches(_Four())))
    located = task.train.located(batch["samples"], 0)  # ty: ignore[unresolved-attribute]
    assert torch.equal(batch["positive"], located["positive"])
    assert batch["classes"].tolist() == task.train_targets[batch["samples"]].tolist()
    assert batch["images"].shape == (4, 3, 48, 48)


class _Four:
    micro_batch = 4

    def __iter__(self) -> Any:
        return iter([range(4)])


def test_a_trained_step_is_better_than_chance_at_telling_proposals(second: Make) -> None:
    """On the scenes that it learned, more of its boxes are right than of the localiser's, which hardly learned."""
    recipe = second({"schedule.total": 60, "optim.lr": 0.1})
    run(recipe)
    task = Refinement(recipe, ALONE, lambda record: None, str(place(recipe)))
    net = artifact.load(place(recipe) / "artifact").localiser
    assert isinstance(net, RegionNet)
    task.val_source, task.val_targets = task.train_source, task.train_targets
    result, found = task.judge(net, DENSE)
    own = result["changed"]["own_class"]
    assert result["own_class"] < own["before"]
    wrongs = [wrong(one, task.train_source, task.train_targets)[0] for one in found]
    assert result["own_class"] == pytest.approx(100 * np.mean(wrongs))


def test_two_ranks_make_the_same_proposals_and_weights(where: Make, tmp_path: Path) -> None:
    shared = {
        "data": plant(tmp_path / "ILSVRC"),
        "backbone": write_classifier(tmp_path / "classifier", (CAT, DOG)),
        "schedule.total": 2,
        "eval_batch": 1,
    }
    first = where({**shared, "name": "first", "localiser.norm": "frozen"})
    run(first)
    own = {
        "data": {**shared["data"], "augment": {"kind": "none"}},
        "localiser": {**RCNN, "norm": "frozen"},
        "proposals": str(place(first) / "artifact"),
    }
    alone, both = where({**shared, **own, "name": "alone"}), where({**shared, **own, "name": "both"})
    one = run(alone)
    run_ranks(both, 2)
    for file in ("artifact/model.safetensors", "proposals/boxes.npy", "results/guesses.json"):
        assert (place(alone) / file).read_bytes() == (place(both) / file).read_bytes()
    results = json.loads((place(both) / "results/results.json").read_text())["results"]
    assert results == json.loads(json.dumps(one["results"]))
    assert [(row["images"], len(row["unreadable"])) for row in results] == [(6, 1)] * 2


def test_a_stop_is_heeded_while_proposals_are_made(second: Make) -> None:
    """Nothing half made is left, and the run that goes on is the one that was not stopped."""
    whole, stopped = second({"name": "whole", "schedule.total": 1}), second({"name": "stopped", "schedule.total": 1})
    run(whole)
    said: list[str] = []
    asked = World(0, 1, torch.device("cpu"), lambda: "told to stop" if len(said) else "")

    def report(record: dict[str, Any]) -> None:
        said.append(record.get("text", ""))

    with pytest.raises(Leaving, match=r"told to stop; the proposals of training images were not all made"):
        localise(prepare(stopped, lambda text: None), asked, report)
    assert said[0] == "proposals of 48 training images"
    assert not (place(stopped) / "proposals").exists()
    run(stopped)
    for file in ("artifact/model.safetensors", "proposals/boxes.npy"):
        assert (place(whole) / file).read_bytes() == (place(stopped) / file).read_bytes()


def test_damaged_proposals_are_refused(second: Make) -> None:
    recipe = second({"schedule.total": 2, "run.checkpoint_every": 1})
    run(recipe, stop_at=3)
    shutil.rmtree(place(recipe) / "artifact")
    file = place(recipe) / "proposals/boxes.npy"
    intact = file.read_bytes()
    file.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    with pytest.raises(UserError, match=r"proposals: SHA-256 is not the one in proposals\.json.* remove that folder"):
        run(recipe)
    shutil.rmtree(file.parent)
    run(recipe)
    assert file.read_bytes() == intact


def test_the_disk_that_proposals_need_is_foretold(second: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = second({"schedule.total": 1})
    run(recipe)
    options = recipe.localiser
    assert isinstance(options, RegionOptions)
    most = proposals_bytes(options, 48)
    arrays = sum((place(recipe) / f"proposals/{name}.npy").stat().st_size - 128 for name in ("boxes", "starts"))
    assert most / 3 < arrays <= most  # 128 bytes are numpy's header
    imagenet = proposals_bytes(RegionOptions.model_validate({"kind": "rcnn", "norm": "frozen"}), 544_546)
    assert imagenet == pytest.approx(544_546 * 200 * 16, rel=0.01)
    many = second({"localiser": {**RCNN, "proposals": 4_000_000}, "name": "many"})
    assert "up to 2.86 GiB of proposals" in describe(many)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=2**30))
    with pytest.raises(
        UserError, match=r"1024 MiB free, but checkpoints take .* and what the run makes besides 2930 MiB"
    ):
        prepare(many, lambda text: None)
    prepare(second({"name": "few"}), lambda text: None)


def test_who_judges_too_much_at_once_is_told_the_option_that_helps(
    second: Make, where: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a real allocation, while proposals are made and while boxes are judged."""

    def too_large(*given: Any) -> Any:
        return torch.empty(2**55, dtype=torch.uint8)

    recipe = second({"name": "one"})
    for module, function, chosen in (
        ("refinement", "propose", recipe),
        ("task", "guess", where({"name": "two", "schedule.total": 1})),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"detection.localisation.{module}.{function}", too_large)
            with pytest.raises(UserError, match=r"out of memory on cpu: eval_batch 4 is too much; .*--eval_batch 2"):
                run(chosen)


def test_the_plan_names_the_proposals(second: Make) -> None:
    text = describe(second())
    assert "R-CNN of resnet18, 12 classes, up to 6 proposals of a class" in text
    assert "first/artifact" in text


def test_localisers_of_before_are_the_same_runs(where: Make) -> None:
    assert not {"localiser.kind", "proposals"} & set(identity(where()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"localiser": RCNN, "data.augment": {"kind": "none"}}, "--proposals runs/localiser/artifact"),
        ({"localiser": RCNN, "proposals": "x"}, r"data\.augment\.kind cifar: .*give none"),
        ({"proposals": "x"}, "proposals are read by localiser.kind rcnn"),
        ({"localiser": {**RCNN, "anchors": 9}, "proposals": "x"}, r"anchors.*is read by kind rpn, not by rcnn"),
        ({"localiser": {**RCNN, "scales": [100]}, "proposals": "x"}, r"scales \[100\]: below 224"),
    ],
)
def test_recipes_that_cannot_be_meant(where: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        where(changes)
