"""What a sweep's trial is worth in detection: its backbone in one detector, by one recipe for all trials."""

from dataclasses import dataclass
from typing import Any

from backbone.cli import laid_over, read_yaml, validate
from backbone.lease import PATIENCE
from backbone.storage import join
from backbone.sweep.options import Sweep
from detection.recipe import Finetune


@dataclass(frozen=True)
class DetectionAP:
    """Called with a finished run's URL, it fine-tunes and returns AP (COCO's, 0.50 to 0.95), from 0 to 1.

    Read on the driver: the nodes where it is called need not have the recipe's file.
    """

    tree: dict[str, Any]
    file: str

    @staticmethod
    def of(sweep: Sweep) -> "DetectionAP":
        """By the recipe that the sweep names, with what it replaces in it.

        Raises:
            UserError: the file is missing or not YAML.
        """
        return DetectionAP(laid_over(read_yaml(sweep.finetune), sweep.finetune_with), sweep.finetune)

    def recipe(self, run: str) -> Finetune:
        """The fine-tuning of a run's backbone, a run of its own inside that run; UserError where it is no recipe."""
        overrides = {"backbone": join(run, "artifact"), "name": "detector", "run.storage": run}
        return validate(Finetune, self.tree, self.file, overrides)

    def check(self) -> None:
        """Look at recipe and data before anything is trained; UserError where they are not usable."""
        from detection.data.sources import open_sources
        from detection.finetune import check_ground_truth

        check_ground_truth(open_sources(self.recipe("/nowhere").data)[1])

    def __call__(self, run: str) -> float:
        from backbone.job import submit
        from detection.finetune import FINETUNE

        return submit(FINETUNE, self.recipe(run), patience=PATIENCE).results["bbox"]["AP"]
