"""Put a backbone into a detector and train it, on this machine or on a Ray cluster:

python jobs/finetune.py --config jobs/recipes/quickstart/detector.yaml --backbone runs/residual/artifact
python jobs/finetune.py --config jobs/recipes/starter/detect.yaml --backbone runs/residual/artifact \\
    --data.train boxes:train --data.val boxes:val
python jobs/finetune.py --config jobs/recipes/voc-paper/faster-rcnn-c4.yaml --from_detector runs/coco-detector/artifact
ray job submit --working-dir . -- python jobs/finetune.py --config ... --run.storage /shared/runs
"""

import sys

import backbone.begin  # noqa: F401
from backbone.cli import parse, run_main
from backbone.next_steps import after_detector
from detection.recipe import Finetune


def main() -> None:
    told = {"dry_run": "check everything, print the plan, then stop"}
    recipe, flags = parse(Finetune, sys.argv[1:], told, __doc__, recipe=True)
    from backbone.job import submit  # from here on torch and Ray are imported, which takes seconds
    from detection.finetune import FINETUNE
    from detection.plan import describe
    from detection.scoring import table

    if flags["dry_run"]:
        print(describe(recipe))
        return
    outcome = submit(FINETUNE, recipe)
    print(outcome.headline)
    print(table(outcome.results))
    print(f"curves    {outcome.url}/curves.png")
    print(f"results   {outcome.url}/results")
    print(f"artifact  {outcome.artifact}")
    print(after_detector(outcome.artifact, recipe.semantic))


if __name__ == "__main__":
    run_main(main, "go on")
