"""Out of memory: a fault that a restart would only repeat, since every batch is a function of the step."""

import functools
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from backbone.errors import UserError
from backbone.training.recipe import Optim
from backbone.training.world import Report, World

P = TypeVar("P")
Work = Callable[[P, World, Report], dict[str, Any]]

SIGNS = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""How CUDA, torch on a CPU, cuBLAS and cuDNN say it where they have no error of their own for it."""


def out_of_memory_is_final(cure: Callable[[P], str]) -> Callable[[Work[P]], Work[P]]:
    """Decorates what workers run: where memory does not suffice, a UserError, which ends the job, with `cure`."""

    def decorate(work: Work[P]) -> Work[P]:
        @functools.wraps(work)
        def run(payload: P, world: World, report: Report) -> dict[str, Any]:
            with cured(lambda: cure(payload), world.device):
                return work(payload, world, report)

        return run

    return decorate


@contextmanager
def cured(cure: Callable[[], str], device: torch.device) -> Generator[None]:
    """UserError with the `cure` where what runs in it takes more memory than there is. The innermost one speaks."""
    try:
        yield
    except RuntimeError as error:
        told = " ".join(str(error).split())
        if not isinstance(error, torch.OutOfMemoryError) and not any(sign in told for sign in SIGNS):
            raise
        raise UserError(f"{socket.gethostname()} is out of memory on {device}: {cure()} ({told[:300]})") from error


def smaller_eval_batch(images: int) -> str:
    """What to type where judging `images` at once takes more memory than there is; the run stays the same."""
    if images == 1:
        return "eval_batch 1 is the smallest; judge smaller images, or on devices with more memory"
    return f"eval_batch {images} is too much; the same run with less: --eval_batch {images // 2}"


def smaller_micro_batch(optim: Optim) -> str:
    """What to type where a training step takes more memory than there is."""
    fits = next((m for m in range(optim.micro_batch // 2, 0, -1) if optim.batch % m == 0), None)
    now = f"optim.micro_batch {optim.micro_batch}"
    if fits is None:
        return f"{now} is the smallest; train smaller images or a smaller net, or on devices with more memory"
    return f"{now} is too much; a smaller one is another run: --name ANOTHER --optim.micro_batch {fits}"
