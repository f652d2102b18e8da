"""Binary cross-entropy against timm's, with its own targets of mixed images."""

import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy

from backbone.training.losses import binary_cross_entropy, soft_targets

LOGITS = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)) * 3
LABELS = torch.tensor([0, 8, 3, 3, 5, 1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_alone(smoothing: float) -> None:
    targets = soft_targets(LABELS, LABELS, torch.ones(6), 9, smoothing)
    found = binary_cross_entropy(LOGITS, targets)
    assert found.shape == (6,)
    torch.testing.assert_close(found.mean(), BinaryCrossEntropy(smoothing)(LOGITS, LABELS))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("threshold", [0.0, 0.2])
@pytest.mark.parametrize("own", [1.0, 0.9, 0.7, 0.5])
def test_mixed_labels(smoothing: float, threshold: float, own: float) -> None:
    """timm's `mixup_target` mixes an image with its mirror in the batch. Two of one class are that class wholly."""
    expected = mixup_target(LABELS, 9, own, smoothing)
    targets = soft_targets(LABELS, LABELS.flip(0), torch.full((6,), own), 9, smoothing)
    torch.testing.assert_close(targets, expected)
    reference = BinaryCrossEntropy(target_threshold=threshold or None)(LOGITS, expected)
    torch.testing.assert_close(binary_cross_entropy(LOGITS, targets, threshold).mean(), reference)
