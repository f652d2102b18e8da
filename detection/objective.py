"""What a sweep's trial is worth in detection: its backbone in one detector, by one recipe for all trials."""

from dataclasses import dataclass
from typing import Any

from backbone.cli import laid_over, read_yaml, validate
from backbone.errors import UserError
from backbone.lease import PATIENCE
from backbone.storage import join
from backbone.sweep.options import Sweep
from detection.recipe import Finetune

SECTIONS = {"AP": "bbox", "AP_masks": "segm"}
"""Of metrics.json."""


@dataclass(frozen=True)
class DetectionAP:
    """Called with a finished run's URL, it fine-tunes and returns what the sweep looks for of AP and AP_masks: COCO's,
    IoU 0.50 to 0.95, from 0 to 1, each with its `intervals`.

    Read on the driver: the nodes where it is called need not have the recipe's file.
    """

    tree: dict[str, Any]
    file: str
    objectives: tuple[str, ...]

    @staticmethod
    def of(sweep: Sweep) -> "DetectionAP":
        """By the recipe that the sweep names, with what it replaces in it.

        Raises:
            UserError: the file is missing or not YAML.
        """
        asked = tuple(name for name in sweep.objectives if name in SECTIONS)
        return DetectionAP(laid_over(read_yaml(sweep.finetune), sweep.finetune_with), sweep.finetune, asked)

    def recipe(self, run: str) -> Finetune:
        """The fine-tuning of a run's backbone, a run of its own inside that run; UserError where it is no recipe."""
        overrides = {"backbone": join(run, "artifact"), "name": "detector", "run.storage": run}
        return validate(Finetune, self.tree, self.file, overrides)

    def check(self) -> None:
        """Look at recipe and data before anything is trained; UserError where they are not usable."""
        from detection.data.sources import open_sources
        from detection.finetune import check_ground_truth

        recipe = self.recipe("/nowhere")
        if recipe.semantic:
            raise UserError(
                f"objectives {', '.join(self.objectives)}: {self.file} is of kind semantic, which has mIoU and no AP; "
                "name a recipe of another kind"
            )
        if "AP_masks" in self.objectives and not recipe.detector.masks:
            raise UserError(
                f"objective AP_masks: {self.file} has detector.masks false; add --finetune_with.detector.masks true"
            )
        train, val = open_sources(recipe.data)
        check_ground_truth(val)
        judged = {"train": train} if recipe.detector.masks else {}
        judged |= {"val": val} if "AP_masks" in self.objectives else {}
        lacking = [name for name, source in judged.items() if not source.has_masks]
        if lacking:
            raise UserError(
                f"{self.file}: not every object of data.{' and data.'.join(lacking)} has a segmentation; complete or "
                "remove those, give other data, or objective AP and --finetune_with.detector.masks false"
            )

    def __call__(self, run: str) -> dict[str, float]:
        from backbone.job import submit
        from detection.finetune import FINETUNE

        done = submit(FINETUNE, self.recipe(run), patience=PATIENCE)
        reached = {name: done.results[SECTIONS[name]]["AP"] for name in self.objectives}
        return reached | intervals(join(done.url, "results"), self.objectives)


def intervals(results: str, objectives: tuple[str, ...]) -> dict[str, float]:
    """The ends of each objective's 95 % interval of other validation images, `AP_low` and `AP_high`, from the matches
    in a results folder. Empty where no image has objects."""
    from detection.report.bootstrap import paired_draws
    from detection.report.intervals import of_images
    from detection.report.stored import load

    matches, found = load(results, "AP_masks" in objectives), {}
    if len(next(iter(matches.values())).image_ids) < 2:  # which says nothing of others
        return {}
    for name in objectives:
        draws = paired_draws({name: [matches[SECTIONS[name]]]})[name]  # ty: ignore[invalid-argument-type]
        if ends := of_images(draws[0, 0], 0, 1):
            found |= {f"{name}_low": ends.low, f"{name}_high": ends.high}
    return found
