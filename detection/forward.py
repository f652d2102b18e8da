"""From a batch of the loader to what a detector says of each of its images."""

from typing import Any

import torch
from torch import Tensor, nn

from backbone.inputs import InputConvention
from detection.data.loader import DIVISOR


def prepared(inputs: InputConvention, batch: dict[str, Tensor], channels_last: bool = False) -> Tensor:
    """What the detector reads: images normalised, and zero where there is none, as torchvision pads."""
    images, sizes = inputs.normalize(batch["images"]), batch["sizes"]
    rows = torch.arange(images.shape[-2], device=images.device) < sizes[:, :1]
    columns = torch.arange(images.shape[-1], device=images.device) < sizes[:, 1:]
    images = images * (rows[:, None, :, None] & columns[:, None, None, :])
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images


def outputs_of(model: nn.Module, inputs: InputConvention, batch: Any, device: torch.device) -> list[dict[str, Tensor]]:
    """What the detector, in eval mode, gives for each image of a batch of `eval_loader`.

    Images go through it together where they have the same padded sides of their own. Padding to the largest of a batch
    would let what is found depend on the batch, and with images as small as 64 pixels halve AP.
    """
    on_device = {key: batch[key].to(device, non_blocking=True) for key in ("images", "sizes")}
    outputs: list[dict[str, Tensor]] = [{} for _ in batch["indices"]]
    padded = (-(-batch["sizes"] // DIVISOR) * DIVISOR).tolist()
    for height, width in sorted(set(map(tuple, padded))):
        rows = [row for row, sides in enumerate(padded) if sides == [height, width]]
        part = {"images": on_device["images"][rows, :, :height, :width], "sizes": on_device["sizes"][rows]}
        sides = batch["sizes"][rows].tolist()  # on the host
        for row, output in zip(rows, model(prepared(inputs, part), sides), strict=True):
            outputs[row] = output
    return outputs
