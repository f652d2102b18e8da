"""Exact batch statistics at the end of training, as in the paper's released nets (github.com/KaimingHe/
deep-residual-networks: "computed on a sufficiently large training batch", not moving averages)."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backbone.nets import Backbone
from backbone.training.world import World


@torch.no_grad()
def precise_bn(model: Backbone, batches: Iterable[Tensor], world: World) -> int:
    """Replace moving averages by the mean and variance over all `batches` of all ranks; return their number.

    Each layer sees inputs normalised with the statistics of their own micro-batch, as in training. The variance is that
    of all samples together: mean of squares less square of means, with the micro-batches' own means among the spread.
    `batches` are this rank's normalised images [N, 3, S, S], all of one size N.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    sums = [torch.zeros(2, m.num_features, dtype=torch.float64, device=world.device) for m in layers]

    def collect(index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            var, mean = torch.var_mean(inputs[0].float(), dim=(0, 2, 3), correction=0)
            sums[index][0] += mean
            sums[index][1] += var.double() + mean.double().square()

        return hook

    was_training, kept = model.training, [m.momentum for m in layers]
    model.eval()
    for layer in layers:  # only the norms: dropout stays off
        layer.train()
        layer.momentum = 0.0
    hooks = [layer.register_forward_pre_hook(collect(i)) for i, layer in enumerate(layers)]
    count = torch.zeros(1, dtype=torch.float64, device=world.device)
    try:
        for images in batches:
            model.classify(images)
            count += 1
    finally:
        for hook, layer, momentum in zip(hooks, layers, kept, strict=True):
            hook.remove()
            layer.momentum = momentum
        model.train(was_training)
    world.sum(count)
    if not count:
        return 0
    for layer, total in zip(layers, sums, strict=True):
        mean, square = world.sum(total) / count
        assert layer.running_mean is not None
        assert layer.running_var is not None
        assert layer.num_batches_tracked is not None
        layer.num_batches_tracked.fill_(
            int(count)
        )  # the batches these statistics are of, however many ranks there were
        layer.running_mean.copy_(mean)
        layer.running_var.copy_((square - mean.square()).clamp_min(0))
    return int(count)
