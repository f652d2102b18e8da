"""Training from Python: what the jobs do, as functions.

run = backbone.pretrain("quickstart/residual.yaml", name="mine", optim={"lr": 0.1})
net, inputs, about = backbone.load(run.artifact)
"""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from backbone.cli import laid_over, read_yaml, validate
from backbone.job import Outcome, submit
from backbone.training.pretrain import PRETRAIN
from backbone.training.recipe import Recipe

M = TypeVar("M", bound=BaseModel)
Given = BaseModel | str | Path | dict[str, Any]


def told(model: type[M], recipe: Given, changes: dict[str, Any]) -> M:
    """The recipe with `changes` laid over it.

    Args:
        recipe: a `model`, a file of one (`quickstart/residual.yaml` is one that raybone brings), or its sections.
        changes: fields and sections, `{"seed": 1, "optim": {"lr": 0.1}}`, or by dotted names, `{"optim.lr": 0.1}`.

    Raises:
        UserError: all that is wrong with them, a line each.
    """
    if isinstance(recipe, str | Path):
        tree, where = read_yaml(recipe), str(recipe)
    else:
        tree, where = (recipe.model_dump(mode="json") if isinstance(recipe, BaseModel) else recipe), ""
    sections = {name: value for name, value in changes.items() if "." not in name}
    dotted = {name: value for name, value in changes.items() if "." in name}
    return validate(model, laid_over(tree, sections), where, dotted)


def pretrain(recipe: Recipe | str | Path | dict[str, Any], **changes: Any) -> Outcome:
    """Pretrain a backbone, as `jobs/pretrain.py`: from the beginning, from where it stopped, or not at all where it is
    finished.

    `recipe` and `changes` are as in `told`. The outcome has `url`, `artifact` and `results`: top-1 and top-5 error in
    percent (`val_error` and, of more than five classes, `val_top5_error`).

    Raises:
        UserError: a mistake in recipe or data; or another process is at this run.
        FloatingPointError: the training diverged.
    """
    return submit(PRETRAIN, told(Recipe, recipe, changes))
