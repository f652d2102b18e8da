from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.nn.init import uniform_


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Nets this small wait for threads longer than they compute, on a loaded machine by far."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def shake() -> Callable[[nn.Module], None]:
    """Gives batch norms statistics and affine parameters that are all different, of about unit gain."""

    def shake(net: nn.Module) -> None:
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for key, low, high in (("weight", 0.2, 0.8), ("bias", -0.2, 0.2), ("running_mean", -0.2, 0.2)):
                    uniform_(module.state_dict()[key], low, high)
                uniform_(module.state_dict()["running_var"], 0.5, 1.5)

    return shake
