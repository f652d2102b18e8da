"""RoIAlign, forward and going back, against torchvision's own kernels."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from detection.nets import align
from tests.conftest import ROOT


def regions(count: int, side: float) -> Tensor:
    """Boxes of images 0 and 1: some within the image, some beyond each of its sides, one without area."""
    draw = torch.Generator().manual_seed(1)
    corners = torch.rand(count, 2, 2, generator=draw).mul(2 * side).sub(side / 2).sort(1).values.flatten(1)
    corners[0] = torch.tensor([side / 2, side / 2, side / 2, side / 2])
    corners[1] = torch.tensor([-9 * side, 3 * side, -8 * side, 4 * side])  # sees nothing
    return torch.cat([torch.randint(0, 2, (count, 1), generator=draw).float(), corners], 1)


def both(maps: Tensor, rois: Tensor, size: int, scale: float) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(regions, gradient of the map) of torchvision's and of ours."""
    found = []
    every = [torch.arange(len(rois))]
    for cut in (
        lambda one: roi_align(one, rois, size, scale, align.SAMPLES),
        lambda one: align.pool([one], rois, every, size, [scale]),
    ):
        leaf = maps.clone().requires_grad_()
        pooled = cut(leaf)
        weights = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2))
        found.append((pooled, torch.autograd.grad((pooled * weights).sum(), leaf)[0]))
    return found[0], found[1]


@pytest.mark.parametrize(("size", "scale", "shape"), [(7, 0.25, (16, 24)), (14, 0.0625, (9, 5)), (1, 1.0, (1, 1))])
def test_the_gradient_is_torchvisions(size: int, scale: float, shape: tuple[int, int]) -> None:
    maps = torch.randn(2, 24, *shape, generator=torch.Generator().manual_seed(0))
    (wanted, theirs), (found, ours) = both(maps, regions(80, max(shape) / scale), size, scale)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert theirs.abs().max() > 1


def test_in_pieces_and_by_torchvisions_kernel_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, rois = torch.randn(2, 8, 20, 20, generator=torch.Generator().manual_seed(0)), regions(50, 80)
    _, whole = both(maps, rois, 7, 0.25)
    monkeypatch.setattr(align, "AT_ONCE", 7 * 7 * 8 * 3)
    _, pieces = both(maps, rois, 7, 0.25)
    assert torch.equal(pieces[0], whole[0])
    torch.testing.assert_close(pieces[1], whole[1], rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(align, "has_products", lambda: False)  # as on ARM and on a GPU
    theirs, kernels = both(maps, rois, 7, 0.25)
    assert all(torch.equal(a, b) for a, b in zip(kernels, theirs, strict=True))


def test_threads_do_not_change_a_bit() -> None:
    maps, rois = torch.randn(2, 64, 40, 40, generator=torch.Generator().manual_seed(0)), regions(300, 160)
    found, before = [], torch.get_num_threads()
    for threads in (1, 2, 1, 2, before):
        torch.set_num_threads(threads)
        found.append(both(maps, rois, 7, 0.25)[1])
    assert all(torch.equal(a, b) for one in found for a, b in zip(one, found[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_gives_the_maps_dtype(dtype: torch.dtype) -> None:
    maps = torch.randn(2, 8, 20, 20, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    rois = regions(20, 80)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = align.pool([maps], rois, [torch.arange(20)], 7, [0.25])
        pooled.float().sum().backward()
    assert pooled.dtype == maps.dtype == maps.grad.dtype
    wide = maps.detach().float().requires_grad_()
    roi_align(wide, rois, 7, 0.25, align.SAMPLES).sum().backward()
    torch.testing.assert_close(maps.grad.float(), wide.grad, rtol=2e-2, atol=2e-2)


def test_float64_stays_float64() -> None:
    maps = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs, ours = both(maps, regions(20, 36).double(), 7, 0.25)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_no_region_and_one_that_is_no_number() -> None:
    maps = torch.randn(1, 4, 8, 8).requires_grad_()
    align.pool([maps], torch.empty(0, 5), [torch.empty(0, dtype=torch.int64)], 7, [0.25]).sum().backward()
    assert torch.equal(maps.grad, torch.zeros_like(maps))
    nan = torch.tensor([[0.0, float("nan"), 1.0, float("nan"), 20.0]])
    assert align.pool([maps], nan, [torch.tensor([0])], 7, [0.25]).shape == (1, 4, 7, 7)


SAYS = """
import resource, warnings
import torch
from detection.nets import align
warnings.simplefilter("error")
maps, count = torch.randn(1, 256, 40, 40), 2000
rois = torch.cat([torch.zeros(count, 1), torch.rand(count, 2) * 50, 60 + torch.rand(count, 2) * 50], 1)
with torch.autocast("cpu", torch.bfloat16):  # where fine-tuning first asks
    align.pool([maps], rois[:9], [torch.arange(9)], 14, [0.25])
assert align.has_products() == torch.backends.mkl.is_available()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pooled = align.pool([maps], rois, [torch.arange(count)], 14, [0.25])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / pooled.nbytes)
"""


def test_it_warns_of_nothing_and_takes_little_more_memory_than_its_result() -> None:
    done = subprocess.run([sys.executable, "-c", SAYS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not done.stderr
    assert float(done.stdout) < 2.2
