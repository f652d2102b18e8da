"""The optimizer of a recipe."""

import torch
from torch import nn

from backbone.training.lamb import Lamb
from backbone.training.recipe import Optim


def build_optimizer(model: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """What the recipe names, with its weight decay. Everything else of AdamW is torch's.

    Of SGD: PyTorch keeps the learning rate outside the velocity, Caffe inside: they differ for some steps after a drop.
    """
    convolution = nn.Conv2d | nn.ConvTranspose2d
    norms = {id(p) for m in model.modules() if not isinstance(m, convolution | nn.Linear) for p in m.parameters(False)}
    convolutions = {id(m.weight) for m in model.modules() if isinstance(m, convolution)}

    def decays(name: str, parameter: nn.Parameter) -> bool:
        if optim.decay == "conv":
            return id(parameter) in convolutions
        return optim.decay == "all" or not (id(parameter) in norms or name.endswith("bias"))

    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if decays(name, p)], "weight_decay": optim.weight_decay},
        {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = all(parameter.is_cuda for _, parameter in named) or None  # a few kernels for all parameters
    if optim.kind == "adamw":
        return torch.optim.AdamW(groups, lr=optim.peak_lr, betas=optim.betas, fused=fused)
    if optim.kind == "lamb":
        return Lamb(groups, optim.peak_lr, optim.betas)
    optimizer = torch.optim.SGD(groups, lr=optim.peak_lr, momentum=optim.momentum, nesterov=optim.nesterov, fused=fused)
    if optim.momentum:
        # The fused kernel takes memory as it finds it for the first momentum, and where the loss scaler has it skip
        # that step leaves it so. From zero, the first step gives what it gives without.
        for _, parameter in named:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def average_decay(decay: float, step: int) -> float:
    """How much of the weights' moving average is kept at a step, counted from 0: the smaller of `decay` and
    (1 + step) / (10 + step), which is what TensorFlow's `ExponentialMovingAverage` does with `num_updates`.

    At full decay from the start, 0.9999 keeps 90 % of the random first weights over 1,000 steps. So below 1e-20.
    """
    return min(decay, (1 + step) / (10 + step))
