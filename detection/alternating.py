"""Faster R-CNN's training in four steps (arXiv:1506.01497, section 3.2), each a run of jobs/finetune.py.

1. The proposal network, from the backbone. 2. The region heads on its proposals, from the backbone again: the two share
nothing yet. 3. A proposal network on the layers of step 2, which are fixed from here on. 4. The heads on its proposals.

Imports nothing slow: errors come at once.
"""

from collections.abc import Callable
from typing import Any

from pydantic import Field

from backbone.cli import laid_over, read_yaml, validate
from backbone.errors import UserError
from backbone.options import Seed, Strict
from backbone.storage import join
from backbone.training.run import run_url
from detection.recipe import Finetune

SHARED = 4
"""Parts of the backbone that proposals and regions of kind c4 share: stem, C2, C3 and C4."""


class Alternating(Strict):
    """Train a Faster R-CNN of kind c4 in four steps, not jointly. A YAML file gives the fields (--config FILE), the
    command line overrides."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    """The beginning of its runs' names: NAME-1-rpn, NAME-2-heads, NAME-3-rpn, and NAME-4-heads, the detector."""

    backbone: str = Field(min_length=1)
    """Backbone artifact: a folder or URL."""

    finetune: str
    """Recipe of jobs/finetune.py, of kind c4, without a backbone. Each step trains for as long as it says."""

    finetune_with: dict[str, Any] = Field(default_factory=dict)
    """Fields that replace those of the recipe."""

    rpn_with: dict[str, Any] = Field(default_factory=dict)
    """Fields that replace them in steps 1 and 3: {schedule: {total: 80000, milestones: [60000]}}."""

    heads_with: dict[str, Any] = Field(default_factory=dict)
    """Likewise in steps 2 and 4."""

    seed: Seed = 0
    """Of every step."""

    storage: str = "runs"
    """Folder or URL of the runs, seen by every node."""


def plan(options: Alternating) -> list[Finetune]:
    """The four recipes; UserError for every mistake that can be seen before anything is trained."""
    tree = laid_over(read_yaml(options.finetune), options.finetune_with)
    told = validate(Finetune, tree, options.finetune, {"backbone": options.backbone})
    if told.detector.kind != "c4":
        raise UserError(
            f"{options.finetune}: detector.kind {told.detector.kind}; four steps are for c4, whose proposals and "
            "regions share C4 and nothing else: --finetune_with.detector.kind c4, or jobs/finetune.py"
        )
    rpn, heads = laid_over(tree, options.rpn_with), laid_over(tree, options.heads_with)
    fixed = {"detector.freeze_at": max(SHARED, told.detector.freeze_at)}
    recipes: list[Finetune] = []

    def add(step: str, tree: dict[str, Any], **fields: Any) -> None:
        own = {"name": f"{options.name}-{step}", "seed": options.seed, "run.storage": options.storage}
        recipes.append(validate(Finetune, tree, options.finetune, {**own, **fields}))

    def done(number: int) -> str:
        return join(run_url(recipes[number - 1]), "artifact")

    last = {"run.export": "last"}  # AP says something after step 4 alone
    add("1-rpn", rpn, backbone=options.backbone, train="rpn", **last)
    add("2-heads", heads, backbone=options.backbone, train="heads", proposals=done(1), **last)
    add("3-rpn", rpn, from_detector=done(2), train="rpn", **fixed, **last)
    add("4-heads", heads, from_detector=done(3), train="heads", **fixed)
    return recipes


def run(options: Alternating, say: Callable[[str], None] = print) -> Any:
    """Train what is not there yet, one step after another; the last one's `Outcome`.

    Raises:
        UserError: a mistake in the recipe, data or backbone, or another process at one of the runs.
    """
    from backbone.job import submit_all
    from detection.finetune import FINETUNE

    return submit_all(FINETUNE, plan(options), say)[-1]
