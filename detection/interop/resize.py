"""`detection.data.augment.evaluation_view` in tensor operations that ONNX has: OpenCV's resizing, to the last bit.

OpenCV averages where an image shrinks (INTER_AREA), and else interpolates with weights of 11 bits (INTER_LINEAR), along
one axis after the other. How it rounds shows: a grey level more or less in a few pixels moves scores by 1e-4. Hence the
same sums in the same order, in float32 or whole numbers.

Sides are float64 tensors of one dimension: those of none the exporter takes for Python's numbers, and makes float32 of.
"""

import torch
from torch import Tensor

SLIVER = 1e-3  # of a pixel: OpenCV leaves out what sticks out less
COEFFICIENTS = 2048  # OpenCV's INTER_RESIZE_COEF_SCALE


def target_size(sides: Tensor, shorter: int, longer: int) -> Tensor:
    """Height and width, float64 [2], of an image of int64 `sides` [2]: see `detection.data.augment.target_size`."""
    exact = sides.double()
    # Not `shorter / side`, which torch computes as a product with a reciprocal, and rounds twice.
    wanted = torch.tensor([shorter, longer], dtype=torch.float64)
    scale = (wanted / torch.stack([exact.min(), exact.max()])).amin(0, keepdim=True)
    return torch.floor(exact * scale).clamp(min=1)


def resize(image: Tensor, target: Tensor) -> Tensor:
    """Image uint8 [H, W, 3] -> float32 [h, w, 3] of whole numbers, with h and w the float64 `target` [2]."""
    before = torch._shape_as_tensor(image)[:2].double()
    pixels = image.float()
    shrinks = (target < before).any()
    return torch.where(shrinks, _averaged(pixels, before, target), _interpolated(pixels, before, target))


def _averaged(pixels: Tensor, before: Tensor, target: Tensor) -> Tensor:
    """INTER_AREA, columns first. Where cells are whole pixels they are added up and divided once, and of two by two the
    middle between two grey levels is rounded up, else to even."""
    scale = 1 / (target / before)
    whole = (scale == torch.round(scale)).all()
    rows = _area(pixels.transpose(0, 1), before[1:], target[1:], whole).transpose(0, 1)
    rows = _area(rows, before[:1], target[:1], whole)
    one = torch.ones_like(scale[:1])
    rows = rows * torch.where(whole, one / (scale[:1] * scale[1:]), one).float()
    by_two = (scale == 2).all()
    return torch.where(by_two, torch.floor(rows + 0.5), torch.round(rows)).clamp(0, 255)


def _area(pixels: Tensor, before: Tensor, after: Tensor, added: Tensor) -> Tensor:
    """Means over cells along the first axis, or sums where `added`: float32 [n, ...] -> [m, ...], n and m float64 [1].

    A cell is the last part of a pixel, some whole ones, and the first part of another.
    """
    scale = 1 / (after / before)
    begin = _count(after) * scale
    end = begin + scale
    cell = torch.minimum(scale, before - begin)
    last = torch.minimum(torch.floor(end), before - 1)
    first = torch.minimum(torch.ceil(begin), last)
    one, nothing = torch.ones_like(cell), torch.zeros_like(cell)
    ahead, behind = first - begin, torch.minimum(torch.minimum(end - last, one), cell)
    ahead = torch.where(ahead > SLIVER, ahead / cell, nothing).float()
    # Of the last cell of whole pixels the last pixel is one that its end cuts off: `end` lies beyond it.
    behind = torch.where(end - last > SLIVER, behind / cell, nothing)
    behind = torch.where(added & (behind > 0), one, behind).float()
    inner = torch.where(added, one, 1 / cell).float()
    start = torch.where(ahead > 0, first - 1, first)
    taps = torch.ceil(scale).long()[0] + 2
    return _summed(pixels, start.long(), first.long(), last.long(), ahead, inner, behind, taps)


@torch.jit.script_if_tracing
def _summed(
    pixels: Tensor,
    start: Tensor,
    first: Tensor,
    last: Tensor,
    ahead: Tensor,
    inner: Tensor,
    behind: Tensor,
    taps: Tensor,
) -> Tensor:
    """Pixels from `start` on, `taps` of them, one after the other times what their place says; a loop in ONNX."""
    total = torch.index_select(pixels, 0, start) * 0.0
    nothing = torch.zeros_like(ahead)
    for k in range(int(taps)):
        at = start + k
        beyond = torch.where(at == last, behind, nothing)
        weight = torch.where(at < first, ahead, torch.where(at < last, inner, beyond))
        total = total + torch.index_select(pixels, 0, torch.minimum(at, last)) * weight.view(-1, 1, 1)
    return total


def _interpolated(pixels: Tensor, before: Tensor, target: Tensor) -> Tensor:
    """INTER_LINEAR, in whole numbers as OpenCV: products of 11 bits each way, cut off by 4 and by 16 bits."""
    # Beyond the first and last columns the weights are those of one pixel; beyond rows the pixel is taken twice.
    left, right, low, high = _taps(before[1:], target[1:], beyond=False)
    wide = pixels[:, left].double() * low.view(1, -1, 1) + pixels[:, right].double() * high.view(1, -1, 1)
    wide = torch.floor(wide / 16)
    top, bottom, low, high = _taps(before[:1], target[:1], beyond=True)
    upper = torch.floor(wide[top] * low.view(-1, 1, 1) / 65536)
    lower = torch.floor(wide[bottom] * high.view(-1, 1, 1) / 65536)
    return torch.floor((upper + lower + 2) / 4).clamp(0, 255).float()


def _count(after: Tensor) -> Tensor:
    """0, 1, ... below `after` [1], float64."""
    return torch.arange(after.long()[0], dtype=torch.float64)  # ty: ignore[no-matching-overload]


def _taps(before: Tensor, after: Tensor, beyond: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each pixel of the result the two it lies between, int64, and their weights times 2048, float64."""
    scale = 1 / (after / before)
    at = ((_count(after) + 0.5) * scale - 0.5).float()
    first, end = torch.floor(at), before.float() - 1
    part = at - first
    if not beyond:
        part = torch.where((first >= 0) & (first < end), part, torch.zeros_like(part))
    low, high = torch.round((1 - part) * COEFFICIENTS).double(), torch.round(part * COEFFICIENTS).double()
    second = torch.minimum((first + 1).clamp(min=0), end).long()
    return torch.minimum(first.clamp(min=0), end).long(), second, low, high
