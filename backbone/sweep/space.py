"""The points of a search space, and the recipes they stand for. Points are functions of (seed, number)."""

import difflib
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from backbone.cli import fields, laid_over, read_yaml, validate
from backbone.errors import UserError
from backbone.storage import join
from backbone.sweep.options import Distribution, Sweep
from backbone.training.recipe import Recipe

Point = dict[str, Any]
REPEATS = 10_000
"""Points in a row that were there before, after which ranges are taken to hold no others: four digits are kept."""

CHECKED = 256
"""Points of an endless or large space that are checked before the first trial."""


def base_tree(sweep: Sweep) -> dict[str, Any]:
    """The base recipe as sections of fields, with `base_with` over it."""
    return laid_over(read_yaml(sweep.base), sweep.base_with)


def recipe_at(sweep: Sweep, tree: dict[str, Any], point: Point, overrides: dict[str, Any] | None = None) -> Recipe:
    """The recipe of a point. A section among its values is laid over the base's: what it does not name stays.

    Raises:
        UserError: it is none, or fields of it do not go together.
    """
    for field, value in point.items():
        for section in reversed(field.split(".")):
            value = {section: value}
        tree = laid_over(tree, value)
    return validate(Recipe, tree, f"{sweep.base} at {told(point)}", overrides)


def recipe_of(sweep: Sweep, tree: dict[str, Any], url: str, folder: str, point: Point) -> Recipe:
    """The recipe of a trial: the point's, as a run of its own in `folder` below the sweep's `url`."""
    below, _, name = folder.rpartition("/")
    return recipe_at(sweep, tree, point, {"name": name, "run.storage": join(url, below)})


def told(point: Point) -> str:
    """A point in words."""
    return ", ".join(f"{field} {_value(value)}" for field, value in point.items())


def size(space: dict[str, Distribution]) -> float:
    """How many points there are; infinity where a range is continuous."""
    return math.prod(len(d.values) if d.values is not None else math.inf for d in space.values())


def grid(space: dict[str, Distribution]) -> Iterator[Point]:
    """All points, the last field varying fastest."""
    yield from (dict(zip(space, values, strict=True)) for values in itertools.product(*_all(space)))


def draw(space: dict[str, Distribution], rng: np.random.Generator) -> Point:
    """One point, each field drawn on its own."""
    point: Point = {}
    for field, d in space.items():
        if d.values is not None:
            point[field] = d.values[int(rng.integers(len(d.values)))]
        elif d.uniform:
            low, high = d.uniform
            point[field] = short(rng.uniform(low, high), d.uniform)
        else:
            point[field] = short(math.exp(rng.uniform(*np.log(d.loguniform))), d.loguniform)
    return point


def random_points(space: dict[str, Distribution], seed: int) -> Iterator[Point]:
    """Different points in random order, without end where the space has none."""
    seen: set[str] = set()
    rng, most, repeats = np.random.default_rng(seed), size(space), 0
    while len(seen) < most and not (most == math.inf and repeats == REPEATS):
        point = draw(space, rng)
        repeats += 1
        if key(point) not in seen:
            repeats = 0
            seen.add(key(point))
            yield point


def key(point: Point) -> str:
    """Equal for equal points."""
    return json.dumps(point, sort_keys=True, default=str)


def check(sweep: Sweep) -> list[Recipe]:
    """Recipes of all points of the space, or of many where there are too many, each one valid.

    Raises:
        UserError: a field that recipes do not have, values of a wrong type, or points that are no recipe.
    """
    known = fields(Recipe)
    sections = {name.rpartition(".")[0] for name in known} - {""}
    sections |= {section.rpartition(".")[0] for section in sections} - {""}
    fixed = {"name", "run.storage", "seed"}
    for field, d in sweep.space.items():
        if field in fixed:
            raise UserError(f"space: {field}: the sweep sets it itself; every trial is a run of its own")
        if field.partition(".")[0] in ("scaling", "run") or field in Recipe.PLACES:
            raise UserError(f"space: {field}: does not change what is learned; vary something else")
        if field in sections:
            wrong = [value for value in d.values or [None] if not isinstance(value, dict)]
            if wrong:
                raise UserError(f"space: {field}: is a section; its values are mappings of fields, not {wrong[0]!r}")
        elif field not in known:
            near = difflib.get_close_matches(field, [*known, *sections], 1, 0.5)
            raise UserError(f"space: {field}: recipes have no such field" + (f"; perhaps {near[0]}" if near else ""))
    tree = base_tree(sweep)
    validate(Recipe, tree, sweep.base)
    if size(sweep.space) <= CHECKED:
        points = list(grid(sweep.space))
    else:
        points = [*_corners(sweep.space), *itertools.islice(random_points(sweep.space, sweep.seed), CHECKED)]
    return [recipe_at(sweep, tree, point) for point in points]


def _corners(space: dict[str, Distribution]) -> Iterator[Point]:
    """The first point with each end or value of each field in its turn."""
    first = {field: _ends(d)[0] for field, d in space.items()}
    for field, d in space.items():
        yield from ({**first, field: value} for value in _ends(d))


def _ends(d: Distribution) -> list[Any]:
    return d.values if d.values is not None else list(d.uniform or d.loguniform)


def _all(space: dict[str, Distribution]) -> list[list[Any]]:
    return [d.values or [] for d in space.values()]


def short(value: float, ends: tuple[float, ...]) -> float:
    """Four digits are enough to search with and can be read; never outside the range."""
    return min(max(float(f"{value:.4g}"), ends[0]), ends[1])


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_value(v)}" for k, v in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)
