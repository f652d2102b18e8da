"""RoIAlign (arXiv:1703.06870) over the maps of a pyramid, or over one, with two samples a bin and axis, not `aligned`.

torchvision's CPU kernels go through it channel by channel. But a bin is a weighted mean of 16 cells, the same in all
channels, so that all of it is the product of a sparse matrix with the map, or, going back, with the bins' gradient:
the same sums but for rounding, going back several times as fast. On other devices, in float64 and in builds of torch
without MKL it is torchvision's.
"""

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchvision.ops import roi_align

SAMPLES = 2
CELLS = (2 * SAMPLES) ** 2
"""That a bin is made of: two of each sample, in each direction."""

AT_ONCE = 1 << 24
"""Values of regions that are laid out anew at once: 64 MB."""


def pool(maps: Sequence[Tensor], rois: Tensor, rows: Sequence[Tensor], size: int, scales: Sequence[float]) -> Tensor:
    """Cut regions out of maps.

    Args:
        maps: of one dtype, [N, C, H, W] each.
        rois: [R, 5]: image, then a box in input pixels.
        rows: for each map, which rows of `rois` are cut from it; each is in one of them.
        scales: of each map, as a share of the input's.

    Returns:
        [R, C, size, size], of the maps' dtype.
    """
    if maps[0].is_cpu and maps[0].dtype != torch.float64 and has_products():
        return _Product.apply(rois, tuple(rows), size, tuple(scales), *maps)
    pooled = maps[0].new_zeros((len(rois), maps[0].shape[1], size, size))
    for one, row, scale in zip(maps, rows, scales, strict=True):
        pooled[row] = roi_align(one, rois[row], (size, size), scale, SAMPLES).to(pooled.dtype)
    return pooled


@cache
def has_products() -> bool:
    """Whether this build of torch multiplies by sparse matrices: those with MKL do."""
    # "is in beta": said once a process, and nothing to a user who fine-tunes. Autocast would ask for products in bf16.
    with warnings.catch_warnings(), torch.autocast("cpu", enabled=False):
        warnings.simplefilter("ignore")
        one = torch.sparse_csr_tensor(torch.tensor([0, 1]).int(), torch.tensor([0]).int(), torch.ones(1), (1, 1))
        try:
            return bool(((one @ torch.ones(1, 1)) + torch.zeros(1, 1).addmm_(one.t(), torch.ones(1, 1))).item() == 2)
        except RuntimeError:
            return False


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rois: Tensor, rows: tuple[Tensor, ...], size: int, scales: tuple[float, ...], *maps: Tensor
    ) -> Tensor:
        ctx.save_for_backward(rois, *rows)
        ctx.scales, ctx.shapes = scales, [one.shape for one in maps]
        channels = maps[0].shape[1]
        pooled = maps[0].new_zeros((len(rois), channels, size, size))
        with torch.autocast("cpu", enabled=False):
            for one, row, scale in zip(maps, rows, scales, strict=True):
                cells = one.float().permute(0, 2, 3, 1).reshape(-1, channels)
                for some in row.split(_at_once(size, channels)):
                    bins = _weights(rois[some].float(), one.shape, size, scale) @ cells
                    pooled[some] = bins.view(len(some), size, size, channels).permute(0, 3, 1, 2).to(pooled.dtype)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rois, *rows = ctx.saved_tensors
        found: list[Tensor | None] = []
        with torch.autocast("cpu", enabled=False):
            for row, scale, shape, wanted in zip(rows, ctx.scales, ctx.shapes, ctx.needs_input_grad[4:], strict=True):
                found.append(_to_map(grad, rois, row, shape, scale) if wanted else None)
        return None, None, None, None, *found


def _to_map(grad: Tensor, rois: Tensor, row: Tensor, shape: torch.Size, scale: float) -> Tensor:
    """Gradient of all regions [R, C, size, size] -> that of the map of `shape` from which those of `row` were cut."""
    images, channels, height, width = shape
    size = grad.shape[-1]
    cells = torch.zeros(images * height * width, channels)
    for some in row.split(_at_once(size, channels)):
        bins = grad[some].float().permute(0, 2, 3, 1).reshape(-1, channels)
        cells.addmm_(_weights(rois[some].float(), shape, size, scale).t(), bins)
    return cells.view(images, height, width, channels).permute(0, 3, 1, 2).to(grad.dtype)


def _at_once(size: int, channels: int) -> int:
    return max(1, AT_ONCE // (size * size * channels))


def _weights(rois: Tensor, shape: torch.Size, size: int, scale: float) -> Tensor:
    """Sparse float32 [R size size, N H W]: how much of each cell is in a bin."""
    images, _, height, width = shape
    y, y_share = _samples(rois[:, 2], rois[:, 4], size, height, scale)
    x, x_share = _samples(rois[:, 1], rois[:, 3], size, width, scale)
    first = rois[:, 0].int().view(-1, 1, 1, 1, 1, 1, 1) * (height * width)
    # Of a bin: sample by sample, and of each its four cells, which is the order torchvision adds them in.
    cell = first + y[:, :, None, :, None, :, None] * width + x[:, None, :, None, :, None, :]
    share = y_share[:, :, None, :, None, :, None] * x_share[:, None, :, None, :, None, :]
    bins = len(rois) * size * size
    starts = torch.arange(0, bins * CELLS + 1, CELLS, dtype=torch.int32)
    means, of = share.flatten() / SAMPLES**2, (bins, images * height * width)
    return torch.sparse_csr_tensor(starts, cell.flatten(), means, of, check_invariants=False)


def _samples(low: Tensor, high: Tensor, size: int, cells: int, scale: float) -> tuple[Tensor, Tensor]:
    """Along one axis: the cells each sample lies between and how much of it is theirs, [R, size, SAMPLES, 2]."""
    start = low * scale
    bin_length = (high * scale - start).clamp(min=1) / size
    within = (torch.arange(SAMPLES) + 0.5) * bin_length[:, None] / SAMPLES
    at = start[:, None, None] + torch.arange(size)[:, None] * bin_length[:, None, None] + within[:, None]
    inside = (at >= -1) & (at <= cells)
    at = torch.where(inside, at, 0).clamp(0, cells - 1)  # not inside is also what is no number
    below = at.int()
    above = (below + 1).clamp(max=cells - 1)
    share = at - below
    return torch.stack([below, above], -1), torch.stack([1 - share, share], -1) * inside[..., None]
