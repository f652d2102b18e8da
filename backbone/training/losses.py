"""Losses of classification other than torch's own cross-entropy."""

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_targets(labels: Tensor, partners: Tensor, own: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Each class's share of the target, float32 [N, num_classes].

    `labels` and `partners`, int64 [N], are the classes of an image and of the one that it is mixed with, of which it
    keeps the share `own`, float [N]. `smoothing` is spread over all classes.
    """
    shares = torch.full((len(labels), num_classes), smoothing / num_classes, device=labels.device)
    own = own.float()[:, None] * (1 - smoothing)
    shares.scatter_add_(1, labels[:, None], own)
    return shares.scatter_add_(1, partners[:, None], 1 - smoothing - own)


def binary_cross_entropy(logits: Tensor, targets: Tensor, threshold: float = 0.0) -> Tensor:
    """Of each class against all else, the mean over classes: float [N] of logits and targets [N, K].

    With a `threshold`, what is above it is 1 and all else 0 (timm's `target_threshold`).
    """
    if threshold:
        targets = (targets > threshold).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
