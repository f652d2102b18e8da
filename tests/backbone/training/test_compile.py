"""compute.compile: the same results, as one graph, and a compiler looked for first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from backbone.data.stream import MicroBatches
from backbone.errors import UserError
from backbone.training import engine
from backbone.training.compiling import Compiling, check_compiler
from backbone.training.meter import Meter
from backbone.training.pretrain import Classification
from backbone.training.recipe import Recipe
from backbone.training.world import World
from tests.backbone.training.test_engine import ALONE, CONVENTIONS, SOURCES, Make, assert_equal, run, weights


def test_a_compiled_run_agrees_and_resumes(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whole graph. Traced only: generating code would take a minute here."""
    modes, original = [], nn.Module.compile

    def traced(module: nn.Module, mode: str, dynamic: bool) -> None:
        modes.append(mode)
        original(module, backend="eager", fullgraph=True, dynamic=dynamic)

    monkeypatch.setattr(nn.Module, "compile", traced)
    options = {"optim.micro_batch": 8, "schedule.total": 4, "model.bn_group": 4, "run.checkpoint_every": 2}
    plain, compiled = tiny({**options, "name": "plain"}), tiny({**options, "compute.compile": "reduce-overhead"})
    run(plain)
    run(compiled, stop_at=4)
    assert any("resuming at step 2" in r.get("text", "") for r in run(compiled))
    assert modes == ["reduce-overhead"] * 2
    a, b = weights(plain), weights(compiled)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


def test_each_size_of_images_that_grow_is_compiled_as_it_is(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three sizes, three graphs of whole numbers, and the weights of the run that is not compiled."""
    graphs, original = list[torch.fx.GraphModule](), nn.Module.compile

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        assert all(isinstance(side, int) for one in inputs if isinstance(one, torch.Tensor) for side in one.shape)
        return graph

    def traced(module: nn.Module, mode: str, dynamic: bool) -> None:
        original(module, backend=backend, fullgraph=True, dynamic=dynamic)

    monkeypatch.setattr(nn.Module, "compile", traced)
    grows = {"data.progressive": {"from_size": 16, "start": 0, "end": 2, "step": 8}, "data.augment.kind": "modern"}
    options = {**grows, "data.train_images": 16, "schedule.total": 3, "run.checkpoint_every": 0, "run.precise_bn": 0}
    plain, compiled = tiny({**options, "name": "plain"}), tiny({**options, "compute.compile": "default"})
    run(plain)
    records = run(compiled)
    assert len(graphs) == 3
    said = [one["text"] for one in records if "compil" in one.get("text", "")]
    assert [text for text in said if text.startswith("compiling")] == [
        f"compiling the net {what} (compute.compile default), which may take minutes"
        for what in ("in the first step", "for images of 24 px in step 1", "for images of 32 px in step 2")
    ]
    assert len([text for text in said if text.startswith("compiled in ")]) == 3
    a, b = weights(plain), weights(compiled)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


def test_steps_that_compile_are_known_to_all_ranks(tiny: Make) -> None:
    """Epochs of 40 images, steps of 16 in micro-batches of 4. Those of step 2 begin at 32, 36, 40 and 44: of two ranks
    the second meets 24 px there, the first a step later, which the second waits for."""
    grows = {"data.progressive": {"from_size": 16, "end": 2, "step": 8}, "data.augment.kind": "modern"}
    recipe = tiny({**grows, "optim.micro_batch": 4, "compute.compile": "default"})

    def due(recipe: Recipe, size: int, start: int = 0) -> list[tuple[int, str]]:
        asked = Compiling(recipe, World(0, size, torch.device("cpu")), 40)
        said = [(step, asked.due(step)) for step in range(start, 12)]
        return [(step, text.removeprefix("compiling the net ").split(" (")[0]) for step, text in said if text]

    first = (0, "in the first step")
    assert due(recipe, 1) == [first, (2, "for images of 24 px in step 2"), (5, "for images of 32 px in step 5")]
    both = [(step, f"for images of {side} px in step {step}") for step, side in ((2, 24), (3, 24), (5, 32))]
    assert due(recipe, 2) == [first, *both]
    assert due(recipe, 1, 3) == [(3, "in the first step"), (5, "for images of 32 px in step 5")]
    plain = recipe.model_copy(update={"compute": recipe.compute.model_copy(update={"compile": "none"})})
    assert due(plain, 2) == []


def test_a_missing_compiler_is_named_before_training(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    recipe = tiny({"compute.compile": "default", "optim.micro_batch": 16})
    task = Classification(recipe, CONVENTIONS["imagenet"], *SOURCES, ALONE)
    with pytest.raises(UserError, match=r"apt-get install g\+\+.*CXX.*--compute.compile none"):
        engine.Trainer(task, recipe.optim, recipe.compute, 0, ALONE)
    monkeypatch.setenv("CXX", "/opt/bin/g++")
    check_compiler(ALONE)


@pytest.mark.parametrize("normalize", ["imagenet", "pixel"])
def test_a_compiled_step_reads_the_device_alone(tiny: Make, normalize: str) -> None:
    """What is made on the host within a step keeps it from being a CUDA graph: constants are inputs, not copies."""
    recipe = tiny({"data.normalize": normalize, "optim.micro_batch": 16})
    task = Classification(recipe, CONVENTIONS[normalize], *SOURCES, ALONE)
    trainer = engine.Trainer(task, recipe.optim, recipe.compute, 0, ALONE)
    operations: list[Any] = []

    def look(graph: torch.fx.GraphModule, _example: list) -> Callable:
        operations.extend(node.target if node.op != "get_attr" else "constant" for node in graph.graph.nodes)
        return graph.forward

    trainer.module.compile(backend=look, fullgraph=True)
    batch = next(iter(task.batches(MicroBatches(16, 16, 0, 1, 0, 1))))
    trainer.module({k: v for k, v in batch.items() if isinstance(v, torch.Tensor)})
    assert len(operations) > 50
    assert not {torch.tensor, torch.as_tensor, "to", "constant"} & set(operations)


def test_gradients_in_memory_of_their_own_add_up_alike(tiny: Make) -> None:
    """CUDA graphs overwrite theirs. What is done about it is tried without them, bit for bit."""
    recipe = tiny({"optim.micro_batch": 4, "optim.clip": 1.0})
    found = []
    for keeps in (False, True):
        task = Classification(recipe, CONVENTIONS["imagenet"], *SOURCES, ALONE)
        trainer = engine.Trainer(task, recipe.optim, recipe.compute, 0, ALONE)
        trainer.keeps_gradients = trainer.graphs = keeps
        micro_batches = MicroBatches(16, 4, 0, 1, 0, 3)
        batches, meter = iter(task.batches(micro_batches)), Meter(ALONE, 16)
        for parameter in task.model.parameters() if keeps else ():
            parameter.grad = torch.zeros_like(parameter)
        for step in range(3):
            trainer.step(batches, micro_batches, 0.1, step, meter)
        found.append(dict(task.model.state_dict()))
        assert all((p.grad is not None and not p.grad.any()) == keeps for p in task.model.parameters())
    assert_equal(*found)
