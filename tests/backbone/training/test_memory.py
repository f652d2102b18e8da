"""Out of memory ends a run, and says what to type."""

from collections.abc import Callable

import pytest
import torch

from backbone.errors import UserError
from backbone.training.memory import out_of_memory_is_final, smaller_micro_batch
from backbone.training.pretrain import Classification, prepare, pretrain
from backbone.training.recipe import Optim, Recipe
from backbone.training.world import World

ALONE = World(0, 1, torch.device("cpu"))
MORE_THAN_ADDRESSES = 2**55  # bytes: refused by every allocator, at once


def test_a_step_that_does_not_fit_is_final(tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a real allocation, on the CPU."""
    loss = Classification.loss

    def too_large(task: Classification, batch: dict) -> tuple:
        torch.empty(MORE_THAN_ADDRESSES, dtype=torch.uint8)
        return loss(task, batch)

    monkeypatch.setattr(Classification, "loss", too_large)
    told = "micro_batch 16 is too much; a smaller one is another run: --name ANOTHER --optim.micro_batch 8"
    with pytest.raises(UserError, match=rf"out of memory on cpu: optim.{told} \(.*alloc"):
        pretrain(prepare(tiny()), ALONE, lambda record: None)


def test_other_errors_stay_what_they_are() -> None:
    """They may pass, so that restarting helps."""

    @out_of_memory_is_final(str)
    def work(error: Exception, world: World, report: Callable) -> dict:
        raise error

    for passing in (RuntimeError("NCCL timed out"), OSError("out of memory is no matter of disks")):
        with pytest.raises(type(passing), match=str(passing)):
            work(passing, ALONE, print)
    for final in (torch.OutOfMemoryError("tried to allocate 2 GiB"), RuntimeError("CUDA error: out of memory")):
        with pytest.raises(UserError, match=str(final)):
            work(final, ALONE, print)


@pytest.mark.parametrize(("batch", "unit", "smaller"), [(256, 32, "16"), (100, 25, "10"), (6, 3, "1"), (7, 7, "1")])
def test_the_smaller_micro_batch_divides_the_batch(batch: int, unit: int, smaller: str) -> None:
    assert smaller_micro_batch(Optim(batch=batch, micro_batch=unit)).endswith(f"--optim.micro_batch {smaller}")


def test_a_micro_batch_of_one_has_no_smaller() -> None:
    assert "--optim" not in smaller_micro_batch(Optim(batch=4, micro_batch=1))


def test_what_comes_after_pretraining_finds_cudnn_as_it_was(tiny: Callable[..., Recipe]) -> None:
    """Trying out algorithms would cost a detector, whose shapes change with every image."""
    seen = []
    payload = prepare(tiny({"schedule.total": 1, "run.precise_bn": 0}))
    pretrain(payload, ALONE, lambda record: seen.append(torch.backends.cudnn.benchmark))
    assert set(seen) == {True}
    assert not torch.backends.cudnn.benchmark
