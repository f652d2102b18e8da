"""Fine-tuning: learns, stops anywhere and goes on bit for bit, on any number of ranks, and says what breaks."""

import contextlib
import copy
import hashlib
import json
import math
import multiprocessing
import os
import re
import shutil
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from backbone.data.stream import MicroBatches
from backbone.errors import UserError
from backbone.nets import Backbone
from backbone.options import NetOptions
from backbone.training import engine
from backbone.training.meter import Meter
from backbone.training.state import Store
from backbone.training.world import World, local_world
from detection import artifact, forward, scoring
from detection.data.sources import open_sources
from detection.data.synthetic import SyntheticScenes
from detection.finetune import Detection, build_detector, finetune, finished, load_backbone, prepare
from detection.recipe import Finetune
from tests.detection.conftest import ALONE, Make, write_backbone


class Stop(Exception):
    """A kill, as the loop sees it: nothing of it runs on."""


def run(recipe: Finetune, stop_at: int = -1, world: World = ALONE) -> list[dict]:
    """Prepare and train as the job does; with `stop_at`, break off at the first record from that step on."""
    records: list[dict] = []

    def report(record: dict[str, Any]) -> None:
        records.append(record)
        if 0 <= stop_at <= record.get("step", -1):
            raise Stop

    payload = prepare(recipe, lambda text: None)
    with contextlib.suppress(Stop):
        finetune(payload, world, report)
    return records


def folder(recipe: Finetune) -> Path:
    return Path(recipe.run.storage, recipe.run_name)


def weights(recipe: Finetune) -> bytes:
    return (folder(recipe) / "artifact" / "model.safetensors").read_bytes()


def task_of(recipe: Finetune) -> Detection:
    return Detection(recipe, *open_sources(recipe.data), ALONE)


RETINA = {"kind": "retinanet", "norm": "frozen", "freeze_at": 1, "channels": 16, "anchor_ratios": [1.0]}
RETINA |= {"anchor_sizes": [8, 16, 24, 32, 48], "score": 0.005, "detections": 5}
SEMANTIC = {"kind": "semantic", "norm": "frozen", "freeze_at": 1, "channels": 16, "head_channels": 64}
KINDS: list[dict[str, Any]] = [{}, {"detector": RETINA}, {"detector": SEMANTIC}]
OPTIONS = [
    pytest.param({}, id="frozen fpn"),
    pytest.param({"detector": RETINA}, id="retinanet"),
    pytest.param({"detector": SEMANTIC}, id="semantic"),
    pytest.param(
        {
            "detector": {"norm": "trainable", "freeze_at": 1, "kind": "c4", "masks": True, "anchor_sizes": [16, 32]},
            "detector.roi": {"size": 4, "batch": 8, "detections": 5},
            "detector.rpn": {"pre_nms_train": 50, "post_nms_train": 20, "pre_nms_test": 30, "post_nms_test": 10},
            "compute.precision": "bf16",
            "optim.ema": 0.9,
            "optim.clip": 1.0,
            "data.augment": {"flip": 0.5, "crop": 0.5, "colour": 0.4},
        },
        id="trained c4 with masks, augmentation, average",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_stopping_twice_changes_nothing(small: Make, options: dict) -> None:
    whole, parts = small({**options, "name": "whole"}), small({**options, "name": "parts"})
    run(whole)
    first = run(parts, stop_at=4)  # past the checkpoint of step 3, in the first epoch
    second = run(parts, stop_at=8)  # before the evaluation of that step is saved
    third = run(parts)
    assert max(r.get("step", 0) for r in first) < 8
    assert any("resuming at step 3" in r.get("text", "") for r in second)
    assert any("resuming at step 6" in r.get("text", "") for r in third)
    assert weights(whole) == weights(parts)
    histories = [json.loads((folder(x) / "history.json").read_text()) for x in (whole, parts)]
    losses = [[(r["step"], r["loss"]) for r in history if "loss" in r] for history in histories]
    assert losses[0] == losses[1]
    assert len(losses[0]) > 3


def _rank(rank: int, size: int, port: int, tree: dict, stop_at: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with local_world(use_gpu=False, threads=1) as world:
        run(Finetune.model_validate(tree), stop_at, world)
        if stop_at >= 0:
            os._exit(0)  # no farewell to the other ranks, which are stopping too


def run_ranks(recipe: Finetune, size: int, stop_at: int = -1) -> None:
    prepare(recipe, lambda text: None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["detection.finetune"])
    tree = recipe.model_dump(mode="json")
    ranks = [context.Process(target=_rank, args=(r, size, port, tree, stop_at)) for r in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert stop_at >= 0 or [process.exitcode for process in ranks] == [0] * size


@pytest.mark.slow
@pytest.mark.parametrize("detector", KINDS, ids=["faster", "retinanet", "semantic"])
def test_the_number_of_ranks_may_change_on_the_way(small: Make, detector: dict) -> None:
    """1 -> 2 ranks: the same two micro-batches a step, so the same weights and the same judgement, bit for bit."""
    options = {"schedule.total": 8, "data.val_images": 9, **detector}
    alone, resized = small({**options, "name": "alone"}), small({**options, "name": "resized"})
    run(alone)
    run(resized, stop_at=4)
    run_ranks(resized, 2)
    assert weights(alone) == weights(resized)
    detections = [json.loads((folder(x) / "results" / "detections.json").read_text()) for x in (alone, resized)]
    assert detections[0] == detections[1]
    assert alone.semantic or len(detections[0]) > 9
    if alone.semantic:
        one, two = (dict(np.load(folder(x) / "results" / "matches.npz")) for x in (alone, resized))
        assert {name: (one[name] == two[name]).all() for name in one} == dict.fromkeys(one, True)
    assert artifact.load(folder(resized) / "artifact").block["provenance"]["workers"] == 2


def test_backbone_weights_are_taken_and_frozen_ones_stay(small: Make, backbone: str) -> None:
    """Against the artifact's own file: what is frozen is as it was, what is not has moved."""
    chosen = small({"detector.freeze_at": 2, "schedule.total": 3})
    run(chosen)
    before = load_file(Path(backbone, "model.safetensors"))
    after = load_file(folder(chosen) / "artifact" / "model.safetensors")
    body = {name.removeprefix("backbone.body."): t for name, t in after.items() if name.startswith("backbone.body.")}
    assert len(body) > 90
    moved = {name for name, tensor in body.items() if not torch.equal(tensor, before[name])}
    fixed = {name for name in body if re.match(r"(conv1|bn1|layer1)", name) or "bn" in name or "downsample.1" in name}
    assert moved == {name for name in body if name not in fixed}


def test_from_scratch_takes_the_net_but_not_the_weights(small: Make) -> None:
    taken, inputs, _ = load_backbone(small())
    new = {"from_scratch": True, "detector.norm": "group"}
    scratch = [load_backbone(small({**new, "seed": seed})) for seed in (0, 0, 1)]

    def first(net: Backbone) -> torch.Tensor:
        return net.state_dict()["conv1.weight"]

    assert torch.equal(first(scratch[0][0]), first(scratch[1][0]))
    assert not torch.equal(first(scratch[0][0]), first(scratch[2][0]))
    assert not torch.equal(first(scratch[0][0]), first(taken))
    assert (inputs.channel_order, inputs.mean) == (scratch[0][1].channel_order, scratch[0][1].mean)


@pytest.mark.parametrize(("asked", "built"), [("trainable", "batch"), ("sync", "batch"), ("group", "group")])
@pytest.mark.parametrize("given", ["batch", "frozen", "group"])
def test_from_scratch_has_the_norms_asked_for_and_every_other_option(
    small: Make, tmp_path: Path, given: str, asked: str, built: str
) -> None:
    own = {"net": "resnet", "depth": 18, "width": 0.125, "shortcut": "C", "residual_scale": 0.5, "norm": given}
    url = write_backbone(tmp_path / "given", **own)
    recipe = small({"backbone": url, "from_scratch": True, "detector.norm": asked, "optim.micro_batch": 8})
    net, _, block = load_backbone(recipe)
    assert net.options == NetOptions.model_validate({**own, "norm": built})
    assert block["net"] == net.options.model_dump(mode="json")
    kinds = {type(module) for module in net.modules() if "Norm" in type(module).__name__}
    assert kinds == {nn.GroupNorm if asked == "group" else nn.BatchNorm2d}
    detector = build_detector(recipe, net, SyntheticScenes(0, 4, 64, (1, 2), "train"))
    assert sum(p.requires_grad for p in detector.parameters()) == len(list(detector.parameters()))


def test_another_backbone_under_the_name_is_refused(small: Make, tmp_path: Path) -> None:
    chosen = {"schedule.total": 2}
    prepare(small(chosen), lambda text: None)
    other = write_backbone(tmp_path / "other", seed=1)
    old, new = (json.loads(Path(b, "config.json").read_text()) for b in (small().backbone, other))
    hashes = [config["raybone"]["weights_sha256"][:12] for config in (old, new)]
    says = rf"backbone: another one \(fingerprint {hashes[0]}, now {hashes[1]}\)"
    with pytest.raises(UserError, match=says):
        prepare(small({**chosen, "backbone": other}), lambda text: None)
    scratch = {"from_scratch": True, "detector.norm": "group", "name": "scratch"}
    prepare(small(scratch), lambda text: None)
    prepare(small({**scratch, "backbone": other}), lambda text: None)  # other weights, which are not taken
    narrow = write_backbone(tmp_path / "narrow", width=0.25)
    with pytest.raises(UserError, match="backbone: another one"):
        prepare(small({**scratch, "backbone": narrow}), lambda text: None)


def test_what_a_run_leaves(small: Make, backbone: str) -> None:
    chosen = small({"schedule.total": 4, "run.export": "best"})
    assert finished(str(folder(chosen))) is None
    run(chosen)
    loaded = artifact.load(folder(chosen) / "artifact")
    about = loaded.block["provenance"]
    assert finished(str(folder(chosen)))["bbox"] == about["metrics"]["bbox"]
    weights_hash = hashlib.sha256(Path(backbone, "model.safetensors").read_bytes()).hexdigest()
    assert about["backbone"]["weights_sha256"] == weights_hash
    assert (about["steps"], about["epochs"], about["train_images"]) == (4, 1.0, 32)
    assert about["cost"]["parameters"] == sum(p.numel() for p in loaded.detector.parameters())
    assert (loaded.inputs.channel_order, loaded.inputs.mean, loaded.inputs.size) == ("BGR", (0.5, 0.4, 0.3), 64)
    assert loaded.categories == SyntheticScenes(0, 1, 64, (1, 2), "train").categories
    assert (folder(chosen) / "curves.png").read_bytes()[:4] == b"\x89PNG"
    again = run(chosen)
    assert not any(r["kind"] == "log" for r in again)


def test_the_best_weights_are_exported(small: Make) -> None:
    """A learning rate so high that it forgets: the best evaluation is not the last."""
    chosen = small({"run.export": "best", "run.eval_every": 1, "schedule.total": 12, "name": "best"})
    task = task_of(small({"schedule.total": 12, "run.eval_every": 1}))
    store = Store(str(folder(chosen) / "checkpoints"))
    payload = prepare(chosen, lambda text: None)
    errors = iter([60.0, 20.0, 70.0])

    class Fading(Detection):
        def evaluate(self, model: Any, world: World) -> dict[str, float]:
            return {"error": next(errors)}

    fading = Fading(payload.recipe, task.train_source, task.val_source, ALONE)
    engine.train(fading, fading.recipe, ALONE, store, lambda record: None)
    finetune(payload, ALONE, lambda record: None)
    best = store.load(8)["model"]
    exported = load_file(folder(chosen) / "artifact" / "model.safetensors")
    assert all(torch.equal(exported[name], best[name]) for name in best)
    assert artifact.load(folder(chosen) / "artifact").block["provenance"]["steps"] == 8


@pytest.mark.parametrize("export", ["last", "best"])
def test_weights_are_evaluated_once(small: Make, monkeypatch: pytest.MonkeyPatch, export: str) -> None:
    """The exported ones too, but where they are not those evaluated last, and after a kill before the artifact."""
    chosen = small({"run.export": export, "run.eval_every": 1, "name": export})
    scored, original, errors = [], Detection.score, iter([60.0, 20.0, 70.0])

    def counted(task: Detection, *given: Any) -> scoring.Scored:
        scored.append(original(task, *given))
        return scored[-1]

    def fading(task: Detection, *given: Any) -> dict[str, float]:
        return {**evaluate(task, *given), "error": next(errors)}

    evaluate = Detection.evaluate
    monkeypatch.setattr(Detection, "score", counted)
    monkeypatch.setattr(Detection, "evaluate", fading)
    records = run(chosen)
    assert len([one for one in records if one["kind"] == "evaluation"]) == 3
    assert len(scored) == (3 if export == "last" else 4)
    written = scoring.read(folder(chosen) / "results")
    assert {k: v for k, v in written.metrics.items() if k != "provenance"} == scored[-1].metrics
    assert written.detections == scored[-1].detections
    assert {k: v.tolist() for k, v in written.matches.items()} == {k: v.tolist() for k, v in scored[-1].matches.items()}
    shutil.rmtree(folder(chosen) / "artifact")
    count = len(scored)
    run(chosen)
    assert len(scored) == count + 1
    assert scored[-1].detections == written.detections


def test_a_changed_statistic_is_evaluated_anew(small: Make) -> None:
    """Of all that is exported, buffers included, it must be the very bits that were scored."""
    task = task_of(small({"detector.norm": "trainable", "data.val_images": 3}))
    assert task.scored_before(task.model, ALONE) is None
    task.evaluate(task.model.eval(), ALONE)
    assert task.scored_before(task.model, ALONE) is not None
    with torch.no_grad():
        dict(task.model.named_buffers())["backbone.body.bn1.running_mean"][0] += 1e-6
    assert task.scored_before(task.model, ALONE) is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"detector.masks": True},
        {"detector": {"norm": "trainable", "freeze_at": 0, "kind": "c4", "masks": True, "anchor_sizes": [16]}},
    ],
    ids=["fpn", "masks", "c4"],
)
def test_only_empty_images_give_a_finite_loss(small: Make, options: dict) -> None:
    """And gradients for every parameter, or DDP would wait for them for ever."""
    task = task_of(small(options))
    batch = task.train.make(range(4))
    nothing = {"boxes": batch["boxes"][:0], "labels": batch["labels"][:0], "patches": [], "pixels": batch["pixels"][:0]}
    losses, sums = task.loss({**batch, **nothing, "counts": [0] * 4})
    assert losses.shape == (4,)
    assert torch.isfinite(losses).all()
    assert float(next(iter(sums.values())).detach()) > 0
    losses.mean().backward()
    trained = [(name, p.grad) for name, p in task.model.named_parameters() if p.requires_grad]
    assert [name for name, gradient in trained if gradient is None or not torch.isfinite(gradient).all()] == []


def test_a_step_reads_no_size_from_the_device(small: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each such read waits until all that is queued is done. Those of sampling.py its own test counts."""
    monkeypatch.setattr(forward, "on_host", lambda images: False)
    chosen = small({"detector.masks": True, "schedule.total": 1})
    prepare(chosen, lambda text: None)
    task = task_of(chosen)
    trainer = engine.Trainer(task, chosen.optim, chosen.compute, chosen.seed, ALONE)
    steps = MicroBatches(8, 4, 0, 1, 0, 1)
    meter = Meter(ALONE, 8)
    batches = iter(list(task.batches(steps)))
    read: list[str] = []
    for name in ("tolist", "item", "numpy", "__int__", "__iter__"):
        original = getattr(torch.Tensor, name)

        def watched(tensor: Any, *given: Any, name: str = name, original: Any = original) -> Any:
            read.extend(f"{name} in {frame.filename}" for frame in traceback.extract_stack()[-2:-1])
            return original(tensor, *given)

        monkeypatch.setattr(torch.Tensor, name, watched)
    trainer.step(batches, steps, 0.01, 0, meter)
    assert not [one for one in read if "/detection/" in one and "torchvision" not in one and "sampling" not in one]


def test_a_loss_that_is_not_finite_names_its_terms_and_images(small: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The boxes' regression turns to NaN before one micro-batch: the other three terms stay finite."""
    chosen = small()
    prepare(chosen, lambda text: None)
    task = task_of(chosen)
    batches = task.batches
    first = 5 * 8 + 4  # step 5, its second micro-batch

    def poisoned(micro_batches: MicroBatches) -> Iterator[dict]:
        for batch in batches(micro_batches):
            if batch["position"] == first:
                with torch.no_grad():
                    task.model.roi_heads.box_predictor.bbox_pred.bias.fill_(math.nan)
            yield batch

    monkeypatch.setattr(task, "batches", poisoned)
    store = Store(str(folder(chosen) / "checkpoints"))
    with pytest.raises(FloatingPointError) as error:
        engine.train(task, chosen, ALONE, store, lambda record: None)
    text = str(error.value)
    assert "loss, loss_box_reg is not finite at step 5" in text
    names = [task.train_source.name(task.train.stream[p][1]) for p in range(first, first + 4)]
    assert f"images {', '.join(names)} (position {first})" in text
    assert store.steps()[-1] == 3  # nothing broken was saved


def test_steps_equal_bare_torchvision_steps(small: Make) -> None:
    """Two steps of two micro-batches against a loop written out: normalising, accumulation, decay, the loss's sum."""
    changes = {"schedule.kind": "constant", "schedule.total": 2, "optim.weight_decay": 0.01, "run.checkpoint_every": 0}
    chosen = small(changes)
    task = task_of(chosen)
    reference = copy.deepcopy(task.model).train()
    engine.train(task, chosen, ALONE, Store(str(folder(chosen) / "checkpoints")), lambda record: None)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.02, momentum=0.9, weight_decay=0.01)
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.3])
    for step in range(2):
        for unit in range(2):
            engine.seed_draws(engine.mix(chosen.seed, step, unit) >> 1, ALONE.device)
            batch = task.train.make(range(step * 8 + unit * 4, step * 8 + unit * 4 + 4))
            pixels = batch["images"].numpy().transpose(0, 2, 3, 1) / 255.0
            images = ((pixels - mean) / std)[..., ::-1].transpose(0, 3, 1, 2)  # BGR, as the artifact says
            ends = np.cumsum(batch["counts"])
            targets = [
                {"boxes": batch["boxes"][e - n : e], "labels": batch["labels"][e - n : e]}
                for e, n in zip(ends, batch["counts"], strict=True)
            ]
            losses = reference(torch.tensor(images.copy(), dtype=torch.float32), batch["sides"], targets)
            (sum(losses.values()) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    for (name, mine), expected in zip(task.model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_learning(trained: Path) -> None:
    """80 steps on 24 images, judged on the same."""
    losses = [r["loss"] for r in json.loads((trained / "history.json").read_text()) if "loss" in r]
    assert losses[-1] < losses[0] / 1.5
    assert finished(str(trained))["bbox"]["AP50"] > 0.2
