"""How training images are varied: pure functions of image and 64-bit key. The only module that knows albumentations.

Everything that works on pixels happens here, on uint8; what is cheaper or more exact on normalised floats (AlexNet's
colour shift, mixup, CutMix) is drawn here and applied on the device, see `Draws` and `blend`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network

from backbone.data.options import Augment
from backbone.data.stream import mix

# Covariance of RGB over ImageNet on the 0..1 scale, as in fb.resnet.torch. Columns of the second are eigenvectors.
PCA_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
PCA_EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def evaluation_view(image: np.ndarray, size: int, crop_pct: float) -> np.ndarray:
    """Shorter side to size / crop_pct, then the central [size, size]; uint8 [H, W, 3] in and out.

    Resized with PIL's antialiased bilinear filter and rounded as torchvision's and timm's evaluation do: published
    accuracies are measured on these pixels.
    """
    height, width = image.shape[:2]
    target, shorter = int(size / crop_pct), min(height, width)
    if target != shorter:
        height, width = target * height // shorter, target * width // shorter
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    top, left = round((height - size) / 2), round((width - size) / 2)
    return image[top : top + size, left : left + size]


def training_view(
    options: Augment, size: int, crop_pct: float, fill: tuple[int, int, int]
) -> Callable[[np.ndarray, int], np.ndarray]:
    """A function (uint8 [H, W, 3], key) -> uint8 [size, size, 3]. `fill` is the colour outside the image (cifar)."""
    if options.kind == "none":
        return lambda image, key: evaluation_view(image, size, crop_pct)

    import albumentations as A  # takes seconds, so nobody else pays for it

    # "image": area averaging when shrinking. albumentations' default aliases, and its nets then see other images in
    # training than in any evaluation.
    resize: dict[str, Any] = {"interpolation": cv2.INTER_LINEAR, "area_for_downscale": "image"}
    steps = {
        "paper": lambda: [
            A.SmallestMaxSize(max_size=list(range(options.shorter_side[0], options.shorter_side[1] + 1)), **resize),
            A.RandomCrop(size, size),
        ],
        "modern": lambda: [A.RandomResizedCrop(size=(size, size), scale=options.area, **resize)],
        # The paper subtracts the mean image before it pads with zeros; here the padding is the mean colour and the mean
        # image is subtracted after the crop, from where it stands. Differs by less than the mean image's own contrast.
        "cifar": lambda: [A.Pad(padding=4, fill=fill), A.RandomCrop(size, size)],
    }
    transforms = [*steps[options.kind](), A.HorizontalFlip(p=0.5)]
    policy = _policy(options.policy)

    def view(image: np.ndarray, key: int) -> np.ndarray:
        if options.kind == "cifar":
            image = evaluation_view(image, size, crop_pct)
        # Generators of a worker would repeat themselves across workers, ranks and epochs; and A.Compose would start
        # all transforms from one seed, so that just those images are flipped which are cropped at the top.
        for number, transform in enumerate(transforms):
            transform.set_random_seed(mix(key, number))
            image = transform(image=image)["image"]
        return policy(image, key) if policy else image

    return view


def _policy(name: str) -> Callable[[np.ndarray, int], np.ndarray] | None:
    """TrivialAugment and RandAugment: torchvision's, which albumentations lacks, with a generator keyed by sample."""
    if name == "none":
        return None
    from torchvision.transforms import v2

    transform = {"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment}[name]()

    def apply(image: np.ndarray, key: int) -> np.ndarray:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key >> 1)  # torch.manual_seed would seed the GPUs too
            changed = transform(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1))
        return changed.permute(1, 2, 0).numpy()

    return apply


@dataclass(frozen=True)
class Draws:
    """Draws what is applied on the device: colour shifts of samples, blending of pairs.

    Positions 2k and 2k+1 form a pair. Neighbours are always in one micro-batch, so what is mixed with what does not
    depend on how many workers there are.
    """

    options: Augment
    seed: int

    def shift(self, epoch: int, sample: int) -> np.ndarray:
        """AlexNet's colour shift, float32 [3] on the 0..1 scale (Krizhevsky et al. 2012, section 4.1)."""
        if not self.options.pca:
            return np.zeros(3, np.float32)
        alpha = _generator(self.seed, epoch, sample, 1).normal(0, self.options.pca, 3)
        return (PCA_EIGENVECTORS @ (alpha * PCA_EIGENVALUES)).astype(np.float32)

    def blending(self, position: int) -> np.ndarray:
        """(weight of the own image, left, top, right, bottom), float32 [5].

        The box, in shares of the side, is where the partner shows: CutMix. An empty box means mixup, the weight then
        blends pixels; for CutMix the weight is the own image's share of the area.
        """
        mixup, cutmix = self.options.mixup, self.options.cutmix
        if not (mixup or cutmix):
            return np.array([1, 0, 0, 0, 0], np.float32)
        generator = _generator(self.seed, position // 2, 2)
        if cutmix and (not mixup or generator.random() < 0.5):
            side = np.sqrt(1 - generator.beta(cutmix, cutmix))
            x, y = generator.random(2)
            left, top, right, bottom = np.clip([x - side / 2, y - side / 2, x + side / 2, y + side / 2], 0, 1)
            return np.array([1 - (right - left) * (bottom - top), left, top, right, bottom], np.float32)
        return np.array([generator.beta(mixup, mixup), 0, 0, 0, 0], np.float32)


def blend(images: Tensor, blending: Tensor) -> tuple[Tensor, Tensor]:
    """Mix neighbours: float [N, 3, H, W], N even, and `Draws.blending` [N, 5] -> (images, own weight [N]).

    The weight comes from whole pixels, so it is the exact share of the own image that is left.
    """
    count, _, height, width = images.shape
    partner = images.view(count // 2, 2, *images.shape[1:]).flip(1).reshape(images.shape)
    weight, left, top, right, bottom = blending.T[:, :, None]
    column = torch.arange(width, device=images.device)[None]
    row = torch.arange(height, device=images.device)[None]
    columns = (column >= (left * width).round()) & (column < (right * width).round())
    rows = (row >= (top * height).round()) & (row < (bottom * height).round())
    box = (rows[:, None, :, None] & columns[:, None, None, :]).to(images.dtype)
    is_box = (right > left)[:, :, None, None]
    weight = weight[:, :, None, None].to(images.dtype)
    kept = torch.where(is_box, 1 - box, weight)
    own = torch.where(is_box[:, 0, 0, 0], 1 - box.mean(dim=(1, 2, 3)), weight[:, 0, 0, 0])
    return images * kept + partner * (1 - kept), own


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=mix(*key)))
