"""The loop: learns, stops anywhere and goes on bit for bit, on any number of ranks, and says what breaks."""

import contextlib
import copy
import multiprocessing
import os
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from backbone.artifact import load
from backbone.data.stream import MicroBatches
from backbone.data.synthetic import SyntheticSource
from backbone.errors import BadImage, UserError
from backbone.inputs import InputConvention
from backbone.training import engine
from backbone.training.meter import Meter
from backbone.training.pretrain import Classification, prepare, pretrain
from backbone.training.recipe import Recipe
from backbone.training.state import Store
from backbone.training.world import World, local_world

ALONE = World(0, 1, torch.device("cpu"))
Make = Callable[..., Recipe]


class Stop(Exception):
    """A kill, as the loop sees it: nothing of it runs on."""


def run(recipe: Recipe, stop_at: int = -1, world: World = ALONE) -> list[dict]:
    """Prepare and train as the job does; with `stop_at`, break off at the first record from that step on."""
    records: list[dict] = []

    def report(record: dict[str, Any]) -> None:
        records.append(record)
        if 0 <= stop_at <= record.get("step", -1):
            raise Stop

    payload = prepare(recipe)
    with contextlib.suppress(Stop):
        pretrain(payload, world, report)
    return records


def weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint: weights, averages, momentum."""
    state = Store(f"{recipe.run.storage}/{recipe.run_name}/checkpoints").newest(print)
    assert state is not None
    kept = {f"{n}{k}": v for k, one in state["optimizer"]["state"].items() for n, v in one.items()}
    return {**state["model"], **{f"average.{k}": v for k, v in state["average"].items()}, **kept}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


SOURCES = SyntheticSource(0, 160, 32, "train"), SyntheticSource(0, 50, 32, "val")
CONVENTIONS = {
    "imagenet": InputConvention(size=32, crop_pct=1.0),
    "pixel": InputConvention(size=32, crop_pct=1.0).with_mean_image(torch.full((3, 32, 32), 0.5)),
}


def is_average(name: str) -> bool:
    """Moving averages of batch statistics, which see fewer micro-batches a step where there are more ranks."""
    return "running" in name or "tracked" in name


STRONG = {  # as the strong recipes: what is drawn of a sample depends on its place and turn alone
    "model.stochastic_depth": 0.5,
    "data.augment": {"kind": "modern", "repeats": 3, "policy": "increasing", "magnitude": 7, "magnitude_std": 0.5}
    | {"mixup": 0.2, "cutmix": 1.0, "erasing": 0.2},
    "optim.kind": "lamb",
    "optim.clip": 1.0,
    "optim.loss": "bce",
    "optim.bce_threshold": 0.2,
    "optim.micro_batch": 8,
}

OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"optim.ema": 0.9, "optim.clip": 1.0, "optim.nesterov": True, "optim.decay": "conv"}, id="ema-clip"),
    pytest.param(
        {"compute.precision": "bf16", "optim.micro_batch": 4, "schedule.hold_lr": 0.01},
        id="bf16-accumulate",
        marks=pytest.mark.slow,
    ),
    pytest.param(STRONG, id="strong"),
    pytest.param(
        {"data.augment": {"kind": "modern"}, "data.progressive": {"from_size": 16, "end": 2, "step": 8}}, id="growing"
    ),
    pytest.param(
        {"model": {"net": "vgg", "depth": 11, "norm": "none", "width": 0.05}, "schedule.kind": "plateau"}, id="dropout"
    ),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_stopping_twice_changes_nothing(tiny: Make, options: dict) -> None:
    whole, parts = tiny({**options, "name": "whole"}), tiny({**options, "name": "parts"})
    run(whole)
    first = run(parts, stop_at=6)  # past the checkpoint of step 4, in the first epoch
    second = run(parts, stop_at=13)
    third = run(parts)
    assert max(r.get("step", 0) for r in first) < 10
    assert any("resuming at step 4" in r.get("text", "") for r in second)
    assert any("resuming at step 12" in r.get("text", "") for r in third)
    assert_equal(weights(whole), weights(parts))
    losses = [
        [
            (r["step"], r["loss"])
            for r in Store(f"{x.run.storage}/{x.name}/checkpoints").newest(print)["progress"]["history"]
            if "loss" in r
        ]
        for x in (whole, parts)
    ]
    assert losses[0] == losses[1]


def test_a_finished_run_is_not_trained_again(tiny: Make) -> None:
    run(tiny())
    again = run(tiny())
    assert not any(r["kind"] == "log" for r in again)


def _rank(rank: int, size: int, port: int, recipe: dict, stop_at: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with local_world(use_gpu=False, threads=1) as world:
        run(Recipe.model_validate(recipe), stop_at, world)
        if stop_at >= 0:
            os._exit(0)  # no farewell to the other ranks, which are stopping too


def run_ranks(recipe: Recipe, size: int, stop_at: int = -1) -> None:
    prepare(recipe)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["backbone.training.pretrain"])
    tree = recipe.model_dump(mode="json")
    ranks = [context.Process(target=_rank, args=(r, size, port, tree, stop_at)) for r in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert stop_at >= 0 or [process.exitcode for process in ranks] == [0] * size


def test_the_number_of_ranks_may_change_on_the_way(tiny: Make) -> None:
    """2 -> 1 -> 2 ranks: the same global batches in the same two micro-batches, so the same weights, bit for bit.

    With more micro-batches a step, sums run in another order and weights agree to rounding. Moving averages of batch
    statistics are means over the ranks' own; the artifact's are exact over all images.
    """
    options = {"optim.micro_batch": 8, "optim.ema": 0.9}
    alone, resized = tiny({**options, "name": "alone"}), tiny({**options, "name": "resized"})
    run(alone)
    # The newest checkpoint is written behind the loop's back, and may not be there yet when it stops.
    run_ranks(resized, 2, stop_at=10)
    assert Store(f"{resized.run.storage}/resized/checkpoints").steps()[-1] in (4, 8)
    run(resized, stop_at=20)
    assert Store(f"{resized.run.storage}/resized/checkpoints").steps()[-1] in (12, 16)
    run_ranks(resized, 2)
    assert_equal(*({k: v for k, v in weights(x).items() if not is_average(k)} for x in (alone, resized)))
    artifacts = [load(f"{x.run.storage}/{x.name}/artifact")[0].state_dict() for x in (alone, resized)]
    for name in (k for k in artifacts[0] if "tracked" not in k):
        torch.testing.assert_close(artifacts[0][name], artifacts[1][name], rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_what_strong_recipes_draw_does_not_depend_on_ranks(tiny: Make) -> None:
    """Two steps alone and three on two ranks: five steps alone, bit for bit."""
    few = {"schedule.total": 5, "run.checkpoint_every": 2, "run.precise_bn": 0, "data.val_images": 4}
    alone, resized = tiny({**STRONG, **few, "name": "alone"}), tiny({**STRONG, **few, "name": "resized"})
    run(alone)
    run(resized, stop_at=2)
    run_ranks(resized, 2)
    assert_equal(*({k: v for k, v in weights(x).items() if not is_average(k)} for x in (alone, resized)))


@pytest.mark.slow
def test_ranks_with_unequal_shares_take_the_same_step(tiny: Make) -> None:
    """3 ranks, 4 micro-batches: dealt 1, 1, 2. Sums run in another order, so equal to rounding only."""
    options = {"optim.micro_batch": 4, "schedule.total": 3, "run.checkpoint_every": 0}
    elastic = {"scaling.num_workers": 3, "scaling.min_workers": 1}  # else shares must be equal
    alone, three = tiny({**options, "name": "alone"}), tiny({**options, **elastic, "name": "three"})
    run(alone)
    run_ranks(three, 3)
    a, b = weights(alone), weights(three)
    for name in (k for k in a if not is_average(k)):
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


def test_step_equals_a_bare_sgd_step(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against torch.optim written out: smoothing, clipping, accumulation, weight decay on convolutions alone.

    In double precision but for the loss: in single, whatever a kernel rounds to the other side of a ReLU moves whole
    gradients, on other processors others.
    """
    recipe = tiny(
        {
            "optim.decay": "conv",
            "optim.weight_decay": 0.1,
            "optim.label_smoothing": 0.1,
            "optim.clip": 0.5,
            "optim.micro_batch": 8,
            "schedule.kind": "constant",
            "run.checkpoint_every": 0,
            "schedule.total": 2,
            "run.log_every": 1,
        }
    )
    payload = prepare(recipe)
    recipe = payload.recipe
    source = [SyntheticSource(0, 160, 32, "train"), SyntheticSource(0, 50, 32, "val")]
    task = Classification(recipe, InputConvention(size=32, crop_pct=1.0), *source, ALONE)
    task.model.double()
    normalize = task._normalize
    monkeypatch.setattr(task, "_normalize", lambda *given: normalize(*given).double())
    reference = copy.deepcopy(task.model).train()
    engine.train(task, recipe, ALONE, Store(payload.url + "/checkpoints"), lambda record: None)

    convolutions = [m.weight for m in reference.modules() if isinstance(m, nn.Conv2d)]
    others = [p for p in reference.parameters() if all(p is not c for c in convolutions)]
    optimizer = torch.optim.SGD(
        [{"params": convolutions, "weight_decay": 0.1}, {"params": others}], lr=0.05, momentum=0.9
    )
    for step in range(2):
        for half in range(2):
            batch = task.train.batch(range(step * 16 + half * 8, step * 16 + half * 8 + 8))
            logits = reference.classify(task.inputs.normalize(batch["images"]).double()).float()
            (F.cross_entropy(logits, batch["labels"], label_smoothing=0.1) / 2).backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    for (name, mine), expected in zip(task.model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


def test_decay_groups(tiny: Make) -> None:
    task = Classification(
        tiny({"optim.micro_batch": 16}),
        InputConvention(size=32),
        SyntheticSource(0, 16, 32),
        SyntheticSource(1, 16, 32),
        ALONE,
    )
    counts = {}
    for decay in ("all", "conv", "no_norm_bias"):
        optim = tiny({"optim.decay": decay}).optim
        groups = engine.build_optimizer(task.model, optim).param_groups
        counts[decay] = [
            sum(p.numel() for g in groups if (g["weight_decay"] > 0) == on for p in g["params"]) for on in (True, False)
        ]
    norms = sum(p.numel() for m in task.model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    total = sum(p.numel() for p in task.model.parameters())
    fc = task.model.fc
    assert counts["all"] == [total, 0]
    assert counts["no_norm_bias"] == [total - norms - fc.bias.numel(), norms + fc.bias.numel()]
    assert counts["conv"] == [
        total - norms - fc.weight.numel() - fc.bias.numel(),
        norms + fc.weight.numel() + fc.bias.numel(),
    ]


def test_ema_is_the_closed_form(tiny: Make) -> None:
    recipe = tiny({"optim.ema": 0.2, "optim.micro_batch": 16})
    task = Classification(
        recipe, InputConvention(size=32), SyntheticSource(0, 64, 32), SyntheticSource(1, 16, 32), ALONE
    )
    trainer = engine.Trainer(task, recipe.optim, recipe.compute, 0, ALONE)
    meter = Meter(ALONE, 16)
    expected = task.model.fc.weight.detach().clone()
    micro_batches = MicroBatches(16, 16, 0, 1, 0, 4)
    batches = iter(task.batches(micro_batches))
    for step in range(4):
        trainer.step(batches, micro_batches, 0.1, step, meter)
        kept = [1 / 10, 2 / 11, 0.2, 0.2][step]
        expected = kept * expected + (1 - kept) * task.model.fc.weight.detach()
    torch.testing.assert_close(trainer.evaluated.fc.weight, expected)


def test_a_run_begun_on_a_gpu_goes_on_here(tiny: Make) -> None:
    """Its checkpoint says fused, which is the other device's way to take the same step."""
    recipe = tiny({"optim.micro_batch": 16})
    trainers = [
        engine.Trainer(
            Classification(recipe, CONVENTIONS["imagenet"], *SOURCES, ALONE), recipe.optim, recipe.compute, 0, ALONE
        )
        for _ in range(2)
    ]
    state = {**trainers[0].state(), "progress": engine.Progress(step=3).as_dict()}
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = True
    assert trainers[1].restore(state).step == 3
    assert [group["fused"] for group in trainers[1].optimizer.param_groups] == [None]


def test_images_kept_on_the_device_train_the_same_net(tiny: Make) -> None:
    """To the last bit, evaluations and exact batch statistics included; a run goes on with or without."""
    ordinary, resident = tiny({"name": "ordinary"}), tiny({"name": "resident", "data.resident": True})
    records = run(ordinary)
    run(tiny({"name": "resident"}), stop_at=13)
    again = run(resident)
    assert any("resuming at step 12" in r.get("text", "") for r in again)
    assert_equal(weights(ordinary), weights(resident))
    errors = [[r["val_error"] for r in found if r["kind"] == "evaluation"][-1] for found in (records, again)]
    assert errors[0] == errors[1]
    artifacts = [load(f"{x.run.storage}/{x.name}/artifact")[0].state_dict() for x in (ordinary, resident)]
    assert_equal(*artifacts)


class OneBroken(SyntheticSource):
    """Rendered scenes, of which number 7 cannot be read."""

    def image(self, i: int):
        if i == 7:
            raise BadImage("shard.tar:7.jpg: truncated")
        return super().image(i)


def test_broken_images_are_counted_and_bounded(tiny: Make) -> None:
    options = {"data.on_bad": "skip", "data.max_bad": 1, "optim.micro_batch": 16}
    recipe = tiny(options)
    task = Classification(recipe, InputConvention(size=32), OneBroken(0, 160, 32), SyntheticSource(1, 16, 32), ALONE)
    _, progress = engine.train(task, recipe, ALONE, Store(f"{recipe.run.storage}/a"), lambda record: None)
    assert list(progress.bad) == ["shard.tar:7.jpg: truncated"]
    recipe = tiny({**options, "data.max_bad": 0})
    task = Classification(recipe, InputConvention(size=32), OneBroken(0, 160, 32), SyntheticSource(1, 16, 32), ALONE)
    with pytest.raises(UserError, match=r"shard.tar:7.jpg"):
        engine.train(task, recipe, ALONE, Store(f"{recipe.run.storage}/b"), lambda record: None)


def test_a_loss_that_is_not_finite_names_step_and_sample(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample turns to NaN on its way to the device. Group norm keeps it to itself; batch norm would spread it."""
    recipe = tiny({"optim.micro_batch": 8, "model.norm": "group"})
    sources = SyntheticSource(0, 160, 32), SyntheticSource(1, 16, 32)
    task = Classification(recipe, InputConvention(size=32), *sources, ALONE)
    position = 9 * 16 + 11  # step 9, in its second micro-batch
    batches = task.batches

    def poisoned(micro_batches: MicroBatches) -> Iterator[dict]:
        for batch in batches(micro_batches):
            if batch["position"] <= position < batch["position"] + 8:
                batch["shift"][position - batch["position"]] = float("nan")
            yield batch

    monkeypatch.setattr(task, "batches", poisoned)
    monkeypatch.setattr(task, "_shifts", True)
    store = Store(f"{recipe.run.storage}/nan")
    name = re.escape(task.train_source.name(task.train.stream[position][1]))
    with pytest.raises(FloatingPointError, match=rf"step 9, sample {name} \(position {position}\)"):
        engine.train(task, recipe, ALONE, store, lambda record: None)
    assert store.steps()[-1] == 8  # nothing broken was saved
