"""How training images are varied: pure functions of image and 64-bit key.

Crops and flips are those of albumentations 2.0 (RandomResizedCrop, SmallestMaxSize, RandomCrop, HorizontalFlip), which
itself knows a crop only once the image is decoded, and may draw otherwise in its next version.

Everything that works on pixels happens here and in `policies`, on uint8; what is cheaper or more exact on normalised
floats (AlexNet's colour shift, mixup, CutMix) is drawn here and applied on the device, see `Draws` and `blend`.
"""

import math
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from backbone.data.headers import PIXELS
from backbone.data.options import Augment, CifarAugment, ModernAugment, NoAugment, PaperAugment
from backbone.data.policies import Operation, draw, draw_erasing, draw_increasing, draw_jitter, vary
from backbone.data.stream import mix

# Covariance of RGB over ImageNet on the 0..1 scale, as in fb.resnet.torch. Columns of the second are eigenvectors.
PCA_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
PCA_EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def _part(image: np.ndarray, sides: Sequence[int], place: Sequence[int], size: int, filter: int) -> np.ndarray:
    """uint8 [size, size, 3] at `place` of what `image` is at `sides`, which for a strip would fill the memory."""
    (top, down), (left, across) = ((n, whole / side) for n, whole, side in zip(place, image.shape, sides, strict=False))
    right, below = min((left + size) * across, image.shape[1]), min((top + size) * down, image.shape[0])
    return np.asarray(Image.fromarray(image).resize((size, size), filter, (left * across, top * down, right, below)))


def evaluation_view(image: np.ndarray, size: int, crop_pct: float, interpolation: str = "bilinear") -> np.ndarray:
    """Shorter side to size / crop_pct, then the central [size, size]; uint8 [H, W, 3] in and out.

    Resized with PIL's antialiased filter of that name and rounded as torchvision's and timm's evaluation do: published
    accuracies are measured on these pixels.
    """
    height, width = image.shape[:2]
    target, shorter = int(size / crop_pct), min(height, width)
    if target != shorter:
        height, width = target * height // shorter, target * width // shorter
    top, left = round((height - size) / 2), round((width - size) / 2)
    if height * width > PIXELS:
        return _part(image, (height, width), (top, left), size, pil_filter(interpolation))
    if target != shorter:
        image = np.asarray(Image.fromarray(image).resize((width, height), pil_filter(interpolation)))
    return image[top : top + size, left : left + size]


def pil_filter(interpolation: str) -> Image.Resampling:
    """PIL's filter of a name as torchvision and timm write it; ValueError: it has none."""
    names = [one.name.lower() for one in Image.Resampling]
    if interpolation not in names:
        raise ValueError(f"interpolation {interpolation}: PIL has {', '.join(names)}")
    return Image.Resampling[interpolation.upper()]


def evaluation_place(height: int, width: int, size: int, crop_pct: float) -> "Place":
    """Where an image of this size lies in its `evaluation_view`."""
    target, shorter = int(size / crop_pct), min(height, width)
    down, across = target * height // shorter, target * width // shorter
    return Place(down / height, across / width, round((down - size) / 2), round((across - size) / 2), size)


class Place(NamedTuple):
    """Where an image lies in a view: its point (x, y), pixels, is at (across x - left, down y - top), and where it
    `flips` mirrored after that."""

    down: float
    across: float
    top: float
    left: float
    width: int
    """Of the view, pixels."""

    flips: bool = False
    below: int = 0
    """Rows by which the view reaches beyond what is shown of the image, at the bottom; negative: at the top."""
    beside: int = 0
    """Likewise columns, at the right before it is mirrored; negative: at the left."""

    def into_view(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes x1 y1 x2 y2, float64 [K, 4], of the image -> of the view; they may reach beyond it."""
        scales = np.array([self.across, self.down] * 2)
        x1, y1, x2, y2 = (boxes * scales - [self.left, self.top] * 2).T
        return np.stack([self.width - x2, y1, self.width - x1, y2] if self.flips else [x1, y1, x2, y2], 1)

    def seen(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes of the view, float64 [K, 4], cut off where it shows nothing of the image."""
        beside = -self.beside if self.flips else self.beside
        low = [max(0, -beside), max(0, -self.below)] * 2
        return np.clip(boxes, low, [self.width - max(0, beside), self.width - max(0, self.below)] * 2)

    def into_image(self, boxes: np.ndarray) -> np.ndarray:
        """The way back, from a view that is not mirrored."""
        assert not self.flips
        return (boxes + [self.left, self.top] * 2) / np.array([self.across, self.down] * 2)


class Box(NamedTuple):
    """A part of an image, pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, image: np.ndarray) -> np.ndarray:
        """That part of [H, W, 3]; a view."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]

    def within(self, image: np.ndarray, whole: tuple[int, int]) -> "Box":
        """The same part of an image decoded smaller than `whole` (height, width), to the nearest pixel.

        Or decoded in its full width, but not down to its lowest rows.
        """
        if image.shape[1] == whole[1]:
            return self
        down, across = image.shape[0] / whole[0], image.shape[1] / whole[1]
        top, left = round(self.top * down), round(self.left * across)
        bottom, right = round((self.top + self.height) * down), round((self.left + self.width) * across)
        return Box(top, left, max(1, bottom - top), max(1, right - left))


class TrainingView:
    """What the net sees of a training image: a function of its pixels and a 64-bit key.

    Each decision has a generator of its own: generators of a loader process would repeat themselves across processes,
    ranks and epochs, and one seed for all would flip just those images which are cropped at the top.
    """

    def __init__(self, options: Augment, size: int, crop_pct: float, colour: tuple[int, int, int]) -> None:
        """`colour` is what lies outside the image (cifar), and what covers a part of it (modern)."""
        self.options, self.size, self.crop_pct, self.colour = options, size, crop_pct, colour
        self._last: tuple[tuple[int, int, int], Box] | None = None  # asked of `box`, and the answer

    def fill(self, planes: np.ndarray, image: np.ndarray, key: int, whole: tuple[int, int] | None = None) -> None:
        """uint8 [H, W, 3] into [3, size, size]. `whole`: (height, width) of a file decoded in part."""
        whole = whole or image.shape[:2]
        match self.options:
            case ModernAugment():
                return self.fill_cut(planes, self.box(*whole, key).within(image, whole).cut(image), key)
            case PaperAugment():
                scale = self._shorter_side(key) / min(whole)
                view = self._crop(image, *(max(1, round(side * scale)) for side in whole), key)
            case CifarAugment():
                # The paper subtracts the mean image before it pads with zeros; here the padding is the mean colour and
                # the mean image is subtracted after the crop, from where it stands. Differs by less than the mean
                # image's own contrast.
                view = evaluation_view(image, self.size, self.crop_pct)
                sides = (PADDING, PADDING, PADDING, PADDING)
                padded = cv2.copyMakeBorder(view, *sides, cv2.BORDER_CONSTANT, value=self.colour)
                view = self.padded_box(key).cut(padded)
            case NoAugment():
                view = evaluation_view(image, self.size, self.crop_pct)
        self._finish(planes, view, key)

    def fill_cut(self, planes: np.ndarray, cut: np.ndarray, key: int) -> None:
        """modern: as `fill`, of what `box` says of the image, uint8 [height, width, 3]."""
        self._finish(planes, resize(cut, self.size, self.size, into=_own.view(self.size)), key)

    def _finish(self, planes: np.ndarray, view: np.ndarray, key: int) -> None:
        """uint8 [size, size, 3] into [3, size, size], mirrored and varied."""
        to_planes(view, planes)
        if not isinstance(self.options, NoAugment) and self.flips(key):
            rows = planes.reshape(-1, self.size)
            cv2.flip(rows, 1, dst=rows)
        for operation in self.operations(key):
            vary(planes, operation)
        erased = self.erased(key)
        if erased:
            erased.cut(planes.transpose(1, 2, 0))[:] = self.colour

    def place(self, height: int, width: int, key: int) -> Place:
        """Where an image of this size lies in what `fill` makes of it; a policy that turns or shears it is left out."""
        match self.options:
            case ModernAugment():
                box = self.box(height, width, key)
                down, across = self.size / box.height, self.size / box.width
                place = Place(down, across, box.top * down, box.left * across, self.size)
            case PaperAugment():
                scale = self._shorter_side(key) / min(height, width)
                sides = [max(1, round(side * scale)) for side in (height, width)]
                box = _place(_drawing(mix(key, 1)), *sides, self.size, self.size)
                place = Place(sides[0] / height, sides[1] / width, box.top, box.left, self.size)
            case _:
                place = evaluation_place(height, width, self.size, self.crop_pct)
                if isinstance(self.options, CifarAugment):
                    box = self.padded_box(key)
                    below, beside = box.top - PADDING, box.left - PADDING
                    place = place._replace(top=place.top + below, left=place.left + beside, below=below, beside=beside)
        return place._replace(flips=not isinstance(self.options, NoAugment) and self.flips(key))

    def shrink(self, height: int, width: int, key: int) -> int:
        """By how much a decoder may shrink an image of this size, 8, 4, 2 or 1, so that it need not be enlarged."""
        if isinstance(self.options, ModernAugment):
            box = self.box(height, width, key)
            slack = min(box.height, box.width) / self.size
        else:
            slack = min(height, width) / self._shorter_side(key)
        return next((factor for factor in (8, 4, 2) if slack >= factor), 1)

    def bottom(self, height: int, width: int, key: int) -> int:
        """How many rows of an image of this size, from its top, the view is made of."""
        if not isinstance(self.options, ModernAugment):
            return height
        box = self.box(height, width, key)
        return box.top + box.height

    def box(self, height: int, width: int, key: int) -> Box:
        """modern: torchvision's RandomResizedCrop of an image of this size (Szegedy et al., arXiv:1409.4842)."""
        last, asked = self._last, (height, width, key)  # twice an image: how far to decode, and what to cut
        if last is None or last[0] != asked:
            self._last = last = asked, self._box(*asked)
        return last[1]

    def _box(self, height: int, width: int, key: int) -> Box:
        assert isinstance(self.options, ModernAugment)
        draw = _drawing(mix(key, 0))
        area = height * width
        smallest, largest = (share * area for share in self.options.area)
        for _ in range(10):
            target = draw.uniform(smallest, largest)
            aspect = math.exp(draw.uniform(*_LOG_ASPECTS))
            across, down = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if 0 < across <= width and 0 < down <= height:
                return _place(draw, height, width, down, across)
        across, down = width, height
        if width / height < _ASPECTS[0]:
            down = round(width / _ASPECTS[0])
        elif width / height > _ASPECTS[1]:
            across = round(height * _ASPECTS[1])
        return Box((height - down) // 2, (width - across) // 2, down, across)

    def flips(self, key: int) -> bool:
        """Whether the view is mirrored."""
        return _drawing(mix(key, 1 if isinstance(self.options, ModernAugment) else 2)).random() < 0.5

    def operations(self, key: int) -> list[Operation]:
        """modern: what is done to the crop after it was mirrored, in order."""
        if not isinstance(self.options, ModernAugment):
            return []
        policy, jitter = self.options.policy, self.options.jitter
        if policy == "increasing":
            drawn = draw_increasing(self.options.magnitude, self.options.magnitude_std, self.size, mix(key, 3))
        else:
            drawn = [] if policy == "none" else draw(policy, self.size, mix(key, 3), int(self.options.magnitude))
        return drawn + draw_jitter(jitter, mix(key, 4)) if jitter else drawn

    def erased(self, key: int) -> Box | None:
        """modern: what of the view is then covered by the mean colour, which is nothing to the net."""
        if not isinstance(self.options, ModernAugment) or not self.options.erasing:
            return None
        box = draw_erasing(self.options.erasing, self.size, mix(key, 5))
        return box and Box(*box)

    def padded_box(self, key: int) -> Box:
        """cifar: the crop in the evaluation view padded by `PADDING` on each side."""
        side = self.size + 2 * PADDING
        return _place(_drawing(mix(key, 1)), side, side, self.size, self.size)

    def _shorter_side(self, key: int) -> int:
        assert isinstance(self.options, PaperAugment)
        smallest, largest = self.options.shorter_side
        return _drawing(mix(key, 0)).choice(range(smallest, largest + 1))

    def _crop(self, image: np.ndarray, height: int, width: int, key: int) -> np.ndarray:
        place = _place(_drawing(mix(key, 1)), height, width, self.size, self.size)
        if height * width > PIXELS:
            return _part(image, (height, width), (place.top, place.left), self.size, Image.Resampling.BILINEAR)
        return place.cut(resize(image, height, width))


PADDING = 4  # pixels on each side, section 4.2
ALIASES = 1.2  # shrinking further than by this shows; up to it a filter moves pixels by half a grey level on average
_ASPECTS = (3 / 4, 4 / 3)
_LOG_ASPECTS = (math.log(_ASPECTS[0]), math.log(_ASPECTS[1]))


class _Own(threading.local):
    """Each thread's, to be used again for each image."""

    def __init__(self) -> None:
        self.draw = random.Random()
        self.views: dict[int, np.ndarray] = {}

    def view(self, size: int) -> np.ndarray:
        """uint8 [size, size, 3], of any values."""
        found = self.views.get(size)
        return self.views.setdefault(size, np.empty((size, size, 3), np.uint8)) if found is None else found


_own = _Own()


def _drawing(seed: int) -> random.Random:
    """As `random.Random(seed)`, which seeds twice; until the thread asks for the next. `seed`: from 0 up."""
    draw = _own.draw
    super(random.Random, draw).seed(seed)  # whose own looks at what it is given first
    return draw


def _place(draw: random.Random, height: int, width: int, down: int, across: int) -> Box:
    top, left = draw.random(), draw.random()
    return Box(int((height - down + 1) * top), int((width - across + 1) * left), down, across)


def resize(image: np.ndarray, height: int, width: int, *, into: np.ndarray | None = None) -> np.ndarray:
    """uint8 [H, W, 3] to another size: bilinear, antialiased where a side shrinks by more than a fifth.

    Perhaps into an array [height, width, 3], where that saves memory.

    Without it nets would see other images in training than in any evaluation. torch's filter is within one grey level
    of PIL's; OpenCV has none, its averages over areas take longer and lie further off. Its bilinear is the fastest.
    """
    if image.shape[:2] == (height, width):
        return image
    if image.shape[0] <= ALIASES * height and image.shape[1] <= ALIASES * width:
        return cv2.resize(image, (width, height), dst=into, interpolation=cv2.INTER_LINEAR)
    # In one piece: of a part of an image torch would make planes, and those take longer.
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    return F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def to_planes(image: np.ndarray, planes: np.ndarray) -> None:
    """Copy uint8 [H, W, 3] into [3, H, W]. In place."""
    if image.strides[2] == 1:
        cv2.split(image, list(planes))
    else:  # torch resizes into planes
        np.copyto(planes, image.transpose(2, 0, 1))


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
        if not isinstance(self.options, PaperAugment) or not self.options.pca:
            return np.zeros(3, np.float32)
        alpha = _generator(self.seed, epoch, sample, 1).normal(0, self.options.pca, 3)
        return (PCA_EIGENVECTORS @ (alpha * PCA_EIGENVALUES)).astype(np.float32)

    def blending(self, position: int) -> np.ndarray:
        """(weight of the own image, left, top, right, bottom), float32 [5].

        The box, in shares of the side, is where the partner shows: CutMix. An empty box means mixup, the weight then
        blends pixels; for CutMix the weight is the own image's share of the area.
        """
        if not isinstance(self.options, ModernAugment) or not self.options.blends:
            return np.array([1, 0, 0, 0, 0], np.float32)
        mixup, cutmix = self.options.mixup, self.options.cutmix
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
