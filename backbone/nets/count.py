"""What a net costs: parameters, multiply-adds, activation memory. Nothing is computed and nothing large allocated."""

import copy

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from backbone.nets.contract import Backbone


def parameters(net: nn.Module) -> int:
    """Number of parameters, the norms' gamma and beta included, running statistics not."""
    return sum(p.numel() for p in net.parameters())


def macs(net: Backbone, size: int) -> int:
    """Multiply-adds of `net.classify` for one image of `size` x `size` px, in convolutions and fully connected layers.

    The paper calls these FLOPs (Table 1). Its 15.3e9 for VGG-16 leaves the fully connected layers out, its 19.6e9 for
    VGG-19 does not; here they always count.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton

    net = _on_meta(net).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.classify(_images(net, size, 1))
    return counter.get_total_flops() // 2


def activation_bytes(net: Backbone, size: int, batch: int) -> int:
    """Bytes that autograd keeps between forward and backward of `net.classify` in training.

    For `batch` images of `size` x `size` px, in the parameters' dtype, the images included. Parameters, buffers,
    gradients, the optimizer's state and the convolutions' workspaces come on top.
    """
    net = _on_meta(net).train()
    own = {t.untyped_storage()._cdata for t in (*net.parameters(), *net.buffers())}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        # Views and in-place results share a storage, which is held here so that its address is not used twice.
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        net.classify(_images(net, size, batch))
    return sum(storage.nbytes() for storage in kept.values())


def _images(net: Backbone, size: int, batch: int) -> Tensor:
    return torch.empty(batch, 3, size, size, device="meta", dtype=next(net.parameters()).dtype)


def _on_meta(net: Backbone) -> Backbone:
    """Copy `net`, with tensors that have shapes but no memory."""
    memo: dict[int, Tensor] = {id(b): b.to("meta") for b in net.buffers()}
    memo |= {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in net.parameters()}
    return copy.deepcopy(net, memo)
