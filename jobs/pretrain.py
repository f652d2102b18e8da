"""Pretrain a backbone, on this machine or on a Ray cluster:

python jobs/pretrain.py --config jobs/recipes/quickstart/residual.yaml
python jobs/pretrain.py --config jobs/recipes/starter/classify.yaml --data.train photos/train --data.val photos/val
python jobs/pretrain.py --config jobs/recipes/imagenet-modern/resnet50.yaml --dry-run
ray job submit --working-dir . -- python jobs/pretrain.py --config ... --run.storage /shared/runs
"""

import sys

import backbone.begin  # noqa: F401
from backbone.cli import parse, rates_of, run_main
from backbone.next_steps import after_backbone
from backbone.training.recipe import Recipe


def main() -> None:
    words, rates_file = rates_of(sys.argv[1:])
    recipe, flags = parse(
        Recipe,
        words,
        {"dry_run": "print net, cost, steps and batch split, then stop; --rates FILE of measured rates adds time"},
        __doc__,
        recipe=True,
    )
    from backbone.job import submit  # from here on torch and Ray are imported, which takes seconds
    from backbone.training.cost import read_rates
    from backbone.training.plan import describe
    from backbone.training.pretrain import PRETRAIN, accuracy, open_data

    if flags["dry_run"]:
        train, val = open_data(recipe.data, recipe.seed)
        rates = read_rates(rates_file) if rates_file else None
        print(describe(recipe, len(train), len(val), len(train.classes), rates))
        return
    outcome = submit(PRETRAIN, recipe)
    print(outcome.headline)
    print(f"accuracy  {accuracy(outcome.url)}")
    print(f"curves    {outcome.url}/curves.png")
    print(f"artifact  {outcome.artifact}")
    print(after_backbone(outcome.artifact, recipe.data.source == "synthetic"))


if __name__ == "__main__":
    run_main(main, "go on")
