"""Counts what would make Python wait for a GPU in a step, on a CPU."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
WAITS = (
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
    aten.equal.default,
    torch.ops.torchvision.nms.default,
)
READS = (Tensor.tolist, Tensor.numpy, Tensor.cpu)


class Waits(TorchDispatchMode):
    """Counts what makes Python wait for a GPU, were the tensors there: results whose size lies on it, and reading."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func in (aten.index.Tensor, aten.index_put_.default) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if func in WAITS or by_mask:
            self.found.append(func)
        return func(*args, **(kwargs or {}))


class Reads(TorchFunctionMode):
    """Counts the reading that is not dispatched."""

    def __init__(self, found: list[Any]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            self.found.append(func)
        return func(*args, **(kwargs or {}))


def waits(step: Any) -> int:
    """Of the second of two steps: torchvision's finds out the strides in its first."""
    step()
    with Waits() as counted, Reads(counted.found):
        step()
    return len(counted.found)
