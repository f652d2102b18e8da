"""Nets with shapes and no memory, to count on, to compare with and to load into."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FILLING = {Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_}
"""What initialisation draws by; those of `nn.init` are named that torch lets modes see whole."""


class _Unfilled(TorchFunctionMode):
    """Draws nothing. On tensors without memory torch would import its compiler for it, which takes two seconds."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func in FILLING:
            tensor: Tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **(kwargs or {}))


@contextmanager
def on_meta() -> Generator[None]:
    """Within, nets are built on torch's meta device, and draw no random weights."""
    with torch.device("meta"), _Unfilled():
        yield
