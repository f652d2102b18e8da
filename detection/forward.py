"""From a batch of the loader to what a detector says of each of its images."""

from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from backbone.inputs import InputConvention
from detection.data.loader import DIVISOR


def prepared(inputs: InputConvention, batch: dict[str, Tensor], channels_last: bool = False) -> Tensor:
    """What the detector reads: images normalised, and zero where there is none, as torchvision pads."""
    images, sizes = batch["images"], batch["sizes"]
    if on_host(images):
        images = _by_table(inputs, images, sizes.tolist())
    else:
        images = inputs.normalize(images)
        rows = torch.arange(images.shape[-2], device=images.device) < sizes[:, :1]
        columns = torch.arange(images.shape[-1], device=images.device) < sizes[:, 1:]
        images.mul_(rows[:, None, :, None] & columns[:, None, None, :])
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images


def on_host(images: Tensor) -> bool:
    """Whether numpy may look at them, and waits for no device."""
    return images.device.type == "cpu"


def _by_table(inputs: InputConvention, images: Tensor, sizes: list[list[int]]) -> Tensor:
    """The same of images on the host, to the bit: what becomes of each of 256 levels is computed once and looked up.

    Memory is gone through once and not five times: a third of the time.
    """
    levels = torch.arange(256, dtype=images.dtype).expand(1, 3, 1, 256)
    table = inputs.normalize(levels)[0, :, 0].numpy()
    order = (2, 1, 0) if inputs.channel_order == "BGR" else (0, 1, 2)
    found = np.empty(images.shape, np.float32)
    for image, into, (height, width) in zip(images.numpy(), found, sizes, strict=True):
        for channel, levels_of, plane in zip(order, table, into, strict=True):
            cv2.LUT(image[channel], levels_of, dst=plane)
        into[:, height:] *= 0  # as the device multiplies: zeros have signs
        into[:, :, width:] *= 0
    return torch.from_numpy(found)


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
