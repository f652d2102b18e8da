"""What a sweep's trial is worth in detection: its backbone in one detector, by one recipe for all trials."""

from typing import Any

from backbone.cli import laid_over, read_yaml, validate
from backbone.storage import join
from backbone.sweep.options import Sweep
from detection.recipe import Finetune


def recipe_for(sweep: dict[str, Any], run: str) -> Finetune:
    """The fine-tuning of a trial's backbone, a run of its own inside the trial's; `sweep` is the sweep's recipe.

    Raises:
        UserError: `sweep["finetune"]` or what `finetune_with` replaces in it is no recipe.
    """
    tree = laid_over(read_yaml(sweep["finetune"]), sweep["finetune_with"])
    overrides = {"backbone": join(run, "artifact"), "name": "detector", "run.storage": run}
    return validate(Finetune, tree, sweep["finetune"], overrides)


def check(sweep: Sweep) -> None:
    """Look at the recipe and its data before anything is trained.

    Raises:
        UserError: they are not usable.
    """
    from detection.data.sources import open_sources
    from detection.engine import check_ground_truth

    check_ground_truth(open_sources(recipe_for(sweep.model_dump(mode="json"), "/nowhere").data)[1])


def average_precision(run: str, sweep: dict[str, Any]) -> float:
    """Fine-tune and judge the backbone of a finished run; its AP (COCO's, 0.50 to 0.95), from 0 to 1."""
    from backbone.training.cluster import launch
    from detection.engine import finetune, finished, prepare

    payload = prepare(recipe_for(sweep, run))
    metrics = finished(payload["url"]) or launch(finetune, payload, recipe_for(sweep, run).scaling)
    return metrics["bbox"]["AP"]
