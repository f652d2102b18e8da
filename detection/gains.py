"""What is a backbone worth? Pretrains what has to be, puts each backbone into the same detector, and compares.

Every run is an ordinary one of jobs/pretrain.py or jobs/finetune.py under its own name, so that what is finished is
never done again, and what was interrupted goes on.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

from pydantic import Field, model_validator

from backbone.cli import laid_over, read_yaml, validate
from backbone.compute import Scaling
from backbone.errors import Lost, UserError
from backbone.lease import lease
from backbone.options import NetOptions, Seed, Strict
from backbone.parallel import Task, run_all
from backbone.storage import filesystem, join
from backbone.training.recipe import Recipe, TrainingRecipe
from backbone.training.run import recorded_precision, run_place, run_url
from detection.data.options import ScenesData
from detection.recipe import Finetune

K = TypeVar("K")
R = TypeVar("R", bound=TrainingRecipe)

OF_A_RUN = ("name", "backbone", "seed", "from_scratch", "run")
"""Fields of the fine-tuning recipe that differ between the rows."""


class Row(Strict):
    """One backbone to compare. Exactly one of these:"""

    pretrain: str = ""
    """Recipe of jobs/pretrain.py that makes it."""

    artifact: str = ""
    """Folder or URL of a backbone artifact."""

    scratch: str = ""
    """Another row: its net with new weights, never pretrained. Its norms train, whatever the detector's recipe says."""

    @model_validator(mode="after")
    def _one(self) -> "Row":
        given = [field for field in ("pretrain", "artifact", "scratch") if getattr(self, field)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of pretrain, artifact, scratch, not {len(given)}")
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

    seeds: tuple[Seed, ...] = (0,)
    """Each row is fine-tuned once with each. Their spread is reported."""

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
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)}: give at least one, each once")
        return self


class Plan(NamedTuple):
    """All recipes of a comparison, checked."""

    pretrainings: dict[str, Recipe]  # by label
    finetunings: dict[tuple[str, int], Finetune]  # by label and seed

    @property
    def scaling(self) -> list[Scaling]:
        """What all runs ask for."""
        recipes: list[TrainingRecipe] = [*self.pretrainings.values(), *self.finetunings.values()]
        return [recipe.scaling for recipe in recipes]


def plan(gains: Gains) -> Plan:
    """The recipes of all runs; UserError for every mistake that can be seen before anything is trained."""
    pretrainings: dict[str, Recipe] = {}
    for label, row in gains.rows.items():
        if row.pretrain:
            overrides: dict[str, Any] = {"run.storage": gains.storage, "name": f"{gains.name}-{label}"}
            tree = laid_over(read_yaml(row.pretrain), gains.pretrain_with)
            pretrainings[label] = validate(Recipe, tree, row.pretrain, overrides)
    artifacts = {label: join(run_url(recipe), "artifact") for label, recipe in pretrainings.items()}
    artifacts |= {label: row.artifact for label, row in gains.rows.items() if row.artifact}
    tree = laid_over(read_yaml(gains.finetune), gains.finetune_with)
    finetunings = {}
    for label, row in gains.rows.items():
        for seed in gains.seeds:
            overrides = {
                "backbone": artifacts[row.scratch or label],
                "name": f"{gains.name}-{label}-seed{seed}",
                "seed": seed,
                "run.storage": gains.storage,
            }
            if row.scratch:
                overrides |= {"from_scratch": True, "detector.freeze_at": 0}
                if tree.get("detector", {}).get("norm") == "frozen":
                    # Statistics that were never taken cannot be frozen.
                    overrides["detector.norm"] = "trainable"
            finetunings[label, seed] = validate(Finetune, tree, gains.finetune, overrides)
    return Plan(pretrainings, finetunings)


def check(todo: Plan) -> None:
    """Look at data and given artifacts now, and not when others have been pretrained for hours.

    Raises:
        UserError: they cannot be read, or the detector does not fit them.
    """
    from detection import finetune
    from detection.data.sources import open_sources

    train, val = open_sources(next(iter(todo.finetunings.values())).data)
    finetune.check_ground_truth(val)
    made = {join(run_url(recipe), "artifact") for recipe in todo.pretrainings.values()}
    looked_at = {(recipe.backbone, recipe.from_scratch): recipe for recipe in todo.finetunings.values()}
    for (backbone, from_scratch), recipe in looked_at.items():
        if backbone not in made:
            finetune.build_detector(recipe, finetune.load_backbone(backbone, from_scratch, recipe.seed)[0], train)


def run(gains: Gains, say: Callable[[str], None] = print) -> Plan:
    """Train and judge what is not there yet, as much at a time as the cluster holds.

    A row is fine-tuned as soon as its own backbone is there.

    Raises:
        UserError: a mistake in a recipe, data or an artifact, or another process at it; or a run that failed for one,
            the others being finished first.
    """
    todo = plan(gains)
    check(todo)
    with lease(run_place(gains.storage, gains.name, "storage"), say=say):
        _train(gains, Plan(_alike(todo.pretrainings), _alike(todo.finetunings)), say)
    return todo


def _alike(recipes: dict[K, R]) -> dict[K, R]:
    """With the precision that auto has come out as for those that have begun, also for those that have not: they may
    begin on other hardware, and what is compared is backbones."""
    kept = {key: recorded_precision(run_url(one)) for key, one in recipes.items() if one.compute.precision == "auto"}
    first = next((precision for precision in kept.values() if precision), None)
    if first is None:
        return recipes
    new = [key for key, precision in kept.items() if precision is None]
    return recipes | {key: recipes[key].with_precision(first) for key in new}


def _train(gains: Gains, todo: Plan, say: Callable[[str], None]) -> None:
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
    if failed:
        lines = [f"{label}: {error}" for label, error in failed.items()]
        kind = Lost if all(isinstance(error, Lost) for error in failed.values()) else UserError
        raise kind("\n".join([*lines, *(f"{label}: not begun, its backbone is missing" for label in left_out)]))


def _in_order(gains: Gains, todo: Plan, say: Callable[[str], None]) -> dict[str, Task]:
    """The runs row by row: each backbone, and after it its detectors."""
    from backbone.training.pretrain import PRETRAIN
    from detection.finetune import FINETUNE

    tasks: dict[str, Task] = {}
    for label, row in gains.rows.items():
        if row.pretrain:
            tasks[label] = Task(partial(_submit, PRETRAIN, todo.pretrainings[label], label, say))
        made_by = [one for one in (row.scratch or label,) if one in todo.pretrainings]
        for seed in gains.seeds:
            name = f"{label}/{seed}"
            tasks[name] = Task(partial(_submit, FINETUNE, todo.finetunings[label, seed], name, say), made_by)
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


def write_report(gains: Gains, todo: Plan, command: str) -> tuple[str, str]:
    """Write the report of finished runs into `<storage>/<name>`; returns its folder and its text as Markdown.

    Everything in it comes from the runs' own files. `command` is what makes it again.

    Raises:
        UserError: a run's results are missing or do not fit together.
    """
    from detection.data.sources import open_val
    from detection.report import summary as report

    rows = []
    for label in gains.rows:
        runs = {seed: run_url(todo.finetunings[label, seed]) for seed in gains.seeds}
        pretrain_seed = todo.pretrainings[label].seed if label in todo.pretrainings else None
        trainings = tuple(report.Training.read(join(url, "results"), seed, pretrain_seed) for seed, url in runs.items())
        provenance = trainings[0].metrics["provenance"]
        backbone, scratch = provenance["backbone"], bool(gains.rows[label].scratch)
        recipe = todo.finetunings[label, gains.seeds[0]]
        seconds = [_training_seconds(url, recipe.optim.batch) for url in runs.values()]
        net = NetOptions.model_validate(backbone["net"])
        trained = backbone["provenance"]
        rows.append(
            report.Row(
                label=label,
                net=net.name + (f", width {net.width:g}" if net.width != 1 else ""),
                pretrained=None if scratch else _pretrained_on(trained),
                params=provenance["cost"]["parameters"],
                macs=provenance["cost"]["backbone_macs"],
                train_seconds=sum(seconds) / len(seconds),
                pretrain={} if scratch else _accuracy(trained.get("metrics", {})),
                trainings=trainings,
            )
        )
    first = todo.finetunings[gains.baseline, gains.seeds[0]]
    place = "" if isinstance(first.data, ScenesData) else f" {first.data.val}"
    source = open_val(first.data)
    metrics = rows[0].trainings[0].metrics
    made_by = metrics["provenance"]
    index = {image_id: i for i, image_id in enumerate(source.image_ids.tolist())}
    folder = join(gains.storage, gains.name)
    told = report.write(
        folder,
        report.Report(
            title=f"What is a backbone worth? {gains.name}",
            baseline=gains.baseline,
            rows=tuple(rows),
            recipe={field: value for field, value in made_by["recipe"].items() if field not in OF_A_RUN},
            data={
                "validation": first.data.source + place,
                "images": metrics["images"],
                "training images": made_by["train_images"],
                "fingerprint": made_by["data"]["val"],
            },
            environment={
                "precision": _precision(rows),
                **{key: made_by[key] for key in ("hardware", "versions", "git", "created")},
            },
            command=command,
            half_width=gains.half_width / 100,
        ),
        lambda image_id: source.image(index[image_id]),
        gains.resamples,
    )
    return folder, report.to_markdown(told)


def _precision(rows: list[Any]) -> str:
    """What the detectors were trained in, and whose differ where not all are alike."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for one in row.trainings:
            found.setdefault(one.metrics["provenance"]["recipe"]["compute"]["precision"], []).append(row.label)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{precision}: {', '.join(dict.fromkeys(labels))}" for precision, labels in found.items())


def _pretrained_on(provenance: dict[str, Any]) -> str:
    """What a report says of a backbone's origin: data and images where trained here, the file where imported."""
    told = []
    data = provenance.get("recipe", {}).get("data", {})
    if data:
        place = f" {data['train']}" if data.get("train") else ""
        told.append(f"{data.get('source', 'unknown')}{place}, {provenance.get('train_images', 0):,} images")
    imported = provenance.get("imported")
    if imported:  # of one that was exported here once, the recipe is known as well
        told.append(f"imported from {imported['source']}: {imported['file']}")
    return "; ".join(told) or "unknown"


def _accuracy(metrics: dict[str, float]) -> dict[str, float]:
    return {"top-1": 1 - metrics["val_error"] / 100} if "val_error" in metrics else {}


def _training_seconds(url: str, batch: int) -> float:
    from backbone.training.state import training_seconds  # imports torch

    fs, path = filesystem(url)
    return training_seconds(json.loads(fs.cat_file(join(path, "history.json"))), batch)
