"""The strong recipes against their sources: papers, torchvision's weights and references, detectron2's config."""

import re
from pathlib import Path

import pytest
from torchvision.models import ResNet50_Weights

from backbone.cli import load, read_yaml, validate
from backbone.training.plan import describe
from backbone.training.recipe import Recipe, recipe_hash
from detection.recipe import Finetune

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"

STRONG = {"a2": 300, "a3": 100, "torchvision-v1": 90, "torchvision-v2": 600, "short": 16}


@pytest.mark.parametrize("name", STRONG)
def test_strong_recipes_say_first_what_their_source_published(name: str):
    path = f"imagenet-modern/resnet50-{name}.yaml"
    found = load(Recipe, RECIPES / path)
    first, text = (RECIPES / path).read_text().splitlines()[0], found.published
    assert first == f'published: "{text}"'
    assert re.match(r"\d\d\.\d+ % top-1", text)
    lines = describe(found, 1_281_167, 50_000, 1000)
    assert f"published  elsewhere: {text}" in lines
    assert f": {STRONG[name]:.1f} epochs" in lines
    judged = f"judged at  {found.data.judged_at} px"
    assert (judged in lines) == (found.data.size != found.data.judged_at) == (name in ("a3", "torchvision-v2", "short"))
    assert recipe_hash(found) == recipe_hash(found.model_copy(update={"published": ""}))
    assert found.model.zero_init_residual == (name in ("a2", "a3"))
    assert "25,557,032 parameters" in lines


def test_a2_and_a3_are_those_of_table_2():
    """arXiv:2110.00476."""
    for name, (size, lr, depth, magnitude, repeats) in {
        "a2": (224, 5e-3, 0.05, 7, 3),
        "a3": (160, 8e-3, 0, 6, 1),
    }.items():
        found = load(Recipe, RECIPES / f"imagenet-modern/resnet50-{name}.yaml")
        optim, data, augment = found.optim, found.data, found.data.augment
        assert (optim.kind, optim.batch, optim.peak_lr, optim.weight_decay) == ("lamb", 2048, lr, 0.02)
        assert (optim.loss, optim.label_smoothing, optim.ema, optim.decay) == ("bce", 0, 0, "no_norm_bias")
        assert (data.size, data.judged_at, data.crop_pct) == (size, 224, 0.95)
        assert (augment.policy, augment.magnitude, augment.magnitude_std) == ("increasing", magnitude, 0.5)
        assert (augment.mixup, augment.cutmix, augment.erasing, augment.repeats) == (0.1, 1, 0, repeats)
        assert (found.model.stochastic_depth, found.schedule.kind, found.schedule.warmup) == (depth, "cosine", 5)


def test_torchvisions_recipes_are_its_references():
    """Its arguments' defaults, and those of issue 3995; weights' `acc@1` are what is published."""
    first, second = (load(Recipe, RECIPES / f"imagenet-modern/resnet50-torchvision-v{k}.yaml") for k in (1, 2))
    for found, weights in ((first, ResNet50_Weights.IMAGENET1K_V1), (second, ResNet50_Weights.IMAGENET1K_V2)):
        assert found.published.startswith(f"{weights.meta['_metrics']['ImageNet-1K']['acc@1']:.3f} %")
        shown = weights.transforms()
        assert [found.data.judged_at] == shown.crop_size
        assert [int(found.data.judged_at / found.data.crop_pct)] == shown.resize_size
    assert (first.optim.batch, first.optim.peak_lr, first.optim.weight_decay, first.optim.ema) == (256, 0.1, 1e-4, 0)
    assert (first.schedule.total, first.schedule.milestones, first.schedule.gamma) == (90, (30, 60), 0.1)
    optim, augment = second.optim, second.data.augment
    assert (optim.batch, optim.peak_lr, optim.weight_decay, optim.label_smoothing) == (1024, 0.5, 2e-5, 0.1)
    assert (augment.policy, augment.erasing, augment.mixup, augment.cutmix) == ("trivial", 0.1, 0.2, 1)
    assert (augment.repeats, second.data.size, second.schedule.kind, second.schedule.warmup) == (4, 176, "cosine", 5)
    each_32 = 1 - (1 - 0.99998) * 1024 * 32 / 600  # references/classification/train.py, of `--model-ema-decay`
    assert optim.ema**32 == pytest.approx(each_32, abs=2e-6)


def test_large_scale_jitter_is_detectron2s():
    found = validate(Finetune, read_yaml(RECIPES / "coco-modern/mask-rcnn-fpn-lsj.yaml"), "lsj", {"backbone": "x"})
    augment, optim, steps = found.data.augment, found.optim, found.schedule
    assert (augment.canvas, augment.scales, augment.flip, augment.paste) == (1024, (0.1, 2.0), 0.5, 0)
    assert (optim.batch, optim.peak_lr, optim.weight_decay) == (64, 0.1, 4e-5)
    assert (steps.total, steps.milestones, steps.warmup) == (184_375, (163_889, 177_546), 500)
    assert (found.data.shorter_side, found.data.longer_side) == ((800,), 1333)
    assert found.published.startswith("44.6 AP of boxes, 40.3 of masks")
    assert (found.detector.norm, found.detector.freeze_at, found.detector.masks) == ("sync", 0, True)
