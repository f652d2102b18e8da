"""What is a backbone worth? Pretrains what has to be, puts each backbone into the same detector, and compares.

Every run is an ordinary one of jobs/pretrain.py or jobs/finetune.py under its own name, so that what is finished is
never done again, and what was interrupted goes on.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic import Field, model_validator
from tqdm import tqdm

from backbone.cli import laid_over, read_yaml, validate
from backbone.compute import Scaling
from backbone.errors import Lost, UserError
from backbone.lease import lease
from backbone.options import Seed, Strict
from backbone.parallel import Task, run_all
from backbone.storage import join
from backbone.training.recipe import Recipe, TrainingRecipe
from backbone.training.run import first_micro_batch, recorded_precision, run_place, run_url
from detection.called import may_be_called
from detection.recipe import Finetune

if TYPE_CHECKING:
    from backbone.nets import Backbone

K = TypeVar("K")
R = TypeVar("R", bound=TrainingRecipe)


class Row(Strict):
    """One backbone to compare. Exactly one of these:"""

    pretrain: str = ""
    """Recipe of jobs/pretrain.py that makes it."""

    artifact: str = ""
    """Folder or URL of a backbone artifact."""

    scratch: str = ""
    """Another row: its net with new weights, never pretrained. Nothing of it is fixed; where the detector's recipe
    freezes norms, it is built with group norm."""

    seeds: tuple[Seed, ...] = ()
    """Fine-tuned once with each of these; none: with the comparison's `seeds`."""

    @model_validator(mode="after")
    def _one(self) -> "Row":
        given = [field for field in ("pretrain", "artifact", "scratch") if getattr(self, field)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of pretrain, artifact, scratch, not {len(given)}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)}: give each once")
        return self


class Gains(Strict):
    """Compare backbones in one detector. A YAML file gives the fields (--config FILE), the command line overrides.

    The rows are in the file: `rows: {LABEL: {pretrain: RECIPE}, LABEL: {artifact: URL}, LABEL: {scratch: LABEL}}`. Any
    field of the recipes named there can be replaced: --pretrain_with.data.train DIR, --finetune_with.optim.lr 0.01.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    """The report, and the beginning of its runs' names."""

    rows: dict[str, Row] = Field(default_factory=dict)
    """Label -> backbone, in the order of the report."""

    baseline: str
    """Label of the row that the others' gains are over."""

    finetune: str
    """Recipe of jobs/finetune.py, without a backbone. All rows are trained and judged by it."""

    pretrain_with: dict[str, Any] = Field(default_factory=dict)
    """Fields that replace those of every row's pretraining recipe: --pretrain_with.data.train /data/imagenet/train."""

    finetune_with: dict[str, Any] = Field(default_factory=dict)
    """Fields that replace those of the fine-tuning recipe: --finetune_with.data.train /data/coco/train2017."""

    scratch_with: dict[str, Any] = Field(default_factory=dict)
    """Fields that replace those of the fine-tuning recipe in rows from scratch, which want about three times the steps
    of a fine-tuning (arXiv:1811.08883): --scratch_with.schedule.total 270000."""

    seeds: tuple[Seed, ...] = (0,)
    """Each backbone is fine-tuned once with each."""

    pretrain_seeds: tuple[Seed, ...] = ()
    """Each row with `pretrain` is pretrained once with each, and each of these backbones fine-tuned with `seeds`; none:
    once, with its recipe's seed. Fine-tunings are nested: a backbone of another seed than the recipe's is fine-tuned
    with seeds derived from its own and each of `seeds`, so that no two fine-tunings of a row have a seed in common."""

    storage: str = "runs"
    """Folder or URL of all runs and of the report, seen by every node."""

    parallel: int = Field(0, ge=0)
    """Most runs at a time. 0: as many as the cluster has room for."""

    resamples: int = Field(1000, ge=100)
    """Bootstrap resamples of the validation images."""

    half_width: float = Field(1.0, gt=0)
    """Wanted of a gain's 95 % interval, points of AP: the report says how many trainings a row it takes."""

    @model_validator(mode="after")
    def _possible(self) -> "Gains":
        for label, row in self.rows.items():
            if not label.replace("-", "").replace("_", "").replace(".", "").isalnum():
                raise ValueError(f"row {label!r}: use letters, digits, - _ and . (it becomes part of a run's name)")
            if row.scratch and (row.scratch not in self.rows or self.rows[row.scratch].scratch):
                raise ValueError(f"row {label}: scratch {row.scratch!r} is not a row with a pretrained backbone")
        if self.baseline not in self.rows:
            raise ValueError(f"baseline {self.baseline!r} is not among the rows {', '.join(self.rows)}")
        if len(self.rows) < 2:
            raise ValueError("rows: comparing takes at least two")
        if self.pretrain_with and not any(row.pretrain for row in self.rows.values()):
            raise ValueError("pretrain_with is read by rows with pretrain, and there is none")
        if self.scratch_with and not any(row.scratch for row in self.rows.values()):
            raise ValueError("scratch_with is read by rows with scratch, and there is none")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)}: give at least one, each once")
        if len(set(self.pretrain_seeds)) != len(self.pretrain_seeds):
            raise ValueError(f"pretrain_seeds {list(self.pretrain_seeds)}: give each once")
        if self.pretrain_seeds and not any(row.pretrain for row in self.rows.values()):
            raise ValueError("pretrain_seeds is read by rows with pretrain, and there is none")
        if self.pretrain_seeds and "seed" in self.pretrain_with:
            raise ValueError("pretrain_with.seed and pretrain_seeds: give one of them")
        return self

    def short(self, name: str) -> str:
        """A run's name within the comparison, which its lines and messages begin with."""
        return name.removeprefix(f"{self.name}-")


class Pretraining(NamedTuple):
    """Which backbone of a comparison: the row, and the seed it is pretrained with."""

    label: str
    seed: int


class Training(NamedTuple):
    """Which detector of a comparison: the row, the pretraining where it has one here, and one of the row's `seeds`."""

    label: str
    pretraining: Pretraining | None
    seed: int


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


def plan(gains: Gains) -> Plan:
    """The recipes of all runs; UserError for every mistake that can be seen before anything is trained."""
    from backbone.data.stream import mix  # imports numpy

    todo = Plan(_pretrainings(gains), {})
    pretrained = laid_over(read_yaml(gains.finetune), gains.finetune_with)
    scratch = laid_over(pretrained, laid_over(_from_scratch(pretrained), gains.scratch_with))
    for label, row in gains.rows.items():
        made = todo.made(row.scratch or label)
        for pretraining in made if row.pretrain else [None]:
            backbone = gains.rows[row.scratch or label].artifact
            backbone = backbone or join(run_url(made[pretraining or _first(made)]), "artifact")
            begins = made[pretraining].run_name if pretraining else f"{gains.name}-{label}"
            for seed in row.seeds or gains.seeds:
                own = not pretraining or begins == f"{gains.name}-{label}"
                overrides: dict[str, Any] = {
                    "backbone": backbone,
                    "name": f"{begins}-seed{seed}",
                    "seed": seed if own else mix(pretraining.seed, seed) >> 1,
                    "run.storage": gains.storage,
                }
                recipe = validate(Finetune, scratch if row.scratch else pretrained, gains.finetune, overrides)
                _check_norms(recipe, label)
                todo.finetunings[Training(label, pretraining, seed)] = recipe
    names = [recipe.run_name for recipe in (*todo.pretrainings.values(), *todo.finetunings.values())]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"rows: two runs would be called {', '.join(twice)}; give one of the rows another label")
    return todo


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
            tree = laid_over(read_yaml(row.pretrain), gains.pretrain_with)
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
    from detection import finetune
    from detection.data.sources import open_sources

    train, val = open_sources(next(iter(todo.finetunings.values())).data)
    finetune.check_ground_truth(val)
    looked_at = {(recipe.backbone, recipe.from_scratch): recipe for recipe in todo.finetunings.values()}
    for recipe in looked_at.values():
        finetune.build_detector(recipe, backbone_of(todo, recipe), train)


def backbone_of(todo: Plan, recipe: Finetune) -> "Backbone":
    """The net of a fine-tuning; of one that is to be pretrained here shapes alone, on the meta device."""
    import torch

    from backbone.nets import build
    from detection.finetune import load_backbone, scratch_net

    for made in todo.pretrainings.values():
        if recipe.backbone == join(run_url(made), "artifact"):
            options = scratch_net(made.model, recipe.detector.norm) if recipe.from_scratch else made.model
            with torch.device("meta"):
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
    from backbone.cluster import connect, room
    from backbone.training.pretrain import PRETRAIN
    from detection.finetune import FINETUNE

    done = [PRETRAIN.finished(run_url(recipe)) for recipe in todo.pretrainings.values()]
    done += [FINETUNE.finished(run_url(recipe)) for recipe in todo.finetunings.values()]
    on_ray = any(scaling.num_workers for scaling in todo.scaling) and not all(done)
    places, leave = 1, None
    if on_ray:
        ray, started = connect(say)
        leave = ray.shutdown if started else None
    try:
        if on_ray:
            places = min(room(scaling) // max(1, scaling.num_workers) for scaling in todo.scaling)
        parallel = max(1, min(gains.parallel or places, places))
        say(
            f"{len(todo.pretrainings)} pretraining and {len(todo.finetunings)} fine-tuning run(s), {parallel} at a time"
        )
        failed, left_out = run_all(_in_order(gains, todo, say), parallel)
    finally:
        if leave:
            leave()
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
