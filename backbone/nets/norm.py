"""Normalisation layers."""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from backbone.errors import UserError
from backbone.options import NetOptions, norm_groups


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics cover `group` consecutive samples instead of the whole device batch.

    A device batch of 256 in groups of 32 is trained as the paper's 8 GPUs with 32 images each. Keys, and results in
    evaluation, are those of `nn.BatchNorm2d`.
    """

    def __init__(self, channels: int, group: int) -> None:
        super().__init__(channels)
        self.group = group

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [N, C, H, W].

        Raises:
            UserError: in training, `group` does not divide N.
        """
        if not self.training:
            return super().forward(input)
        if len(input) % self.group:
            raise UserError(
                f"bn_group {self.group} does not divide a device batch of {len(input)}; "
                "choose a device batch that is a multiple of bn_group, or bn_group 0"
            )
        if len(input) == self.group:
            return super().forward(input)  # without the copy that joining parts makes
        chunks = input.split(self.group)
        tracked = cast(Tensor, self.num_batches_tracked).add_(1)
        if self.momentum is None:  # the plain average of all that was seen, as in nn.BatchNorm2d
            seen = (int(tracked) - 1) * len(chunks)
            momenta = [1 / (seen + i) for i in range(1, len(chunks) + 1)]
        else:
            # len(chunks) updates with m' forget as much of the past as one with m: (1 - m')^chunks = 1 - m.
            momenta = [1 - (1 - self.momentum) ** (1 / len(chunks))] * len(chunks)
        return torch.cat(
            [
                batch_norm(chunk, self.running_mean, self.running_var, self.weight, self.bias, True, m, self.eps)
                for chunk, m in zip(chunks, momenta, strict=True)
            ]
        )


def make_norm(options: NetOptions) -> Callable[[int], nn.Module]:
    """Return what makes the norm layer of a number of channels."""
    match options.norm:
        case "batch" if options.bn_group:
            return partial(GroupedBatchNorm2d, group=options.bn_group)
        case "batch":
            return nn.BatchNorm2d
        case "sync":
            return nn.SyncBatchNorm
        case "frozen":
            from torchvision.ops import FrozenBatchNorm2d  # takes seconds, so nobody else pays for it

            return FrozenBatchNorm2d
        case "group":
            return lambda channels: nn.GroupNorm(norm_groups(channels), channels)
        case "none":
            return lambda channels: nn.Identity()
