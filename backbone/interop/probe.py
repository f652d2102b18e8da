"""The same image through both sides of a conversion."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from backbone.errors import UserError
from backbone.inputs import InputConvention
from backbone.interop.common import Answer
from backbone.nets import Backbone, build
from backbone.nets.meta import on_meta
from backbone.noise import NOISE_FACTOR, noise
from backbone.options import NetOptions

# Of the largest value of a map, fp32 on CPU. Other orders of the same sums differ by some 1e-6 in shallow nets; where
# they differ by more, what the net's own noise explains is allowed, 1e-5 and more in trained nets of 50 layers and up.
# A wrong stride, channel order, range, mean or std makes 1e-2 and far more, so noise explains no more than the limit.
TOLERANCE = 1e-5
LIMIT = 1e-3
STRIDES = "stride_in_1x1 (detectron2 STRIDE_IN_1X1, mmdetection style, transformers downsample_in_bottleneck)"


@dataclass(frozen=True)
class Agreement:
    """How far apart two sides are in one stage's map or in the logits."""

    side: str
    """Who answered."""
    stage: str
    largest: float
    """Largest absolute difference."""
    relative: float
    """The same, of our largest absolute value."""


def images(net: Backbone) -> Tensor:
    """Two images of noise, the second dark and tinted, uint8 RGB [2, 3, H, W] of different sides."""
    # VGG's head sees 7x7 cells in torchvision and timm alike only at the size that it was made for.
    height, width = (224, 224) if net.options.net == "vgg" else (64, 96)
    generator = torch.Generator().manual_seed(385)
    noise = torch.randint(0, 256, (1, 3, height, width), generator=generator, dtype=torch.uint8)
    return torch.cat([noise, noise // 2 + torch.tensor([0, 60, 120], dtype=torch.uint8).view(1, 3, 1, 1)])


@torch.no_grad()
def ours(net: Backbone, inputs: InputConvention, of: Tensor) -> dict[str, Tensor]:
    """What our net makes of `images`, mean image left out."""
    x = replace(inputs, mean_image=None).normalize(of)
    return {**net(x), "logits": net.classify(x)}


def agree(net: Backbone, inputs: InputConvention, answer: Answer, side: str) -> list[Agreement]:
    """How far `side` is from our net in each map that it gives.

    Raises:
        UserError: further than the noise of fp32 explains; says where first, and why if one known mistake explains it.
    """
    given = images(net)
    theirs, mine = answer(given), ours(net, inputs, given)
    found = _differences(mine, theirs, side)
    missing = [stage for stage in net.stages if stage not in theirs]
    if missing:
        raise UserError(f"{side} gives no {', '.join(missing)}")
    if all(row.relative <= TOLERANCE for row in found):
        return found
    allowed = _allowed(net, inputs, given, mine)
    wrong = [row for row in found if not row.relative <= allowed[row.stage]]
    if wrong:
        first = wrong[0]
        raise UserError(
            f"{side} does not compute the same: {first.stage} is {first.relative:.2g} of its largest value off, "
            f"{allowed[first.stage]:.2g} allowed; {_cause(net, inputs, given, theirs, allowed)}"
        )
    return found


def table(rows: list[Agreement]) -> str:
    """One line a side and stage."""
    lines = [f"{'same image through':28s} {'stage':7s} {'largest difference':>18s} {'of the largest':>15s}"]
    return "\n".join(lines + [f"{r.side:28s} {r.stage:7s} {r.largest:18.2e} {r.relative:15.1e}" for r in rows])


def _differences(mine: dict[str, Tensor], theirs: dict[str, Tensor], side: str) -> list[Agreement]:
    rows = []
    for stage, value in mine.items():
        if stage in theirs:
            same = value.shape == theirs[stage].shape
            largest = (value - theirs[stage]).abs().max().item() if same else float("inf")
            rows.append(Agreement(side, stage, largest, largest / max(value.abs().max().item(), 1e-12)))
    return rows


def _allowed(net: Backbone, inputs: InputConvention, given: Tensor, mine: dict[str, Tensor]) -> dict[str, float]:
    """How far each map may be off, of its largest value."""
    close = noise(net, replace(inputs, mean_image=None), given)
    largest = {stage: max(value.abs().max().item(), 1e-12) for stage, value in mine.items()}
    return {stage: min(max(TOLERANCE, NOISE_FACTOR * close[stage] / largest[stage]), LIMIT) for stage in mine}


def _cause(
    net: Backbone, inputs: InputConvention, given: Tensor, theirs: dict[str, Tensor], allowed: dict[str, float]
) -> str:
    """The one mistake that explains an answer, if there is one."""
    other_order = "RGB" if inputs.channel_order == "BGR" else "BGR"

    own = net.options if isinstance(net.options, NetOptions) else None

    def restrided() -> dict[str, Tensor]:
        assert own
        options = own.model_copy(update={"stride_in_1x1": not own.stride_in_1x1})
        with on_meta():
            twin = build(options, net.num_classes)
        twin.load_state_dict(net.state_dict(), assign=True)
        return ours(twin.eval(), inputs, given)

    swapped: dict[str, Any] = {"channel_order": other_order}
    turned: dict[str, Any] = {"mean": inputs.mean[::-1], "std": inputs.std[::-1]}
    tries: list[tuple[str, Callable[[], dict[str, Tensor]]]] = [
        ("its channels are swapped: look at the channel order", partial(ours, net, replace(inputs, **change), given))
        for change in (swapped, swapped | turned)
    ]
    tries.append(
        (
            "its mean and std lie in the other order of channels than its pixels",
            partial(ours, net, replace(inputs, **turned), given),
        )
    )
    if own and own.net == "resnet" and own.depth >= 50:
        tries.append(("its stride lies in the other convolution: look at " + STRIDES, restrided))
    for cause, attempt in tries:
        if all(row.relative <= allowed[row.stage] for row in _differences(attempt(), theirs, "")):
            return cause
    return "look at mean, std, the range of pixels (0..1 or 0..255) and at the weights"
