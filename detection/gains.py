"""What is a backbone worth? Pretrains what has to be, puts each backbone into the same detector, and compares.

Every run is an ordinary one of jobs/pretrain.py or jobs/finetune.py under its own name, so that what is finished is
never done again, and what was interrupted goes on.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tqdm import tqdm

from backbone.cli import laid_over, read_yaml, validate
from backbone.compute import Scaling
from backbone.errors import Lost, UserError
from backbone.lease import lease
from backbone.parallel import Task, run_all
from backbone.storage import join
from backbone.tracking import check as check_tracking
from backbone.training.recipe import Recipe, TrainingRecipe
from backbone.training.run import first_micro_batch, recorded_precision, run_place, run_url
from detection.called import may_be_called
from detection.gains_recipe import LAST, Block, Gains
from detection.recipe import Finetune

if TYPE_CHECKING:
    from backbone.nets import Backbone
    from detection.data.contract import DetectionSource

K = TypeVar("K")
R = TypeVar("R", bound=TrainingRecipe)


class Pretraining(NamedTuple):
    """Which backbone of a comparison: the row, and the seed it is pretrained with."""

    label: str
    seed: int


class Training(NamedTuple):
    """Which detector of a comparison: the row, the pretraining where it has one here, one of the row's `seeds`, and
    which of `Gains.blocks` it is trained and judged by."""

    label: str
    pretraining: Pretraining | None
    seed: int
    block: str = LAST


class Plan(NamedTuple):
    """All recipes of a comparison, checked."""

    pretrainings: dict[Pretraining, Recipe]
    finetunings: dict[Training, Finetune]

    @property
    def scaling(self) -> list[Scaling]:
        """What all runs ask for."""
        recipes: list[TrainingRecipe] = [*self.pretrainings.values(), *self.finetunings.values()]
        return [recipe.scaling for recipe in recipes]

    def made(self, label: str) -> dict[Pretraining, Recipe]:
        """The pretrainings of a row."""
        return {key: recipe for key, recipe in self.pretrainings.items() if key.label == label}

    def tuned(self, label: str) -> dict[Training, Finetune]:
        """The fine-tunings of a row."""
        return {key: recipe for key, recipe in self.finetunings.items() if key.label == label}

    def names(self) -> list[str]:
        """Of all runs, in order."""
        return [recipe.run_name for recipe in (*self.pretrainings.values(), *self.finetunings.values())]

    def of(self, block: str) -> "Plan":
        """With the fine-tunings of one block alone."""
        kept = {key: recipe for key, recipe in self.finetunings.items() if key.block == block}
        return self._replace(finetunings=kept)


def plan(gains: Gains) -> Plan:
    """The recipes of all runs; UserError for every mistake that can be seen before anything is trained."""
    from backbone.data.stream import mix  # imports numpy

    todo = Plan(_pretrainings(gains), {})
    judges = _judges(gains)
    for label, row in gains.rows.items():
        made = todo.made(row.scratch or label)
        backbone = gains.rows[row.scratch or label].artifact
        for pretraining, (block, judge) in product(made if row.pretrain else [None], judges.items()):
            tree = judge.scratch if row.scratch else judge.pretrained
            if tree is None:
                continue
            begins = made[pretraining].run_name if pretraining else f"{gains.name}-{label}"
            own = not pretraining or begins == f"{gains.name}-{label}"
            for seed in row.seeds or gains.seeds:
                overrides: dict[str, Any] = {
                    "backbone": backbone or join(run_url(made[pretraining or _first(made)]), "artifact"),
                    "name": f"{begins}-{block}-seed{seed}" if block else f"{begins}-seed{seed}",
                    "seed": seed if own else mix(pretraining.seed, seed) >> 1,
                    "run.storage": gains.storage,
                }
                recipe = validate(Finetune, tree, judge.where, overrides)
                _check_norms(recipe, label)
                todo.finetunings[Training(label, pretraining, seed, block)] = recipe
    names = todo.names()
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"rows: two runs would be called {', '.join(twice)}; give one of the rows another label")
    return todo


class Judge(NamedTuple):
    """The fields of a block's recipe."""

    where: str
    """The file, for messages."""

    pretrained: dict[str, Any]
    scratch: dict[str, Any] | None
    """None of a rung that fixes the backbone: what is random must train, so rows from scratch have no such rung."""


def _judges(gains: Gains) -> dict[str, Judge]:
    """By the names of `gains.blocks`."""
    named = gains.finetune if isinstance(gains.finetune, dict) else {LAST: Block(recipe=gains.finetune)}
    found = dict[str, Judge]()
    for name, block in named.items():
        tree = laid_over(laid_over(read_yaml(block.recipe), gains.finetune_with), block.finetune_with)
        scratch = laid_over(laid_over(_from_scratch(tree), gains.scratch_with), block.scratch_with)
        found[name] = Judge(block.recipe, tree, laid_over(tree, scratch))
    for rung, changes in gains.ladder.items():
        last = found[LAST]
        scratch = laid_over(last.scratch or {}, changes)
        fixes = bool(changes.get("detector", {}).get("freeze_at"))
        found[rung] = Judge(
            f"{last.where} with ladder.{rung}", laid_over(last.pretrained, changes), None if fixes else scratch
        )
    return {name: found[name] for name in gains.blocks}


def _from_scratch(tree: dict[str, Any]) -> dict[str, Any]:
    """What must be otherwise in a fine-tuning recipe for weights that are random: all of them train, and there are no
    statistics to freeze. Group norm does not care how few images a micro-batch has."""
    norm = {"norm": "group"} if tree.get("detector", {}).get("norm") == "frozen" else {}
    return {"from_scratch": True, "detector": {"freeze_at": 0, **norm}}


def _check_norms(recipe: Finetune, label: str) -> None:
    """UserError where a row would be judged by batch norm over too few images."""
    fix = "--scratch_with.detector.norm group" if recipe.from_scratch else "--finetune_with.detector.norm frozen"
    try:
        recipe.check_norm_images(recipe.optim.micro_batch or first_micro_batch(recipe), fix)
    except ValueError as error:
        raise UserError(f"row {label}: {error}") from error


def _first(made: dict[Pretraining, Recipe]) -> Pretraining:
    """Whose net a row from scratch has: any would do, but it must stay the same where others are added."""
    return min(made, key=lambda key: made[key].run_name.endswith(f"-pretrain{key.seed}"))


def _pretrainings(gains: Gains) -> dict[Pretraining, Recipe]:
    recipes = {}
    for label, row in gains.rows.items():
        if row.pretrain:
            tree = laid_over(laid_over(read_yaml(row.pretrain), gains.pretrain_with), row.pretrain_with)
            own: dict[str, Any] = {"run.storage": gains.storage, "name": f"{gains.name}-{label}"}
            recipe = validate(Recipe, tree, row.pretrain, own)
            for seed in gains.pretrain_seeds or (recipe.seed,):
                # With the recipe's own seed it is the run that it would be without pretrain_seeds.
                other = {} if seed == recipe.seed else {"seed": seed, "name": f"{own['name']}-pretrain{seed}"}
                recipes[Pretraining(label, seed)] = validate(Recipe, tree, row.pretrain, own | other)
    return recipes


def check(todo: Plan) -> None:
    """Look at data and given artifacts now, and not when others have been pretrained for hours.

    Raises:
        UserError: they cannot be read, or the detector does not fit them.
    """
    from backbone.training.pretrain import PRETRAIN, open_data
    from detection import finetune
    from detection.data.sources import open_sources

    for recipe in (*todo.pretrainings.values(), *todo.finetunings.values()):
        check_tracking(recipe)
    images = set[str]()
    for made in todo.pretrainings.values():
        if (data := made.data.model_dump_json()) not in images and PRETRAIN.finished(run_url(made)) is None:
            open_data(made.data, made.seed)
            images.add(data)
    opened: dict[tuple[bool, str], DetectionSource] = {}
    for recipe in todo.finetunings.values():
        key = recipe.semantic, recipe.data.model_dump_json()
        if key not in opened:
            train, val = open_sources(recipe.data, recipe.semantic)
            finetune.check_ground_truth(val)
            opened[key] = train
    looked_at = {(key.block, recipe.backbone, recipe.from_scratch): recipe for key, recipe in todo.finetunings.items()}
    for recipe in looked_at.values():
        train = opened[recipe.semantic, recipe.data.model_dump_json()]
        finetune.build_detector(recipe, backbone_of(todo, recipe), train)


def backbone_of(todo: Plan, recipe: Finetune) -> "Backbone":
    """The net of a fine-tuning; of one that is to be pretrained here shapes alone, on the meta device."""
    from backbone.nets import build
    from backbone.nets.meta import on_meta
    from detection.finetune import load_backbone, scratch_net

    for made in todo.pretrainings.values():
        if recipe.backbone == join(run_url(made), "artifact"):
            options = scratch_net(made.model, recipe.detector.norm) if recipe.from_scratch else made.model
            with on_meta():
                return build(options, 1000)  # no detector has its classifier
    return load_backbone(recipe)[0]


def run(gains: Gains, say: Callable[[str], None] = tqdm.write) -> tuple[Plan, dict[str, str]]:
    """Train and judge what is not there yet, as much at a time as the cluster holds.

    A row is fine-tuned as soon as its own backbone is there. A run that fails stops none but those it is needed for.

    Returns:
        The plan, and by run name why those that failed or were not begun have no results.

    Raises:
        UserError: a mistake in a recipe, data or an artifact, or another process at it.
    """
    todo = plan(gains)
    check(todo)
    with lease(run_place(gains.storage, gains.name, "storage"), say=say):
        return todo, _train(gains, Plan(_alike(todo.pretrainings), _alike(todo.finetunings)), say)


def _alike(recipes: dict[K, R]) -> dict[K, R]:
    """With the precision that auto has come out as for those that have begun, also for those that have not: they may
    begin on other hardware, and what is compared is backbones."""
    kept = {key: recorded_precision(run_url(one)) for key, one in recipes.items() if one.compute.precision == "auto"}
    first = next((precision for precision in kept.values() if precision), None)
    if first is None:
        return recipes
    new = [key for key, precision in kept.items() if precision is None]
    return recipes | {key: recipes[key].with_precision(first) for key in new}


def _train(gains: Gains, todo: Plan, say: Callable[[str], None]) -> dict[str, str]:
    from backbone.cluster import joined, places_of, room
    from backbone.training.pretrain import PRETRAIN
    from detection.finetune import FINETUNE

    done = [PRETRAIN.finished(run_url(recipe)) for recipe in todo.pretrainings.values()]
    done += [FINETUNE.finished(run_url(recipe)) for recipe in todo.finetunings.values()]
    on_ray = any(scaling.num_workers for scaling in todo.scaling) and not all(done)
    parallel = 1
    with joined(say, on_ray):
        if on_ray:
            parallel = min(places_of(scaling, room(scaling), gains.parallel) for scaling in todo.scaling)
        say(
            f"{len(todo.pretrainings)} pretraining and {len(todo.finetunings)} fine-tuning run(s), {parallel} at a time"
        )
        failed, left_out = run_all(_in_order(gains, todo, say), parallel)
    for error in failed.values():
        if not isinstance(error, UserError | FloatingPointError):
            raise error
    if failed and all(isinstance(error, Lost) for error in failed.values()):
        raise Lost("\n".join(f"{label}: {error}" for label, error in failed.items()))
    return {name: str(error) for name, error in failed.items()} | dict.fromkeys(
        left_out, "not begun, its backbone is missing"
    )


def _in_order(gains: Gains, todo: Plan, say: Callable[[str], None]) -> dict[str, Task]:
    """The runs by name, row by row: each backbone, and after it its detectors."""
    from backbone.training.pretrain import PRETRAIN
    from detection.finetune import FINETUNE

    tasks: dict[str, Task] = {}

    def add(job: Any, recipe: TrainingRecipe, after: list[str]) -> None:
        name = gains.short(recipe.run_name)
        tasks[name] = Task(partial(_submit, job, recipe, name, say), after)

    for label, row in gains.rows.items():
        made = todo.made(row.scratch or label)
        for recipe in made.values() if row.pretrain else ():
            add(PRETRAIN, recipe, [])
        for key, recipe in todo.tuned(label).items():
            needed = [made[key.pretraining or _first(made)]] if made else []
            add(FINETUNE, recipe, [gains.short(one.run_name) for one in needed])
    return tasks


def _submit(job: Any, recipe: TrainingRecipe, label: str, say: Callable[[str], None]) -> None:
    from backbone.job import submit

    try:
        outcome = submit(job, recipe, label, say=lambda text: say(f"[{label}] {text}"))
    except (UserError, FloatingPointError):
        say(f"[{label}] failed")
        raise
    if outcome.seconds is None:
        say(f"[{label}] {outcome.url} is finished")


may_be_called(__name__)  # `detection.gains(recipe)`
