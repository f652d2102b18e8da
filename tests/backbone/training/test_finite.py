"""Nothing broken is saved: losses, gradients and weights of a run that diverges."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from backbone.training.optimizer import build_optimizer
from backbone.training.pretrain import Classification, open_data, prepare, pretrain
from backbone.training.recipe import Optim, Recipe
from backbone.training.run import run_url
from backbone.training.state import Store
from backbone.training.world import World

ALONE = World(0, 1, torch.device("cpu"))
Make = Callable[..., Recipe]


@pytest.mark.parametrize("rate", [1e30, 1e12, 1e4])
def test_a_diverging_run_leaves_only_weights_whose_own_loss_is_finite(tiny: Make, rate: float) -> None:
    recipe = tiny({"optim.lr": rate, "run.checkpoint_every": 1, "run.log_every": 4, "run.keep": 30})
    payload = prepare(recipe)
    with pytest.raises(
        FloatingPointError, match=r"not finite .*step \d+.*; the newest checkpoint is from before; lower"
    ):
        pretrain(payload, ALONE, lambda record: None)
    store = Store(f"{run_url(recipe)}/checkpoints")
    task = Classification(payload.recipe, payload.inputs, *open_data(recipe.data, recipe.seed), ALONE)
    batch = task.train.batch(range(16))
    for step in store.steps():
        task.model.load_state_dict(store.load(step)["model"])
        with torch.no_grad():
            losses, _ = task.loss({k: v for k, v in batch.items() if isinstance(v, torch.Tensor)})
        assert losses.isfinite().all(), f"checkpoint of step {step}"


def test_a_run_that_does_not_diverge_saves_every_checkpoint(tiny: Make) -> None:
    recipe = tiny({"schedule.total": 6, "run.checkpoint_every": 1, "run.keep": 30, "run.precise_bn": 0})
    pretrain(prepare(recipe), ALONE, lambda record: None)
    assert Store(f"{run_url(recipe)}/checkpoints").steps() == [1, 2, 3, 4, 5, 6]


def test_the_gradients_norm_is_logged(tiny: Make) -> None:
    """Of the first step, against autograd by hand."""
    recipe = tiny({"schedule.total": 1, "run.log_every": 1, "optim.micro_batch": 4, "run.precise_bn": 0})
    records: list[dict[str, Any]] = []
    payload = prepare(recipe)
    task = Classification(payload.recipe, payload.inputs, *open_data(recipe.data, recipe.seed), ALONE)
    task.model.train()
    for first in range(0, 16, 4):  # batch statistics are of a micro-batch
        batch = task.train.batch(range(first, first + 4))
        losses, _ = task.loss({k: v for k, v in batch.items() if isinstance(v, torch.Tensor)})
        (losses.sum() / 16).backward()
    expected = math.sqrt(sum(p.grad.double().square().sum().item() for p in task.model.parameters()))
    pretrain(payload, ALONE, records.append)
    logged = next(record for record in records if record["kind"] == "log")
    assert logged["grad_norm"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_first_step_leaves_momentum_zero(fused: bool) -> None:
    """The loss scaler's first overflow: the fused kernel returns at once, from memory it was given."""
    torch.manual_seed(0)
    net = nn.Linear(512, 512)
    optimizer = build_optimizer(net, Optim(momentum=0.9))
    plain = torch.optim.SGD(copy.deepcopy(net).parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for group in optimizer.param_groups:
        group["fused"], group["lr"] = fused, 0.1
    net(torch.randn(4, 512)).square().sum().backward()
    before = net.weight.detach().clone()
    if fused:
        optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.ones(())
        optimizer.step()
        assert torch.equal(net.weight, before)
        del optimizer.grad_scale, optimizer.found_inf
    assert all(not state["momentum_buffer"].any() for state in optimizer.state.values())
    for ours, theirs in zip(net.parameters(), plain.param_groups[0]["params"], strict=True):
        theirs.grad = ours.grad.clone()
    optimizer.step()
    plain.step()
    for ours, theirs in zip(net.parameters(), plain.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(
            optimizer.state[ours]["momentum_buffer"], plain.state[theirs]["momentum_buffer"], rtol=1e-6, atol=1e-7
        )
