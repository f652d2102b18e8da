"""Page-locked memory is wished for, never needed."""

import pytest
import torch

from backbone.data import pinned
from backbone.data.slots import Ring

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which grants it")
REFUSED = "page-locked memory is refused, so copies wait for the GPU: "


@no_gpu
def test_memory_is_given_where_locking_it_is_refused() -> None:
    with pytest.warns(UserWarning, match=REFUSED):
        found = pinned.empty((3, 4), torch.uint8, True)
    assert (found.shape, found.dtype, found.device.type, found.is_pinned()) == ((3, 4), torch.uint8, "cpu", False)
    like = torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    with pytest.warns(UserWarning, match=REFUSED):
        copied = pinned.empty_like(like, True)
    assert copied.stride() == like.stride()


@no_gpu
def test_a_ring_for_a_gpu_goes_on_unlocked() -> None:
    """A driver that says no, as here where there is none, costs speed and not the run."""
    with pytest.warns(UserWarning, match=REFUSED):
        ring = Ring(1, 2, (3, 8, 8), torch.device("cuda"))
    ring.images[:] = 7
    assert ring.images.shape[1:] == (2, 3, 8, 8)


def test_nothing_is_said_where_it_is_not_wanted(recwarn: pytest.WarningsRecorder) -> None:
    assert not pinned.empty((2,), torch.int64, False).is_pinned()
    Ring(1, 2, (3, 8, 8), torch.device("cpu"))
    assert not [one for one in recwarn if "page-locked" in str(one.message)]
