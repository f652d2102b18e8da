"""Put a backbone into a detector and train it, on this machine or on a Ray cluster:

python jobs/finetune.py --config jobs/recipes/coco-modern/faster-rcnn-fpn.yaml --backbone runs/my-resnet50/artifact
ray job submit --working-dir . -- python jobs/finetune.py --config ... --run.storage /shared/runs
"""

import sys
import time

from backbone.cli import fail, parse
from backbone.errors import UserError
from detection.recipe import Finetune


def main() -> None:
    recipe, flags = parse(Finetune, sys.argv[1:], {"dry_run": "check everything, print the plan, then stop"})
    from backbone.training.cluster import launch  # from here on torch and Ray are imported, which takes seconds
    from detection.engine import finetune, finished, prepare
    from detection.evaluation import table
    from detection.plan import describe

    try:
        if flags["dry_run"]:
            print(describe(recipe))
            return
        payload = prepare(recipe)
        metrics = finished(payload["url"])
        if metrics:
            print(f"{payload['url']} is finished; another --name or --seed begins another run")
        else:
            began = time.monotonic()
            metrics = launch(finetune, payload, recipe.scaling)
            print(f"trained in {time.monotonic() - began:.0f} s")
    except (UserError, FloatingPointError) as error:
        fail(error)
    print(table(metrics))
    print(f"curves    {payload['url']}/curves.png")
    print(f"results   {payload['url']}/results")
    print(f"artifact  {payload['url']}/artifact")


if __name__ == "__main__":
    main()
