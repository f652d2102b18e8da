"""Operations against torchvision's on PIL images and on tensors, all magnitudes and signs. Draws against its draws."""

import functools
import math
from collections import Counter
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm_policies
from torchvision.transforms import InterpolationMode, v2

from backbone.data.policies import (
    BINS,
    EVERY,
    INCREASING,
    SIGNED,
    VARY,
    Operation,
    draw,
    draw_erasing,
    draw_increasing,
    draw_jitter,
    increasing,
    magnitudes,
    vary,
)
from backbone.data.stream import mix

POLICIES: dict[str, Any] = {"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment}
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
SIDE = 61
EXACT = int(cv2.__version__.partition(".")[0]) >= 5  # OpenCV 4 turns and shears noise to within 8 grey levels


@functools.cache
def pictures(side: int) -> dict[str, np.ndarray]:
    """uint8 [side, side, 3]: any pixels; few levels; smooth; two colours."""
    noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    halves = np.full((side, side, 3), 77, np.uint8)
    halves[: side // 2] = (9, 200, 40)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3).astype(float)
    smooth = (30 + 190 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    return {"noise": noise, "dim": noise // 3 + 20, "smooth": smooth, "halves": halves}


def ours(picture: np.ndarray, operation: Operation) -> np.ndarray:
    planes = np.ascontiguousarray(picture.transpose(2, 0, 1))
    vary(planes, operation)
    return planes.transpose(1, 2, 0).astype(int)


def theirs(picture: Any, operation: Operation) -> Any:
    """torchvision's, of a PIL image or a tensor."""
    policy: Any = v2.TrivialAugmentWide()
    return policy._apply_image_or_video_transform(picture, *operation, InterpolationMode.BILINEAR, {})


def operations(policy: str, name: str) -> list[Operation]:
    signs = (1, -1) if name in SIGNED else (1,)
    return [Operation(name, sign * one) for one in magnitudes(policy, SIDE)[name] for sign in signs]


@pytest.mark.parametrize("name", VARY)
@pytest.mark.parametrize("policy", POLICIES)
def test_pixels_are_within_a_grey_level_of_pils(policy: str, name: str):
    for kind, picture in pictures(SIDE).items():
        changed = 0
        for operation in operations(policy, name):
            expected = np.asarray(theirs(Image.fromarray(picture), operation)).astype(int)
            apart = np.abs(ours(picture, operation) - expected)
            assert apart.max() <= (1 if EXACT or name not in GEOMETRIC else 8), (kind, operation)
            assert apart.mean() < 0.5, (kind, operation)
            changed += not np.array_equal(expected, picture)
        assert changed or name in ("Identity", "AutoContrast", "Equalize", "Posterize"), kind


@pytest.mark.parametrize("name", VARY)
def test_pixels_are_within_a_grey_level_of_torchvisions_tensors(name: str):
    """But for the rim of a turned image, where tensors blend with black; contrast, whose mean grey they do not round;
    and the one level that a threshold of solarize falls on, which its last bits decide."""
    for kind in ("noise", "halves"):
        picture = pictures(SIDE)[kind]
        planes = torch.from_numpy(picture).permute(2, 0, 1).contiguous()
        for operation in operations("trivial", name):
            expected = theirs(planes, operation).permute(1, 2, 0).numpy().astype(int)
            apart = np.abs(ours(picture, operation) - expected)
            if name in GEOMETRIC:
                whole = theirs(torch.full_like(planes, 255), operation).permute(1, 2, 0).numpy()
                apart = apart[(whole == 255) | (whole == 0)]
                rim = ((whole > 0) & (whole < 255)).mean()
                assert rim < 0.1
            if name == "Solarize":
                apart = apart[np.abs(picture - 255 * operation.magnitude) > 1e-4]
            allowed = 2 if name == "Contrast" else 1 if EXACT or name not in GEOMETRIC else 8
            assert apart.max(initial=0) <= allowed, (kind, operation)


@pytest.mark.parametrize("name", GEOMETRIC)
def test_pictures_end_where_pils_do_at_the_size_of_recipes(name: str):
    """White everywhere: what is black lies outside."""
    white = np.full((224, 224, 3), 255, np.uint8)
    for magnitude in magnitudes("trivial", 224)[name][1::4]:
        for sign in (1, -1):
            operation = Operation(name, sign * magnitude)
            expected = np.asarray(theirs(Image.fromarray(white), operation))
            assert np.array_equal(ours(white, operation), expected), operation


@pytest.mark.parametrize("policy", POLICIES)
def test_magnitudes_are_torchvisions(policy: str):
    space = POLICIES[policy]()._AUGMENTATION_SPACE
    for side in (32, 224):
        found = magnitudes(policy, side)
        assert list(found) == list(space)
        for name, (values, signed) in space.items():
            expected = values(BINS, side, side)
            assert found[name] == ((0.0,) if expected is None else tuple(map(float, expected.tolist())))
            assert signed == (name in SIGNED)


LIKE_TIMMS = {"Posterize": "PosterizeIncreasing", "Solarize": "SolarizeIncreasing"} | {
    name: f"{name}Increasing" for name in ("Color", "Contrast", "Brightness", "Sharpness")
}


@pytest.mark.parametrize("name", [name for name in INCREASING if name not in GEOMETRIC])
@pytest.mark.parametrize("level", [0.0, 3.3, 6.0, 7.0, 10.0])
def test_increasing_operations_are_timms(name: str, level: float):
    """Of pixels by PIL, with the side that timm draws turned to ours."""
    picture = pictures(SIDE)["noise"]
    named = LIKE_TIMMS.get(name, name)
    for negative in (False, True):
        given = timm_policies.LEVEL_TO_ARG[named]
        with mock.patch.object(timm_policies, "_randomly_negate", lambda v, sign=-1 if negative else 1: sign * v):
            arguments = given(level, {}) if given else ()
        if name == "Posterize":
            arguments = (max(1, *arguments),)  # PIL's least
        expected = np.asarray(timm_policies.NAME_TO_OP[named](Image.fromarray(picture), *arguments)).astype(int)
        found = ours(picture, Operation(name, increasing(name, level, SIDE, negative)))
        assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("name", GEOMETRIC)
def test_increasing_shifts_and_turns_are_as_far_as_timms(name: str):
    given = timm_policies.LEVEL_TO_ARG[f"{name}Rel" if name.startswith("Translate") else name]
    with mock.patch.object(timm_policies, "_randomly_negate", lambda v: v):
        (far,) = given(7.0, {})
    side = 224 if name.startswith("Translate") else 1  # timm's is a share of it
    assert increasing(name, 7.0, 224, False) == pytest.approx(far * side)
    assert increasing(name, 7.0, 224, True) == pytest.approx(-far * side)


def test_increasing_draws_of_fifteen_each_half_of_the_time():
    drawn = [draw_increasing(7, 0.5, 224, mix(i)) for i in range(6000)]
    counts = Counter(one.name for pair in drawn for one in pair)
    assert set(counts) == set(INCREASING) == set(EVERY) - {"Identity"}
    assert sum(counts.values()) == pytest.approx(6000, abs=5 * 3000**0.5)
    assert chi_squared(list(counts.values()), sum(counts.values()) / 15) < 5
    turns = [abs(one.magnitude) / 3 for pair in drawn for one in pair if one.name == "Rotate"]
    assert np.mean(turns) == pytest.approx(7, abs=5 * 0.5 / len(turns) ** 0.5)
    assert np.std(turns) == pytest.approx(0.5, rel=0.2)


def chi_squared(counts: list[int], expected: float) -> float:
    """In standard deviations from its mean."""
    free = len(counts) - 1
    return (sum((count - expected) ** 2 / expected for count in counts) - free) / math.sqrt(2 * free)


def test_trivial_draws_each_operation_magnitude_and_sign_equally_often():
    drawn = [draw("trivial", 224, mix(i)) for i in range(20_000)]
    assert {len(one) for one in drawn} == {1}
    counts = Counter(one.name for (one,) in drawn)
    assert set(counts) == set(VARY)
    assert chi_squared(list(counts.values()), 20_000 / 14) < 5
    for name, expected in (("Rotate", 2 * BINS - 2), ("Solarize", BINS)):
        of_it = Counter(one.magnitude for (one,) in drawn if one.name == name)
        zeros = of_it.pop(0.0) if name == "Rotate" else 0  # of both signs
        assert len(of_it) == expected
        assert chi_squared(list(of_it.values()), (counts[name] - zeros) / expected) < 5


def test_rand_draws_two_operations_apart_of_magnitude_nine():
    drawn = [draw("rand", 224, mix(i)) for i in range(20_000)]
    pairs = Counter((one.name, two.name) for one, two in drawn)
    assert chi_squared([pairs[a, b] for a in VARY for b in VARY], 20_000 / 14**2) < 5
    for one in (one for pair in drawn for one in pair):
        space = magnitudes("rand", 224)[one.name]
        assert abs(one.magnitude) == (space[0] if len(space) == 1 else space[9])
        assert one.magnitude >= 0 or one.name in SIGNED
    turns = [one.magnitude > 0 for pair in drawn for one in pair if one.name == "Rotate"]
    assert np.mean(turns) == pytest.approx(0.5, abs=5 * 0.5 / len(turns) ** 0.5)


def test_jitter_is_torchvisions_with_factors_and_order_drawn():
    drawn = [draw_jitter(0.4, mix(i)) for i in range(6000)]
    orders = Counter(tuple(one.name for one in three) for three in drawn)
    assert chi_squared(list(orders.values()), 1000) < 5
    assert len(orders) == 6
    for name in ("Brightness", "Contrast", "Color"):
        factors = np.array([1 + one.magnitude for three in drawn for one in three if one.name == name])
        assert 0.6 <= factors.min() < 0.61
        assert 1.39 < factors.max() <= 1.4
        assert factors.mean() == pytest.approx(1, abs=5 * 0.8 / 12**0.5 / 6000**0.5)
    picture = pictures(SIDE)["smooth"]
    adjust = {"Brightness": "adjust_brightness", "Contrast": "adjust_contrast", "Color": "adjust_saturation"}
    for one in drawn[0]:
        expected = getattr(v2.functional, adjust[one.name])(Image.fromarray(picture), 1 + one.magnitude)
        assert np.abs(ours(picture, one) - np.asarray(expected)).max() <= 1


def test_erasing_is_drawn_as_torchvision_draws():
    found = [draw_erasing(0.25, 64, mix(i)) for i in range(16_000)]
    boxes = np.array([box for box in found if box])
    assert len(boxes) / 16_000 == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 16_000) ** 0.5)
    torch.manual_seed(0)
    image = torch.zeros(3, 64, 64)
    drawn = [v2.RandomErasing().make_params([image]) for _ in range(4000)]
    expected = np.array([(one["i"], one["j"], one["h"], one["w"]) for one in drawn])

    def facts(boxes: np.ndarray) -> np.ndarray:
        top, left, height, width = boxes.T
        return np.array([top, left, height * width, np.log(height / width), height, width])

    ours, theirs = facts(boxes), facts(expected)
    error = np.sqrt(ours.var(1) / ours.shape[1] + theirs.var(1) / theirs.shape[1])
    assert (np.abs(ours.mean(1) - theirs.mean(1)) < 4 * error).all()
    assert ours.std(1) == pytest.approx(theirs.std(1), rel=0.06)
    assert (boxes[:, :2] + boxes[:, 2:]).max() <= 64
    assert boxes[:, :2].min() == 0
    assert draw_erasing(0.0, 64, 1) is None


def test_what_is_no_block_of_memory_is_refused():
    with pytest.raises(AssertionError, match="reshape"):
        vary(np.zeros((8, 8, 3), np.uint8).transpose(2, 0, 1), Operation("Solarize", 0.0))
