"""What a recipe refuses, and which of its fields make it another run."""

import json
import subprocess
import sys
from typing import Any

import pytest

from backbone.cli import fields, validate
from backbone.errors import UserError
from backbone.training.recipe import Recipe, identity, recipe_hash
from backbone.training.run import check_split

FILES = {"data.source": "imagefolder", "data.train": "a", "data.val": "b"}
PLATEAU = {"schedule.kind": "plateau"}
HOLD = {"schedule.hold_lr": 0.01}
GROWS = {"data.progressive": {"from_size": 160, "end": 3}}
PIECES = {"schedule.kind": "pieces", "schedule.milestones": [30]}


def recipe(**given: Any) -> Recipe:
    """`recipe(optim__lr=0.5)`, or with dotted names as `recipe(**{"optim.lr": 0.5})`."""
    return validate(Recipe, {}, "test", {name.replace("__", "."): value for name, value in given.items()})


UNREAD = [
    *(({"data.augment.kind": kind}, "data.augment.pca", 0.1) for kind in ("modern", "cifar", "none")),
    *(({"data.augment.kind": kind}, "data.augment.shorter_side", [300, 400]) for kind in ("modern", "cifar", "none")),
    *(
        ({"data.augment.kind": kind}, f"data.augment.{field}", value)
        for kind in ("paper", "cifar", "none")
        for field, value in (
            ("area", [0.5, 1]),
            ("policy", "rand"),
            ("jitter", 0.4),
            ("erasing", 0.1),
            ("mixup", 0.2),
            ("cutmix", 1.0),
            ("repeats", 3),
            ("magnitude", 5),
        )
    ),
    ({}, "data.train", "a"),
    ({}, "data.val", "b"),
    ({}, "data.cache", "c"),
    (FILES, "data.train_images", 7),
    (FILES, "data.val_images", 7),
    ({}, "data.max_bad", 3),
    *(({"schedule.kind": kind}, "schedule.milestones", [30]) for kind in ("cosine", "plateau", "constant")),
    *(({"schedule.kind": kind}, "schedule.gamma", 0.5) for kind in ("cosine", "constant")),
    *(({"schedule.kind": kind}, "schedule.patience", 2) for kind in ("cosine", "constant")),
    ({"schedule.kind": "steps", "schedule.milestones": [30]}, "schedule.patience", 2),
    ({}, "schedule.hold_until_error", 50),
    ({}, "schedule.hold_at_most", 5),
    ({"optim.momentum": 0}, "optim.nesterov", True),
    ({}, "optim.betas", [0.9, 0.95]),
    ({"optim.kind": "lamb"}, "optim.momentum", 0.95),
    ({"optim.kind": "adamw"}, "optim.nesterov", True),
    ({}, "optim.bce_threshold", 0.2),
    ({"data.augment.policy": "trivial"}, "data.augment.magnitude", 5),
    ({"data.augment.policy": "rand"}, "data.augment.magnitude_std", 0.5),
    ({"model.net": "vgg", "model.depth": 11}, "model.stochastic_depth", 0.1),
    ({"model.shortcut": "none"}, "model.stochastic_depth", 0.1),
    ({"scaling.num_workers": 0}, "scaling.min_workers", 1),
]


@pytest.mark.parametrize(("given", "field", "value"), UNREAD)
def test_what_nothing_reads_is_refused(given: dict[str, Any], field: str, value: Any):
    recipe(**given)
    with pytest.raises(UserError, match=field.split(".")[-1]):
        recipe(**given, **{field: value})


ONE = {"data.size": 32, "optim.batch": 8, "optim.micro_batch": 1}


@pytest.mark.parametrize("change", [{"data.size": 33}, {"optim.micro_batch": 2}, {"model.norm": "group"}])
def test_one_value_a_channel_is_mended_as_the_message_says(change: dict[str, Any]):
    recipe(**{**ONE, **change})


def test_a_micro_batch_that_follows_from_the_workers_is_checked_too():
    found = recipe(**{"data.size": 32, "optim.batch": 4, "scaling.num_workers": 4})
    with pytest.raises(UserError, match=r"optim\.micro_batch 1 gives it one value"):
        check_split(found.model_copy(update={"optim": found.optim.model_copy(update={"micro_batch": 1})}))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"data.source": "imagefolder", "data.val": "b"}, "data.train is empty: source imagefolder needs the location"),
        ({"data.source": "imagefolder", "data.train": "a"}, "data.val: source imagefolder needs it"),
        ({**FILES, "data.val": ""}, "data.val: String should have at least 1 character"),
        ({"data.augment.kind": "paper", "data.size": 288}, "below the crop of 288"),
        ({"data.augment.kind": "paper", "data.augment.shorter_side": [480, 256]}, "smaller, larger"),
        ({"data.augment.area": [0, 1]}, "smaller, larger"),
        ({"data.augment.area": [0.5, 1.5]}, "smaller, larger"),
        ({"data.augment.mixup": -1}, "mixup"),
        ({"optim.kind": "adamw", "optim.betas": [0.9, 1]}, r"optim\.betas\.1: .*less than 1"),
        ({"data.augment.policy": "rand", "data.augment.magnitude": 7.5}, "a whole number of 30"),
        ({"data.augment.policy": "increasing", "data.augment.magnitude": 11}, "takes 0 to 10"),
        ({"data.eval_size": 8}, "give 16 pixels or more"),
        ({"data.eval_size": 256, "data.normalize": "pixel"}, "leave eval_size out"),
        ({"data.progressive.end": 3}, "read with from_size only"),
        ({"data.progressive": {"from_size": 8, "end": 3}}, "give 16 pixels or more"),
        ({"data.progressive": {"from_size": 160, "start": 3, "end": 3}}, "end must be the later epoch"),
        ({"data.progressive": {"from_size": 224, "end": 3}}, "from_size 224: give less than size 224"),
        (
            {"data.progressive": {"from_size": 96, "end": 90, "step": 8}, "compute.compile": "default"},
            "more than 8 sizes, .*compile default .* data.progressive.step above 8, .*, or compute.compile none",
        ),
        ({"data.progressive": {"from_size": 160, "end": 10**12}}, "data.progressive.end: .* less than 2147483648"),
        ({"data.progressive": {"from_size": 0, "stop": 3}}, "progressive.stop: unknown key"),
        ({**GROWS, "data.augment.kind": "paper"}, "for augment modern, .* not for paper; set progressive.from_size 0"),
        ({**GROWS, "data.normalize": "pixel"}, "set progressive.from_size 0, or take dataset"),
        ({**GROWS, "data.resident": True}, "resident is for augment cifar or none"),
        (
            {**ONE, "model.depth": 18, "data.size": 64, "data.progressive": {"from_size": 32, "end": 3}},
            "images of data.progressive.from_size 32 leave .* one value a ch.* data.progressive.from_size above 32",
        ),
        (
            {**ONE, "data.size": 64, "data.progressive": {"from_size": 48, "end": 3}, "data.eval_size": 32},
            "images of data.eval_size 32 leave .* data.eval_size above 32",
        ),
        ({**ONE, "data.eval_size": 64}, "images of data.size 32 leave .* data.size above 32"),
        (
            {"model.net": "vgg", "model.depth": 11, "data.progressive": {"from_size": 16, "end": 3}},
            "data.progressive.from_size 16: the five pools",
        ),
        ({"data.augment.mixup": 0.2, "optim.batch": 15}, "must be even"),
        ({"data.augment.cutmix": 1, "optim.batch": 30, "optim.micro_batch": 15}, "must be even"),
        ({"optim.batch": 256, "optim.micro_batch": 30}, r"near it: \[8, 16, 32\]"),
        ({"optim.lr": float("nan")}, "optim.lr"),
        ({"schedule.total": float("inf")}, "schedule.total"),
        ({"schedule.kind": "steps"}, "schedule.milestones: kind steps needs it"),
        ({"schedule.kind": "steps", "schedule.milestones": []}, "schedule.milestones: Tuple should have at least 1"),
        ({"schedule.kind": "pieces", "schedule.milestones": [1]}, "schedule.rates: kind pieces needs it"),
        ({**PIECES, "schedule.rates": [0.1, 0.2]}, r"rates \[0.1, 0.2\]: give one a milestone, 1 in all"),
        ({**PIECES, "schedule.rates": [0]}, r"schedule.rates.0: .* greater than 0"),
        ({"schedule.kind": "steps", "schedule.milestones": [60, 30]}, "must rise"),
        ({"schedule.kind": "steps", "schedule.milestones": [30, 30]}, "must rise"),
        ({"schedule.kind": "steps", "schedule.milestones": [30, 90]}, "stay below total 90"),
        ({"schedule.warmup": 90}, "leaves nothing"),
        ({"schedule.warmup": 5, **HOLD}, "two ways to begin"),
        ({"scaling.num_workers": 2, "scaling.min_workers": 3}, "above num_workers 2"),
        ({"compute.precision": "fp16"}, "needs scaling.use_gpu"),
        ({**FILES, "data.decode": "nvjpeg"}, "set scaling.use_gpu, or data.decode exact"),
        ({"data.remote_cpus": 2, "scaling.num_workers": 0}, "num_workers 0 trains without Ray; set it to 1"),
        ({"model.bn_group": 24, "optim.micro_batch": 32}, "does not divide optim.micro_batch 32"),
        ({"name": "a/b"}, "name"),
        ({"name": ".."}, "name"),
        ({"name": "a\n"}, "name"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed: .*less than 9223372036854775808"),
        ({**ONE, "model.depth": 18}, "one value a channel; set optim.micro_batch to 2 or more, data.size above 32"),
        ({"data.size": 24, "model.net": "vgg", "model.depth": 11}, "five pools of vgg11_bn halve it to nothing"),
        ({**ONE, "model.norm": "sync"}, "optim.micro_batch 1 gives it one value"),
        ({**ONE, "optim.micro_batch": 4, "model.bn_group": 1}, "set model.bn_group to 2 or more"),
        ({**ONE, "model.norm": "group", "model.width": 0.0625}, "each of its 32 groups is a single value"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], complaint: str):
    with pytest.raises(UserError, match=complaint):
        recipe(**given)


def test_peak_lr_scales_with_the_batch():
    assert recipe(optim__batch=1024).optim.peak_lr == pytest.approx(0.4)
    assert recipe(optim__batch=1024, optim__lr_batch=0).optim.peak_lr == 0.1
    assert recipe(optim__batch=128, optim__lr_batch=128).optim.peak_lr == 0.1


SAME = {
    "name": "other",
    "published": "99.9 % somewhere",
    "data.train": "s3://elsewhere/train",
    "data.val": "s3://elsewhere/val",
    "data.cache": "/tmp",
    "data.keep_gb": 1.0,
    "data.workers": 0,
    "data.remote_cpus": 2,
    "data.resident": True,
    "scaling.num_workers": 4,
    "scaling.min_workers": 1,
    "scaling.use_gpu": True,
    "scaling.cpus_per_worker": 3,
    "scaling.max_failures": 0,
    "scaling.notice_every": 30,
    "scaling.grace": 0,
    "scaling.wait_at_most": 1,
    "scaling.placement": "SPREAD",
    "scaling.autoscales": True,
    "run.storage": "s3://runs",
    "run.log_every": 7,
    "run.checkpoint_every": 7,
    "run.eval_every": 3,
    "run.keep": 5,
    "run.track": "mlflow",
}
OTHER = {
    "seed": 1,
    "model.depth": 18,
    "model.shortcut": "C",
    "data.normalize": "pixel",
    "data.size": 160,
    "data.on_bad": "skip",
    "data.decode": "scaled",
    "data.augment.area": [0.25, 1],
    "optim.batch": 128,
    "optim.micro_batch": 64,
    "optim.lr": 0.2,
    "schedule.total": 91,
    "compute.precision": "fp32",
    "run.precise_bn": 0,
    "run.export": "best",
    "data.hold_out": 5,
    "data.eval_size": 288,
    "data.progressive": {"from_size": 160, "start": 0, "end": 3},
    "data.augment.repeats": 2,
    "model.stochastic_depth": 0.1,
    "optim.kind": "lamb",
    "optim.loss": "bce",
}


def test_another_place_is_the_same_run():
    files = {**FILES, "data.augment.kind": "cifar"}  # which may be resident
    base = recipe(**files)
    for name, value in SAME.items():
        given = {**files, name: value} | ({"scaling.num_workers": 2} if name == "scaling.min_workers" else {})
        assert recipe_hash(recipe(**given)) == recipe_hash(base), name
    at_once = {k: v for k, v in SAME.items() if k not in FILES and k != "data.remote_cpus"}  # not with resident
    assert recipe_hash(recipe(**files, **at_once)) == recipe_hash(base)


def test_other_mathematics_is_another_run():
    hashes = {recipe_hash(recipe(**FILES, **{name: value})) for name, value in OTHER.items()}
    assert len(hashes | {recipe_hash(recipe(**FILES))}) == len(OTHER) + 1


@pytest.mark.parametrize(
    ("given", "field"),
    [
        *((HOLD, field) for field in ("log_every", "eval_every", "checkpoint_every")),
        (PLATEAU, "eval_every"),
        ({"run.export": "best"}, "eval_every"),
    ],
)
def test_how_often_is_measured_counts_where_the_measurement_is_used(given: dict[str, Any], field: str):
    assert recipe_hash(recipe(**given)) != recipe_hash(recipe(**given, **{f"run.{field}": 7}))


def test_every_field_is_part_of_the_identity_or_known_not_to_be():
    kinds = [
        {"schedule.kind": "plateau", "data.augment.kind": "paper"},
        {**PIECES, "schedule.rates": [1], "data.augment.kind": "modern"},
        FILES,
    ]
    found = {field for given in kinds for field in identity(recipe(**given))}
    assert not found & Recipe.LATER.keys()
    assert found | Recipe.LATER.keys() | {name for name in SAME if name not in found} == fields(Recipe).keys()


@pytest.mark.parametrize("kind", ["cosine", "constant", "plateau"])
def test_what_only_other_kinds_read_is_no_part_of_the_identity(kind: str):
    assert not {"schedule.milestones", "schedule.rates"} & identity(recipe(schedule__kind=kind)).keys()


def test_identity_is_flat_and_survives_json():
    found = identity(recipe(**FILES, **{"data.augment.area": [0.5, 1]}))
    assert found["data.augment.area"] == [0.5, 1.0]
    assert json.loads(json.dumps(found)) == found


def test_run_name_is_given_or_derived_from_the_recipe_alone():
    assert recipe(name="mine").run_name == "mine"
    base = recipe(model__depth=18)
    assert base.run_name == f"resnet18-{recipe_hash(base)[:8]}"
    assert recipe(**{"model.depth": 18, "scaling.num_workers": 4, "run.storage": "/x"}).run_name == base.run_name
    assert recipe(model__depth=18, seed=1).run_name != base.run_name
    code = (
        "from backbone.training.recipe import Recipe; print(Recipe.model_validate({'model': {'depth': 18}}).run_name)"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert elsewhere.stdout.strip() == base.run_name


def test_a_recipe_survives_its_own_dump():
    given = {**FILES, **HOLD, "schedule.kind": "steps", "schedule.milestones": [3, 4], "data.augment.kind": "cifar"}
    assert Recipe.model_validate(json.loads(recipe(**given).model_dump_json())) == recipe(**given)


def test_a_recipe_recorded_when_all_kinds_had_all_fields_is_read_as_it_was_meant():
    """In JSON's types; what the kinds chosen do not read stood there at its default."""
    schedule = {"unit": "epochs", "total": 90.0, "milestones": [], "rates": [], "gamma": 0.1, "patience": 5}
    augment = {
        "shorter_side": [256, 480],
        "pca": 0.0,
        "area": [0.08, 1.0],
        "policy": "none",
        "mixup": 0.0,
        "cutmix": 0.0,
    }
    nowhere = {"train": "", "val": "", "cache": "", "train_images": 20_000, "val_images": 2_000}
    for kind, chosen, where in (("cosine", "cifar", {}), ("plateau", "paper", FILES), ("constant", "modern", FILES)):
        data = {**nowhere, **{name.removeprefix("data."): value for name, value in where.items()}}
        tree = {"schedule": {**schedule, "kind": kind}, "data": {**data, "augment": {**augment, "kind": chosen}}}
        expected = recipe(**{"schedule.kind": kind, "data.augment.kind": chosen}, **where)
        assert validate(Recipe, tree, "old") == expected
