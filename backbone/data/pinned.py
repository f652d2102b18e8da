"""Page-locked host memory, from which a GPU copies beside its work; plain memory where the system refuses it.

Some containers and WSL do, and so does a machine that is short of memory. Copies then wait for the GPU; nothing else
changes, and a warning says so.
"""

import functools
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor


def empty_like(tensor: Tensor, wanted: bool) -> Tensor:
    """Host memory for a copy of `tensor`, strides alike; page-locked where that is `wanted` and granted."""
    if wanted:
        try:
            return torch.empty_like(tensor, device="cpu", pin_memory=True)
        except RuntimeError as error:
            _warn(error)
    return torch.empty_like(tensor, device="cpu")


def empty(shape: Sequence[int], dtype: torch.dtype, wanted: bool) -> Tensor:
    """Host memory of any values, likewise."""
    return empty_like(torch.empty(tuple(shape), dtype=dtype, device="meta"), wanted)


@functools.cache
def is_granted() -> bool:
    """Asked once: for those who cannot go on without, such as DataLoader's thread."""
    return empty((1,), torch.uint8, True).is_pinned()


def lock(tensor: Tensor, device: torch.device) -> bool:
    """Page-lock memory that is there already, such as shared memory, for a GPU. False where that is refused."""
    try:
        failure = torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0)
        if not int(failure):
            return True
        _warn(failure)
        # CUDA keeps the failure, and the next kernel would be blamed for it: this one is.
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        _warn(error)
    return False


def unlock(address: int) -> None:
    """Undo `lock`, before the memory is freed."""
    torch.cuda.cudart().cudaHostUnregister(address)


def _warn(error: object) -> None:
    reason = " ".join(str(error).split())[:200]
    warnings.warn(f"page-locked memory is refused, so copies wait for the GPU: {reason}", stacklevel=3)
