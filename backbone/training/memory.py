"""Out of memory: a fault that a restart would only repeat, since every batch is a function of the step."""

import functools
import socket
from collections.abc import Callable
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
            try:
                return work(payload, world, report)
            except RuntimeError as error:
                told = " ".join(str(error).split())
                if not isinstance(error, torch.OutOfMemoryError) and not any(sign in told for sign in SIGNS):
                    raise
                raise UserError(
                    f"{socket.gethostname()} is out of memory on {world.device}: {cure(payload)} ({told[:300]})"
                ) from error

        return run

    return decorate


def smaller_micro_batch(optim: Optim) -> str:
    """What to type where a training step takes more memory than there is."""
    fits = next((m for m in range(optim.micro_batch // 2, 0, -1) if optim.batch % m == 0), None)
    now = f"optim.micro_batch {optim.micro_batch}"
    if fits is None:
        return f"{now} is the smallest; train smaller images or a smaller net, or on devices with more memory"
    return f"{now} is too much; a smaller one is another run: --name ANOTHER --optim.micro_batch {fits}"
