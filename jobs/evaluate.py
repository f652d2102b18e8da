"""Judge a detector by COCO's and Pascal VOC's measures, on this machine or on a Ray cluster:

python jobs/evaluate.py --detector runs/my-detector/artifact --data.source coco --data.val /data/coco/val2017
"""

import sys

from backbone.cli import fail, parse
from backbone.errors import UserError
from detection.recipe import Evaluation


def main() -> None:
    recipe, _ = parse(Evaluation, sys.argv[1:])
    from backbone.training.cluster import launch  # from here on torch and Ray are imported, which takes seconds
    from detection.evaluation import table
    from detection.inference import evaluate, prepare

    try:
        payload = prepare(recipe)
        metrics = launch(evaluate, payload, recipe.scaling)
    except UserError as error:
        fail(error)
    print(table(metrics))
    print(f"results   {payload['url']}")


if __name__ == "__main__":
    main()
