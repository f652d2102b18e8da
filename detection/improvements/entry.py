"""What a comparison of a detection entry's steps is told, and its runs (arXiv:1512.03385, Table 9).

Imports nothing slow: errors come at once.
"""

from typing import Any, NamedTuple

from pydantic import Field, model_validator

from backbone.cli import laid_over, read_yaml, validate
from backbone.errors import UserError
from backbone.options import Seed, Strict
from backbone.storage import join
from backbone.training.run import run_place, run_url
from detection.recipe import DetectorEvaluation, Finetune

BASELINE = "baseline"


class EntryStep(Strict):
    """What is done beside all steps before it."""

    label: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ,.+-]*$")
    """Its row."""

    refine: bool = False
    """As in jobs/evaluate.py."""

    vote: bool = False
    """Likewise."""

    flip: bool = False
    """Likewise."""

    scales: tuple[int, ...] = ()
    """Likewise."""

    maxout: bool = False
    """Likewise."""

    train_with: dict[str, Any] = Field(default_factory=dict)
    """Fields of the fine-tuning recipe that are replaced from here on: {detector: {context: true}}, {data: {train:
    ...}}. The detector is trained anew with each seed."""

    ensemble: int = Field(0, ge=0)
    """So many detectors are fused, each of another seed. The seeds go into as many groups as they fill; with one group
    nobody knows what other trainings would give. 0: none."""

    @model_validator(mode="after")
    def _does_something(self) -> "EntryStep":
        if not any((self.refine, self.vote, self.flip, self.scales, self.maxout, self.train_with, self.ensemble)):
            raise ValueError(f"step {self.label!r}: names nothing to do")
        if self.ensemble == 1:
            raise ValueError(f"step {self.label!r}: ensemble 1 is a detector by itself; give 2 or more")
        return self


class Entry(Strict):
    """What each step of a detection entry is worth, one after another. A YAML file gives the fields (--config FILE),
    the command line overrides."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    """The table, and the beginning of its runs' names."""

    backbone: str = Field(min_length=1)
    """Backbone artifact: a folder or URL."""

    finetune: str
    """Recipe of jobs/finetune.py, without a backbone."""

    finetune_with: dict[str, Any] = Field(default_factory=dict)
    """Fields that replace those of the fine-tuning recipe."""

    evaluate_with: dict[str, Any] = Field(default_factory=dict)
    """Fields of jobs/evaluate.py, the same for all rows: {data: {source: coco, val: ...}}, {scaling: {num_workers: 4}}.
    Images that a step trains on are to be no part of these."""

    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    """Each detector is trained once with each."""

    steps: tuple[EntryStep, ...] = ()
    """In the order of the table."""

    storage: str = "runs"
    """Folder or URL of all runs and of the table, seen by every node."""

    resamples: int = Field(1000, ge=100)
    """Bootstrap resamples of the validation images."""

    timed_images: int = Field(20, ge=1)
    """The first of the validation images, which the cost of each row is measured on."""

    @model_validator(mode="after")
    def _possible(self) -> "Entry":
        if not self.steps:
            raise ValueError("steps: give one at least")
        labels = [BASELINE, *(step.label for step in self.steps)]
        if len({slug(label) for label in labels}) < len(labels):
            raise ValueError(f"steps {labels}: give each another label, by letters and digits: runs are called so")
        if len({*self.seeds}) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)}: give each once")
        for step in self.steps[:-1]:
            if step.ensemble:
                raise ValueError(f"step {step.label!r}: an ensemble comes last")
        if self.steps[-1].ensemble > len(self.seeds):
            raise ValueError(
                f"step {self.steps[-1].label!r}: ensemble {self.steps[-1].ensemble} takes as many seeds; there are "
                f"{len(self.seeds)}"
            )
        return self


class Row(NamedTuple):
    """A row of the table."""

    label: str
    trained: int
    """Which of `Plan.trainings` it judges."""

    groups: tuple[tuple[int, ...], ...]
    """Seeds of the detectors that are judged as one."""

    evaluations: tuple[DetectorEvaluation, ...]
    """One a group."""


class Plan(NamedTuple):
    """All recipes of a table, checked."""

    trainings: list[dict[int, Finetune]]
    """By seed; a new one for each step that trains anew."""

    rows: list[Row]


def plan(entry: Entry) -> Plan:
    """The recipes of all runs; UserError for every mistake that can be seen before anything is trained."""
    tree = laid_over(read_yaml(entry.finetune), entry.finetune_with)
    trainings = [_trainings(entry, tree, "")]
    done: dict[str, Any] = {}
    rows = [_row(entry, BASELINE, done, trainings, 0)]
    for step in entry.steps:
        given = {field: getattr(step, field) for field in ("refine", "vote", "flip", "scales", "maxout")}
        done |= {field: value for field, value in given.items() if value}
        if step.train_with:
            tree = laid_over(tree, step.train_with)
            trainings.append(_trainings(entry, tree, f"-{slug(step.label)}"))
        rows.append(_row(entry, step.label, done, trainings, step.ensemble))
    return Plan(trainings, rows)


def slug(label: str) -> str:
    """A label as part of a file's name."""
    return "-".join("".join(c if c.isalnum() or c in ".-" else " " for c in label).split())


def place(entry: Entry) -> str:
    """Where the table lies."""
    return run_place(entry.storage, entry.name, "storage")


def _trainings(entry: Entry, tree: dict[str, Any], suffix: str) -> dict[int, Finetune]:
    found = {
        seed: validate(
            Finetune,
            tree,
            entry.finetune,
            {
                "backbone": entry.backbone,
                "name": f"{entry.name}{suffix}-seed{seed}",
                "seed": seed,
                "run.storage": entry.storage,
            },
        )
        for seed in entry.seeds
    }
    if any(recipe.semantic for recipe in found.values()):
        raise UserError(f"{entry.finetune} is of kind semantic, and the steps of a table are for detectors of boxes")
    return found


def _row(entry: Entry, label: str, done: dict[str, Any], trainings: list[dict[int, Finetune]], ensemble: int) -> Row:
    size = ensemble or 1
    seeds = entry.seeds[: len(entry.seeds) // size * size]
    groups = tuple(seeds[i : i + size] for i in range(0, len(seeds), size))
    evaluations = []
    for group in groups:
        members = [join(run_url(trainings[-1][seed]), "artifact") for seed in group]
        output = join(place(entry), f"{slug(label)}-seed{'-'.join(map(str, group))}")
        tree = {**entry.evaluate_with, **done, "detector": members, "output": output}
        if {"detector", "output", *EntryStep.model_fields} & entry.evaluate_with.keys():
            raise UserError("evaluate_with: detectors, output and steps are the table's own; leave them out")
        evaluations.append(validate(DetectorEvaluation, tree, f"step {label!r}"))
    return Row(label, len(trainings) - 1, groups, tuple(evaluations))
