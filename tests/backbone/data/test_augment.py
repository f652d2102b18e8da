"""Views against torchvision, timm and PIL; draws against closed forms; blending against a plain loop."""

import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from backbone.data import augment
from backbone.data.augment import ALIASES, Draws, TrainingView, blend, evaluation_view, resize
from backbone.data.options import Augment, CifarAugment, ModernAugment, NoAugment, PaperAugment
from backbone.data.policies import vary
from backbone.data.stream import mix

FILL = (11, 22, 33)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def ramp(height: int, width: int, step: int) -> np.ndarray:
    """Red says the column, green the row, in `step` grey levels a pixel; so a view tells where it comes from."""
    image = np.full((height, width, 3), 99, np.uint8)
    image[..., 0] = np.arange(width) * step
    image[..., 1] = np.arange(height)[:, None] * step
    return image


def seen(view: TrainingView, image: np.ndarray, key: int, whole: tuple[int, int] | None = None) -> np.ndarray:
    """uint8 [size, size, 3]"""
    planes = np.empty((3, view.size, view.size), np.uint8)
    view.fill(planes, image, key, whole)
    return planes.transpose(1, 2, 0)


def views(count: int, image: np.ndarray, size: int, options: Augment) -> list[np.ndarray]:
    view = TrainingView(options, size, 1.0, FILL)
    return [seen(view, image, mix(1, i)) for i in range(count)]


def geometry(found: list[np.ndarray], step: int) -> np.ndarray:
    """Of views of a ramp: flipped or not, and left, top, width, height of the part of the image they show, pixels."""
    rows = []
    for one in found:
        size = len(one)
        red, green = one[size // 2, :, 0].astype(float), one[:, size // 2, 1].astype(float)
        flipped = red[-1] < red[0]
        red = red[::-1] if flipped else red
        # Pixel centres: the outermost ones lie half a pixel inside the part.
        width, height = ((line[-2] - line[1]) / step * size / (size - 3) for line in (red, green))
        left, top = (line[1] / step + 0.5 - 1.5 * side / size for line, side in ((red, width), (green, height)))
        rows.append((flipped, left, top, width, height))
    return np.array(rows)


SHAPES = [(64, 64), (100, 75), (375, 500), (500, 333), (37, 82), (20, 31), (33, 34), (36, 36), (257, 224)]


@pytest.mark.parametrize(("size", "crop_pct"), [(32, 0.875), (24, 1.0), (31, 0.9), (32, 0.95), (224, 0.95)])
def test_evaluation_view_is_torchvisions(size: int, crop_pct: float):
    reference = v2.Compose([v2.Resize(math.floor(size / crop_pct), antialias=True), v2.CenterCrop(size)])
    for shape in SHAPES:
        image = noise(*shape)
        found = evaluation_view(image, size, crop_pct)
        assert found.shape == (size, size, 3)
        assert np.array_equal(found, np.asarray(reference(Image.fromarray(image)))), shape


def test_evaluation_view_is_timms():
    from timm.data.transforms_factory import create_transform

    for size, crop_pct in ((32, 0.875), (31, 0.9), (160, 0.95)):
        reference: Any = create_transform(
            (3, size, size), interpolation="bilinear", crop_pct=crop_pct, mean=(0, 0, 0), std=(1, 1, 1)
        )
        for shape in SHAPES:
            image = noise(*shape)
            normal = reference(Image.fromarray(image)).permute(1, 2, 0).numpy()
            assert np.array_equal(evaluation_view(image, size, crop_pct), np.rint(255 * normal)), shape


def test_kind_none_is_the_evaluation_view():
    image = noise(50, 40)
    (found,) = views(1, image, 32, NoAugment())
    assert np.array_equal(found, evaluation_view(image, 32, 1.0))


KINDS: dict[str, Augment] = {
    "paper": PaperAugment(shorter_side=(36, 60)),
    "modern": ModernAugment(),
    "trivial": ModernAugment(policy="trivial"),
    "rand": ModernAugment(policy="rand"),
    "jitter": ModernAugment(jitter=0.4, erasing=0.5),
    "cifar": CifarAugment(),
}


@pytest.mark.parametrize("name", KINDS)
def test_views_depend_on_image_and_key_alone(name: str):
    options, image = KINDS[name], noise(40, 48)
    one, two = (TrainingView(options, 32, 1.0, FILL) for _ in range(2))
    before = torch.get_rng_state()
    np.random.seed(1)
    found = [seen(one, image, mix(i)) for i in range(20)]
    np.random.seed(2)
    again = [seen(two, image, mix(i)) for i in reversed(range(20))][::-1]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    assert len({view.tobytes() for view in found}) >= 15  # cifar has 162 views to choose from
    assert {(view.shape, view.dtype) for view in found} == {((32, 32, 3), np.dtype(np.uint8))}
    assert np.array_equal(image, noise(40, 48))


@pytest.mark.parametrize("landscape", [True, False])
def test_paper_draws_shorter_side_and_crop_uniformly(landscape: bool):
    shape = (64, 96) if landscape else (96, 64)
    found = geometry(views(1500, ramp(*shape, 2), 48, PaperAugment(shorter_side=(64, 128))), 2)
    flipped, left, top, width, height = found.T
    assert np.abs(width - height).max() < 2  # the aspect is kept
    shorter = 48 * 64 / height
    assert shorter.min() == pytest.approx(64, abs=1.5)
    assert shorter.max() == pytest.approx(128, abs=4)
    counts = np.histogram(shorter, 4, (63.5, 128.5))[0]
    assert ((counts - 375) ** 2 / 375).sum() < 3 + 5 * 6**0.5
    slack = np.array([shape[1] - width, shape[0] - height])
    wide = slack > 4  # else the place is not known
    places = np.array([left, top]) / np.maximum(slack, 1)
    for axis in range(2):
        place = places[axis][wide[axis]]
        assert place.min() > -0.2
        assert place.max() < 1.2
        assert place.mean() == pytest.approx(0.5, abs=5 / (12 * len(place)) ** 0.5)
    assert flipped.mean() == pytest.approx(0.5, abs=5 * 0.5 / 1500**0.5)
    both = wide.all(0)
    correlation = np.corrcoef(np.array([shorter, flipped, *places])[:, both])
    assert np.abs(correlation - np.eye(4)).max() < 5 / both.sum() ** 0.5


def test_paper_takes_every_side_of_the_range():
    """Three sides, told apart by comparison with each resized image."""
    image = noise(50, 50)
    found = views(60, image, 38, PaperAugment(shorter_side=(38, 40)))
    sides = set()
    for view in found:
        for side in (38, 39, 40):
            (whole,) = views(1, image, side, PaperAugment(shorter_side=(side, side)))
            for flip in (whole, whole[:, ::-1]):
                windows = np.lib.stride_tricks.sliding_window_view(flip, (38, 38, 3))[:, :, 0]
                if (windows == view).all((2, 3, 4)).any():
                    sides.add(side)
    assert sides == {38, 39, 40}


def test_modern_crops_as_torchvision_does():
    found = geometry(views(2000, ramp(84, 120, 2), 32, ModernAugment(area=(0.25, 1))), 2)
    flipped, left, top, width, height = found.T
    torch.manual_seed(0)
    blank = torch.zeros(3, 84, 120)
    draws = [v2.RandomResizedCrop(32, scale=(0.25, 1)).make_params([blank]) for _ in range(4000)]
    theirs = np.array([(d["left"], d["top"], d["width"], d["height"]) for d in draws]).T
    facts = (
        (np.array([left, top, width * height, np.log(width / height)]).T),
        (np.array([*theirs[:2], theirs[2] * theirs[3], np.log(theirs[2] / theirs[3])]).T),
    )
    error = np.sqrt(sum(fact.var(0) / len(fact) for fact in facts))
    bias = (0.5, 0.5, 60, 0.01)  # of measuring in grey levels
    assert (np.abs(facts[0].mean(0) - facts[1].mean(0)) < 4 * error + bias).all()
    assert facts[0].std(0) == pytest.approx(facts[1].std(0), rel=0.1)
    assert flipped.mean() == pytest.approx(0.5, abs=5 * 0.5 / 2000**0.5)
    for fact in (left, top, width, height):
        assert abs(np.corrcoef(flipped, fact)[0, 1]) < 5 / 2000**0.5


def test_cifar_shows_each_padded_crop_and_its_mirror_image_equally_often():
    image = ramp(32, 32, 8)
    padded = np.full((40, 40, 3), FILL, np.uint8)
    padded[4:36, 4:36] = image
    crops = [padded[top : top + 32, left : left + 32] for top in range(9) for left in range(9)]
    counts = {crop.tobytes(): 0 for crop in crops} | {crop[:, ::-1].tobytes(): 0 for crop in crops}
    assert len(counts) == 162
    for view in views(162 * 20, image, 32, CifarAugment()):
        counts[view.tobytes()] += 1
    assert sum((count - 20) ** 2 / 20 for count in counts.values()) < 161 + 5 * 322**0.5


def test_policy_jitter_and_erasing_follow_crop_and_flip_in_turn():
    """What each operation does is tested in test_policies."""
    image, colour = noise(40, 40), np.array(FILL)
    plain = TrainingView(ModernAugment(), 32, 1.0, FILL)
    erasures = 0
    for policy in ("none", "trivial", "rand"):
        varied = TrainingView(ModernAugment(policy=policy, jitter=0.4, erasing=0.5), 32, 1.0, FILL)
        for key in map(mix, range(40)):
            expected = np.ascontiguousarray(seen(plain, image, key).transpose(2, 0, 1))
            operations = varied.operations(key)
            assert len(operations) == {"none": 3, "trivial": 4, "rand": 5}[policy]
            for operation in operations:
                vary(expected, operation)
            expected, erased = expected.transpose(1, 2, 0), varied.erased(key)
            if erased:
                erasures += 1
                expected[erased.top : erased.top + erased.height, erased.left : erased.left + erased.width] = colour
            assert np.array_equal(seen(varied, image, key), expected)
    assert 40 < erasures < 80


@pytest.mark.parametrize("kind", ["modern", "paper", "cifar"])
def test_crops_and_flips_are_albumentations(kind: str):
    """Also where an image is far too wide for a crop to fit by chance. Only its filter differs, where it shrinks."""
    import albumentations as A

    how: Any = {"interpolation": cv2.INTER_LINEAR, "area_for_downscale": "image"}
    steps = {
        "modern": lambda: [A.RandomResizedCrop(size=(32, 32), scale=(0.08, 1.0), **how)],
        "paper": lambda: [A.SmallestMaxSize(max_size=list(range(36, 61)), **how), A.RandomCrop(32, 32)],
        "cifar": lambda: [A.Pad(padding=4, fill=FILL), A.RandomCrop(32, 32)],
    }
    transforms: list[Any] = [*steps[kind](), A.HorizontalFlip(p=0.5)]
    view = TrainingView(KINDS[kind], 32, 1.0, FILL)
    for i, (height, width) in enumerate([(64, 64), (100, 75), (37, 240), (240, 41), (33, 34), (20, 31)] * 12):
        image = ramp(height, width, 1)
        expected = evaluation_view(image, 32, 1.0) if kind == "cifar" else image
        for number, transform in enumerate(transforms):
            transform.set_random_seed(mix(mix(7, i), number))
            expected = transform(image=expected)["image"]
        apart = np.abs(seen(view, image, mix(7, i))[2:-2, 2:-2].astype(int) - expected[2:-2, 2:-2])
        assert apart.max() <= 1, (height, width)  # a grey level is a pixel


def test_resized_as_pil_does():
    """Within a grey level where a side shrinks by more than a fifth; OpenCV's bilinear has fewer bits."""
    for i, (height, width) in enumerate(SHAPES):
        image = noise(height, width, i)
        for to in ((32, 32), (20, 40), (60, 50), (224, 224)):
            shrinks = max(height / to[0], width / to[1])
            if 1 < shrinks <= ALIASES:
                continue  # noise is where the filter counts most
            expected = np.asarray(Image.fromarray(image).resize(to[::-1], Image.Resampling.BILINEAR))
            apart = np.abs(resize(image, *to).astype(int) - expected)
            assert apart.max() <= (1 if shrinks > 1 else 2), (image.shape, to)
            assert apart.mean() < 0.3


@pytest.mark.parametrize("name", ["modern", "paper"])
def test_decoders_shrink_as_far_as_nothing_is_enlarged(name: str):
    view = TrainingView(KINDS[name], 32, 1.0, FILL)
    found = set()
    for i in range(300):
        height, width = 200 + 3 * i, 300 + i
        if name == "modern":
            needed = min(view.box(height, width, mix(i))[2:]) / 32
        else:
            needed = min(height, width) / view._shorter_side(mix(i))
        shrink = view.shrink(height, width, mix(i))
        assert shrink <= max(1, needed) < 2 * shrink or shrink == 8
        found.add(shrink)
    assert found >= {2, 4, 8}
    assert view.shrink(60, 60, 0) == 1


@pytest.mark.parametrize("name", ["modern", "paper"])
def test_views_of_shrunk_images_show_the_same_part(name: str):
    """Of a ramp whose sides the factor does not divide: places agree to a pixel of the smaller image."""
    options = KINDS[name]
    view, image = TrainingView(options, 32, 1.0, FILL), ramp(243, 251, 1)
    small = cv2.resize(image, (126, 122), interpolation=cv2.INTER_AREA)
    for i in range(100):
        whole, part = seen(view, image, mix(i)), seen(view, small, mix(i), (243, 251))
        assert np.abs(whole.astype(int) - part).max() <= 4  # grey levels are pixels here; half a pixel of 2, and blur


EIGENVALUES = (0.2175, 0.0188, 0.0045)  # fb.resnet.torch, datasets/imagenet.lua
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def test_colour_shift_is_fb_resnet_torchs(monkeypatch):
    """rgb = eigvec:clone():cmul(alpha:expand(3, 3)):cmul(eigval:expand(3, 3)):sum(2):squeeze()"""
    alpha = np.array([0.1, -0.25, 0.03])

    class Fixed:
        def normal(self, mean: float, deviation: float, count: int) -> np.ndarray:
            assert (mean, deviation, count) == (0, 0.1, 3)
            return alpha

    monkeypatch.setattr(augment, "_generator", lambda *key: Fixed())
    expected = [sum(EIGENVECTORS[row][j] * alpha[j] * EIGENVALUES[j] for j in range(3)) for row in range(3)]
    found = Draws(PaperAugment(pca=0.1), 0).shift(0, 0)
    assert found.dtype == np.float32
    assert found == pytest.approx(expected, rel=1e-6)


def test_colour_shift_has_the_covariance_of_its_formula():
    draws = Draws(PaperAugment(pca=0.1), seed=3)
    shifts = np.array([draws.shift(epoch, sample) for epoch in range(2) for sample in range(4000)], np.float64)
    vectors, values = np.array(EIGENVECTORS), np.array(EIGENVALUES)
    expected = vectors @ np.diag((0.1 * values) ** 2) @ vectors.T
    deviation = np.sqrt(np.diag(expected))
    assert (np.abs(shifts.mean(0)) < 5 * deviation / 8000**0.5).all()
    scale = np.outer(deviation, deviation)
    assert np.abs(np.cov(shifts.T) - expected).max() < (5 * (2 / 8000) ** 0.5 * scale).max()
    # Along the smallest eigenvector too, which the largest hides above.
    along = shifts @ np.linalg.inv(vectors).T / (0.1 * values)
    assert np.cov(along.T) == pytest.approx(np.eye(3), abs=5 * (2 / 8000) ** 0.5)


def test_colour_shifts_differ_by_seed_epoch_and_sample_and_can_be_off():
    options = PaperAugment(pca=0.1)
    keys = [(seed, epoch, sample) for seed in range(3) for epoch in range(3) for sample in range(3)]
    assert len({Draws(options, seed).shift(epoch, sample).tobytes() for seed, epoch, sample in keys}) == 27
    assert np.array_equal(Draws(options, 1).shift(2, 3), Draws(options, 1).shift(2, 3))
    assert Draws(PaperAugment(), 1).shift(2, 3).tolist() == [0, 0, 0]


def blendings(count: int, seed: int = 0, **options: Any) -> np.ndarray:
    draws = Draws(ModernAugment(**options), seed)
    return np.array([draws.blending(position) for position in range(count)])


def test_pairs_share_a_blending_that_no_other_pair_has():
    found = blendings(2000, mixup=0.4, cutmix=1.0)
    assert found.dtype == np.float32
    assert np.array_equal(found[::2], found[1::2])
    assert len(np.unique(found[::2], axis=0)) == 1000
    assert not np.array_equal(found, blendings(2000, seed=1, mixup=0.4, cutmix=1.0))
    boxes = (found[::2, 3] > found[::2, 1]).mean()
    assert boxes == pytest.approx(0.5, abs=5 * 0.5 / 1000**0.5)  # the fair coin
    assert blendings(4).tolist() == [[1, 0, 0, 0, 0]] * 4


def test_mixup_is_beta_distributed():
    weights = blendings(8000, mixup=0.2)[::2]
    assert not weights[:, 1:].any()
    variance = 1 / (4 * (2 * 0.2 + 1))
    assert weights[:, 0].mean() == pytest.approx(0.5, abs=5 * (variance / 4000) ** 0.5)
    assert weights[:, 0].var() == pytest.approx(variance, rel=0.05)


def test_cutmix_boxes_have_the_areas_of_the_paper():
    """alpha 1: the unclipped area u is uniform, its side s = sqrt(u); clipping leaves s - s^2 / 4 of a side on average,
    so the mean area is the integral of (sqrt(u) - u / 4)^2, 1/2 - 1/5 + 1/48."""
    weight, left, top, right, bottom = blendings(8000, cutmix=1.0)[::2].T
    area = (right - left) * (bottom - top)
    assert area.mean() == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=5 * float(area.std()) / 4000**0.5)
    assert weight == pytest.approx(1 - area, abs=1e-6)
    inside = (left > 0) & (top > 0) & (right < 1) & (bottom < 1)
    assert inside.sum() > 500
    assert (right - left)[inside] == pytest.approx((bottom - top)[inside], abs=1e-6)
    assert (np.stack([left, top]) >= 0).all()
    assert (np.stack([right, bottom]) <= 1).all()


def test_blend_is_a_loop_over_pairs():
    blending = torch.from_numpy(blendings(40, mixup=1.0, cutmix=1.0))
    blending[:2] = torch.tensor([1.0, 0.5, 0.5, 0.5, 0.5])  # an empty box leaves the image
    blending[2:4] = torch.tensor([0.0, 0, 0, 1, 1])  # all of it is the partner
    images = torch.rand(40, 3, 20, 28, generator=torch.Generator().manual_seed(0))
    found, own = blend(images, blending)
    kinds = set()
    for i in range(40):
        partner = images[i + 1 if i % 2 == 0 else i - 1]
        weight, left, top, right, bottom = blending[i].numpy()
        if right > left:
            expected = images[i].clone()
            columns = slice(round(float(left * np.float32(28))), round(float(right * np.float32(28))))
            rows = slice(round(float(top * np.float32(20))), round(float(bottom * np.float32(20))))
            expected[:, rows, columns] = partner[:, rows, columns]
            share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (20 * 28)
            assert torch.equal(found[i], expected)
        else:
            expected, share = images[i] * float(weight) + partner * (1 - float(weight)), float(weight)
            assert found[i].numpy() == pytest.approx(expected.numpy(), abs=1e-6)
        assert float(own[i]) == pytest.approx(share, abs=1e-6)
        kinds.add(bool(right > left))
    assert kinds == {True, False}
    assert own[:4].tolist() == [1, 1, 0, 0]
    assert (own.dtype, own.shape) == (torch.float32, (40,))


def test_weight_is_the_share_of_pixels_left():
    """Own pixels are 1, the partner's 0, so the mean of the first of a pair is its weight."""
    blending = torch.from_numpy(blendings(400, cutmix=1.0))
    images = torch.zeros(400, 3, 13, 17)
    images[::2] = 1
    found, own = blend(images.contiguous(memory_format=torch.channels_last), blending)
    assert found[::2].mean((1, 2, 3)).numpy() == pytest.approx(own[::2].numpy(), abs=1e-5)
    assert torch.equal(own[::2], own[1::2])
