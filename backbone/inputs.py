"""What a net expects of its input, and the one place that normalises."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class InputConvention:
    """Input of a backbone: RGB or BGR, mean and deviation on the 0..1 scale, and how an image is brought to size.

    `mean_image`, float32 [3, size, size] on the 0..1 scale, is the paper's per-pixel mean (section 3.4). It applies to
    inputs of its own size; inputs of any other size (fully convolutional tests, detection) get the channel means.
    """

    size: int = 224
    crop_pct: float = 0.875
    channel_order: str = "RGB"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"
    mean_image: Tensor | None = None

    def normalize(self, images: Tensor, shift: Tensor | None = None) -> Tensor:
        """uint8 RGB [N, 3, H, W] -> float32 in this convention, on the images' device.

        `shift`, float [N, 3] on the 0..1 scale, is added before normalising (AlexNet's colour augmentation).

        Raises:
            TypeError: the images are not uint8, so they may be normalised already.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"normalize takes uint8 images of 0..255, not {images.dtype}; normalise once only")
        mean, std, mean_image = self.prepare(images.device)
        if mean_image is not None and images.shape[-2:] == mean_image.shape[-2:]:
            mean = mean_image
        if shift is not None:
            mean = mean - shift[:, :, None, None]
        normal = images.float().div_(255).sub_(mean).div_(std)  # in place: new memory costs more than the arithmetic
        return normal.flip(1) if self.channel_order == "BGR" else normal

    def with_mean_image(self, mean_image: Tensor) -> "InputConvention":
        """This convention with a per-pixel mean, the channel means being its averages."""
        r, g, b = mean_image.mean(dim=(1, 2)).tolist()
        return replace(self, mean=(r, g, b), mean_image=mean_image)

    @cached_property
    def _on_device(self) -> dict[torch.device, tuple[Tensor, Tensor, Tensor | None]]:
        return {}

    def prepare(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean and deviation, [1, 3, 1, 1], and mean image, [1, 3, size, size], on the device.

        Copied once: a transfer each step would wait for the device, and cannot be part of a CUDA graph.
        """
        if device not in self._on_device:
            mean, std = (torch.tensor(c, device=device).view(1, 3, 1, 1) for c in (self.mean, self.std))
            mean_image = None if self.mean_image is None else self.mean_image[None].to(device)
            self._on_device[device] = (mean, std, mean_image)
        return self._on_device[device]
