"""Points, and the recipes they stand for: all of a grid, random ones once each, and no trial begins on a bad space."""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from backbone.errors import UserError
from backbone.sweep.options import Sweep
from backbone.sweep.space import base_tree, check, grid, key, random_points, recipe_at, size
from backbone.training.recipe import CosineSchedule, StepsSchedule
from tests.backbone.sweep.sweeps import make

Make = Callable[..., Sweep]


@pytest.fixture
def sweep(tmp_path: Path) -> Make:
    return partial(make, tmp_path)


def test_a_grid_is_every_combination_once(sweep: Make) -> None:
    space = sweep({"model.depth": {"choice": [8, 14]}, "optim.batch": {"integers": [8, 32, 8]}}).space
    points = list(grid(space))
    assert [tuple(p.values()) for p in points] == list(itertools.product([8, 14], [8, 16, 24, 32]))
    assert size(space) == 8


def test_random_points_differ_and_a_finite_space_is_used_up(sweep: Make) -> None:
    space = sweep({"model.depth": {"choice": [8, 14, 20]}, "optim.batch": {"integers": [8, 16, 8]}}).space
    points = list(random_points(space, 0))
    assert sorted(map(key, points)) == sorted(map(key, grid(space)))
    assert list(random_points(space, 0)) == points != list(random_points(space, 1))


def test_ranges_are_kept_and_logarithmic_ones_even_in_the_logarithm(sweep: Make) -> None:
    space = sweep({"optim.lr": {"loguniform": [0.001, 1.0]}, "optim.momentum": {"uniform": [0.8, 0.9]}}).space
    points = list(itertools.islice(random_points(space, 0), 3000))
    rates, momenta = ([p[field] for p in points] for field in space)
    assert 0.001 <= min(rates) <= max(rates) <= 1
    assert 0.8 <= min(momenta) <= max(momenta) <= 0.9
    for low, high in ((0.001, 0.01), (0.01, 0.1), (0.1, 1)):
        assert sum(low <= rate < high for rate in rates) / 3000 == pytest.approx(1 / 3, abs=0.03)


def test_a_point_is_laid_over_the_base_recipe(sweep: Make) -> None:
    sections = {"choice": [{"kind": "cosine"}, {"kind": "steps", "milestones": [8, 16]}]}
    asked = sweep({"model.depth": {"choice": [8]}, "schedule": sections}, base_with={"optim": {"lr": 0.2}})
    first, second = (recipe_at(asked, base_tree(asked), point, {"name": "x"}) for point in grid(asked.space))
    assert (first.model.depth, first.schedule.kind, first.schedule.total, first.optim.lr) == (8, "cosine", 24, 0.2)
    assert (second.schedule.kind, second.schedule.milestones, second.name) == ("steps", (8, 16), "x")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"model.dept": {"choice": [8]}}, r"space: model.dept: recipes have no such field; perhaps model.depth"),
    ({"model.depth": {"choice": ["deep"]}}, r"at model.depth deep: model.depth: Input should be a valid integer"),
    ({"model.depth": {"choice": [8, 9]}}, r"at model.depth 9: model: depth 9: cifar_resnet has 6n\+2 layers"),
    ({"optim.lr": {"uniform": [0.1, 2.0]}, "optim.momentum": {"uniform": [0.5, 1.5]}}, r"optim.momentum: Input should"),
    ({"optim.lr": {"uniform": [0.3, 0.1]}}, r"space.optim.lr: uniform \[0.3, 0.1\]: the range is empty"),
    ({"optim.lr": {"loguniform": [0.0, 0.1]}}, r"space.optim.lr: loguniform .* must lie above 0"),
    ({"optim.lr": {"choice": [0.1], "uniform": [0, 1]}}, r"space.optim.lr: give exactly one of .*, not 2"),
    ({"optim.lr": {"chioce": [0.1]}}, r"space.optim.lr.chioce: unknown key"),
    ({"model.depth": {"choice": [8, 8]}}, r"space.model.depth: choice \[8, 8\]: each value once"),
    ({"optim.batch": {"integers": [8, 32, 100]}}, r"space.optim.batch: integers .*the step must be from 1 to 24"),
    ({"schedule": {"choice": ["cosine"]}}, r"space: schedule: is a section; .* not 'cosine'"),
    ({"scaling.num_workers": {"choice": [1, 2]}}, r"scaling.num_workers: does not change what is learned"),
    ({"data.train": {"choice": ["a"]}}, r"data.train: does not change what is learned"),
    ({"name": {"choice": ["a"]}}, r"space: name: the sweep sets it itself"),
    ({"schedule": {"choice": [{}]}, "schedule.total": {"choice": [3]}}, r"schedule.total lies inside schedule"),
    (
        {"schedule.gamma": {"choice": [0.1, 0.2]}},
        r"at schedule.gamma 0.2: schedule.gamma: is read by kind steps or plateau",
    ),
    (
        {"schedule": {"choice": [{"kind": "steps"}]}},
        r"at schedule {kind: steps}: schedule.milestones: kind steps needs it",
    ),
    ({}, r"space: name at least one field"),
]


@pytest.mark.parametrize(("space", "complaint"), BAD, ids=[next(iter(space), "empty") for space, _ in BAD])
def test_a_bad_space_is_refused_with_the_field_named(sweep: Make, space: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        check(sweep(space))


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"search": "grid"}, r"search grid: optim.lr has no end of values"),
    ({"budget": {"trials": 0}}, r"budget.trials 0 means all points"),
    ({"objectives": ["AP"]}, r"objectives AP and AP_masks need finetune"),
    ({"objectives": ["AP_masks", "macs"]}, r"objectives AP and AP_masks need finetune"),
    ({"finetune": "detector.yaml"}, r"AP_masks need finetune, .* nothing else reads it"),
    ({"objectives": ["macs", "macs"]}, r"give at least one, each once"),
    ({"scheduler": {"kind": "none", "grace": 2}}, r"scheduler.grace: is read by kind asha, not by none"),
    ({"scheduler": {"kind": "pbt"}}, r"scheduler pbt changes optim.lr as it goes"),
]


@pytest.mark.parametrize(("more", "complaint"), FIELDS, ids=[str(more) for more, _ in FIELDS])
def test_fields_that_do_not_go_together(sweep: Make, more: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        sweep(**more)


def test_every_point_of_a_small_space_is_checked(sweep: Make) -> None:
    space = {"model.depth": {"choice": [8, 14]}, "model.shortcut": {"choice": ["A", "none"]}}
    names = [recipe.model.name for recipe in check(sweep(space))]
    assert names == ["cifar_resnet8", "cifar_plain8", "cifar_resnet14", "cifar_plain14"]


def test_fields_of_the_bases_own_kind_may_vary(sweep: Make) -> None:
    base = {"schedule": {"kind": "steps", "milestones": [8, 16]}}
    found = check(sweep({"schedule.gamma": {"choice": [0.1, 0.2]}}, base_with=base))
    assert [type(recipe.schedule) for recipe in found] == [StepsSchedule] * 2
    assert [recipe.schedule.gamma for recipe in found if isinstance(recipe.schedule, StepsSchedule)] == [0.1, 0.2]


def test_a_section_takes_back_what_the_bases_kind_has(sweep: Make) -> None:
    base = {"schedule": {"kind": "steps", "milestones": [8, 16]}}
    with pytest.raises(UserError, match=r"at schedule {kind: cosine}: schedule.milestones: is read by kind steps or p"):
        check(sweep({"schedule": {"choice": [{"kind": "cosine"}]}}, base_with=base))
    (found,) = check(sweep({"schedule": {"choice": [{"kind": "cosine", "milestones": []}]}}, base_with=base))
    assert isinstance(found.schedule, CosineSchedule)


def test_a_narrow_range_has_an_end(sweep: Make) -> None:
    space = sweep({"optim.momentum": {"uniform": [0.98, 0.99]}}).space
    found = [point["optim.momentum"] for point in random_points(space, 0)]
    assert sorted(found) == [round(0.98 + i / 10_000, 4) for i in range(101)]
