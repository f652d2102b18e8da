"""The one place that normalises: uint8 in, the net's convention out."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from backbone.inputs import IMAGENET_MEAN, IMAGENET_STD, InputConvention


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (4, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)


def test_normalize_is_torchvisions(images):
    reference = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    found = InputConvention().normalize(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, reference(images))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.int8])
def test_normalising_twice_is_refused(images, dtype: torch.dtype):
    with pytest.raises(TypeError, match=f"takes uint8 images of 0..255, not {dtype}"):
        InputConvention().normalize(images.to(dtype))


def test_bgr_flips_channels_after_each_got_its_own_constants(images):
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    rgb = InputConvention(mean=mean, std=std).normalize(images)
    bgr = InputConvention(mean=mean, std=std, channel_order="BGR").normalize(images)
    for channel in range(3):
        assert torch.equal(bgr[:, channel], rgb[:, 2 - channel])
        torch.testing.assert_close(rgb[:, channel], (images[:, channel] / 255 - mean[channel]) / std[channel])


def test_shift_is_added_before_normalising(images):
    shift = torch.tensor([[0.1, -0.2, 0.3], [0, 0, 0], [0.01, 0.02, 0.03], [-1, 0, 1]])
    shifted = images.double() / 255 + shift.double()[:, :, None, None]
    expected = (shifted - column(IMAGENET_MEAN)) / column(IMAGENET_STD)
    for order, found in (("RGB", expected), ("BGR", expected.flip(1))):
        torch.testing.assert_close(InputConvention(channel_order=order).normalize(images, shift), found.float())


def test_mean_image_applies_to_its_own_size_only(images):
    mean_image = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(1))
    convention = InputConvention(size=6, std=(1, 1, 1)).with_mean_image(mean_image)
    assert convention.mean == pytest.approx(mean_image.mean((1, 2)).tolist())
    torch.testing.assert_close(convention.normalize(images), images / 255 - mean_image)
    shift = torch.rand(4, 3)
    torch.testing.assert_close(convention.normalize(images, shift), images / 255 + shift[:, :, None, None] - mean_image)
    for other in (images[:, :, :5], images[..., :4], images.repeat(1, 1, 2, 2)):
        torch.testing.assert_close(convention.normalize(other), (other / 255 - column(convention.mean)).float())


def test_neither_images_nor_convention_change(images):
    before, convention = images.clone(), InputConvention(mean_image=torch.full((3, 6, 6), 0.5))
    first = convention.normalize(images, torch.ones(4, 3))
    assert torch.equal(convention.normalize(images, torch.ones(4, 3)), first)
    assert torch.equal(images, before)
    assert convention.mean_image is not None
    assert (convention.mean_image == 0.5).all()
    other = convention.with_mean_image(torch.zeros(3, 6, 6))
    assert not torch.equal(other.normalize(images), convention.normalize(images))
