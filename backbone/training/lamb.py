"""LAMB, by the maths of timm's `Lamb` (NVIDIA's variant): Adam's direction, as long as the weights it moves."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

EPS = 1e-6  # timm's; Adam's is 1e-8


class Lamb(torch.optim.Optimizer):
    """Layer-wise adaptive moments (You et al., arXiv:1904.00962, algorithm 2), without a bound on the trust ratio.

    Of a group without weight decay (norms and biases, as a rule) no step is scaled, as in timm. The gradient is not
    clipped here, as timm's is at a norm of 1: `optim.clip` does that for every optimizer.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float = EPS
    ) -> None:
        """`groups` each with `params` and `weight_decay`."""
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "step": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # ty: ignore[incompatible-method-override]
        """One step. `closure` is not called."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            group["step"] += 1
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight] = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
            steps = self._directions(group, weights)
            if group["weight_decay"]:
                torch._foreach_add_(steps, weights, alpha=group["weight_decay"])
                lengths = zip(torch._foreach_norm(weights), torch._foreach_norm(steps), strict=True)
                torch._foreach_mul_(steps, [trust_ratio(weight, step) for weight, step in lengths])
            torch._foreach_add_(weights, steps, alpha=-group["lr"])

    def _directions(self, group: dict[str, Any], weights: list[Tensor]) -> list[Tensor]:
        """Adam's, with both averages freed of their start at zero."""
        gradients = [weight.grad for weight in weights if weight.grad is not None]  # all of them have
        first, second = ([self.state[weight][name] for weight in weights] for name in ("exp_avg", "exp_avg_sq"))
        kept, kept_square = group["betas"]
        torch._foreach_lerp_(first, gradients, 1 - kept)
        torch._foreach_mul_(second, kept_square)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - kept_square)
        spreads = torch._foreach_sqrt(second)
        torch._foreach_div_(spreads, math.sqrt(1 - kept_square ** group["step"]))
        torch._foreach_add_(spreads, group["eps"])
        steps = torch._foreach_div(first, 1 - kept ** group["step"])
        torch._foreach_div_(steps, spreads)
        return list(steps)


def trust_ratio(weight: Tensor, step: Tensor) -> Tensor:
    """By what a step of this norm is multiplied, for a tensor of that norm; 1 where either is 0."""
    return torch.where((weight > 0) & (step > 0), weight / step, 1.0)
