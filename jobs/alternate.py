"""Train Faster R-CNN in its paper's four steps (RPN, detector, RPN, detector), not jointly:

python jobs/alternate.py --name steps --finetune jobs/recipes/quickstart/detector-c4.yaml \\
    --backbone runs/quickstart-residual/artifact
python jobs/alternate.py --name voc-steps --finetune jobs/recipes/voc-paper/faster-rcnn-c4.yaml \\
    --backbone runs/my-resnet101/artifact --rpn_with.schedule.total 80000 --rpn_with.schedule.milestones 60000 \\
    --heads_with.schedule.total 40000 --heads_with.schedule.milestones 30000
"""

import sys

import backbone.begin  # noqa: F401
from backbone.cli import parse, run_main
from detection.alternating import Alternating, plan


def main() -> None:
    told = {"dry_run": "print the four runs, then stop"}
    options, flags = parse(Alternating, sys.argv[1:], told, __doc__)
    if flags["dry_run"]:
        for recipe in plan(options):
            begins = recipe.from_detector or recipe.backbone
            print(f"{recipe.run_name}: trains {recipe.train}, from {begins}, freeze_at {recipe.detector.freeze_at}")
        return
    from detection.alternating import run  # from here on torch and Ray are imported, which takes seconds
    from detection.scoring import table

    outcome = run(options)
    print(table(outcome.results))
    print(f"results   {outcome.url}/results")
    print(f"artifact  {outcome.artifact}")


if __name__ == "__main__":
    run_main(main, "go on")
