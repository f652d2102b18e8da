"""Nets that cannot be, and options that nothing would read, are refused before anything is built."""

from typing import Any

import pytest
from pydantic import ValidationError

from backbone.options import IMAGENET_DEPTHS, VGG_DEPTHS, NetOptions


def options(**given: Any) -> NetOptions:
    return NetOptions.model_validate(given)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "resnet50"),
        ({"depth": 34, "shortcut": "none"}, "plain34"),
        ({"net": "cifar_resnet", "depth": 110, "shortcut": "A"}, "cifar_resnet110"),
        ({"net": "cifar_resnet", "depth": 20, "shortcut": "none"}, "cifar_plain20"),
        ({"net": "vgg", "depth": 16, "norm": "none"}, "vgg16"),
        ({"net": "vgg", "depth": 16}, "vgg16_bn"),
    ],
)
def test_names(given: dict[str, Any], name: str):
    assert options(**given).name == name


def test_depths_of_the_papers_exist_and_no_others():
    allowed = {
        "resnet": {18, 34, 50, 101, 152},
        "vgg": {11, 13, 16, 19},
        "cifar_resnet": {6 * n + 2 for n in range(1, 21)},
    }
    assert (set(IMAGENET_DEPTHS), set(VGG_DEPTHS)) == (allowed["resnet"], allowed["vgg"])
    for net, depths in allowed.items():
        for depth in range(-4, 123):
            if depth in depths:
                assert options(net=net, depth=depth).depth == depth
            else:
                with pytest.raises(ValidationError, match=f"depth {depth}: {net} has "):
                    options(net=net, depth=depth)
    assert options(net="cifar_resnet", depth=1202).depth == 1202


@pytest.mark.parametrize(("depth", "near"), [(1, "8"), (8 + 5, "8 or 14"), (112, "110 or 116")])
def test_cifar_depths_near_by_are_named(depth: int, near: str):
    with pytest.raises(ValidationError, match=f"6n\\+2 layers, so {near} "):
        options(net="cifar_resnet", depth=depth)


VGG = {"net": "vgg", "depth": 16}
PLAIN = {"depth": 18, "shortcut": "none"}


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({**VGG, "shortcut": "A"}, "shortcut is an option of residual nets"),
        ({**VGG, "shortcut_pad": "both"}, "shortcut_pad is an option of residual nets"),
        ({"depth": 34, "shortcut_pad": "both"}, "shortcut_pad both: only shortcut A pads; shortcut is B"),
        ({**PLAIN, "shortcut_pad": "both"}, "only shortcut A pads; shortcut is none"),
        ({**VGG, "stride_in_1x1": True}, "stride_in_1x1 is an option of residual nets"),
        ({**VGG, "shortcut_scale": 0.5}, "shortcut_scale is an option of residual nets"),
        ({**VGG, "residual_scale": 0.5}, "residual_scale is an option of residual nets"),
        ({**VGG, "preact": True}, "preact is an option of residual nets"),
        ({**VGG, "zero_init_residual": True}, "zero_init_residual is an option of residual nets"),
        ({"norm": "none"}, "only vgg"),
        ({"depth": 34, "stride_in_1x1": True}, "resnet34 has none"),
        ({"net": "cifar_resnet", "depth": 110, "stride_in_1x1": True}, "cifar_resnet110 has none"),
        ({**PLAIN, "shortcut_scale": 0.5}, "without meaning"),
        ({**PLAIN, "residual_scale": 0.5}, "without meaning"),
        ({**PLAIN, "preact": True}, "without meaning"),
        ({**PLAIN, "zero_init_residual": True}, "zero_init_residual needs shortcuts"),
        *(({"bn_group": 32, "norm": norm}, f"not by {norm}") for norm in ("sync", "frozen", "group")),
        ({**VGG, "norm": "none", "bn_group": 32}, "not by none"),
        ({"width": 0}, "width 0: give a factor above 0"),
        ({"width": float("nan")}, "finite"),
        ({"shortcut_scale": float("inf")}, "finite"),
        ({"bn_group": -1}, "bn_group -1: give a number of images"),
        ({"shortcut": "D"}, "'A', 'B', 'C' or 'none'"),
        ({"dpeth": 18}, "Extra inputs"),
    ],
)
def test_what_nothing_reads_or_nobody_can_build_is_refused(given: dict[str, Any], complaint: str):
    with pytest.raises(ValidationError, match=complaint):
        options(**given)


def test_options_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        options().depth = 18  # ty: ignore[invalid-assignment]


def test_every_field_has_a_help_text():
    assert [name for name, field in NetOptions.model_fields.items() if not field.description] == []
