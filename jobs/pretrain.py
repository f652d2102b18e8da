"""Pretrain a backbone, on this machine or on a Ray cluster:

python jobs/pretrain.py --config jobs/recipes/quickstart/residual.yaml
python jobs/pretrain.py --config jobs/recipes/starter/classify.yaml --data.train photos/train --data.val photos/val
python jobs/pretrain.py --config jobs/recipes/imagenet-modern/resnet50.yaml --dry-run
ray job submit --working-dir . -- python jobs/pretrain.py --config ... --run.storage /shared/runs
"""

import sys
from contextlib import suppress

import backbone.begin  # noqa: F401
from backbone.cli import gpu_rate_of, parse, rates_of, run_main
from backbone.errors import UserError
from backbone.next_steps import after_backbone
from backbone.training.recipe import Recipe


def main() -> None:
    words, rates_file = rates_of(sys.argv[1:])
    words, gpu_rate = gpu_rate_of(words)
    recipe, flags = parse(
        Recipe,
        words,
        {
            "dry_run": "print net, cost, steps, batch split and the cores that feed GPUs, then stop; --rates FILE of "
            "measured rates adds time, --gpu-rate N is the images/s of one GPU"
        },
        __doc__,
        recipe=True,
    )
    from backbone.job import submit  # from here on torch and Ray are imported, which takes seconds
    from backbone.training import feeding
    from backbone.training.cost import read_rates
    from backbone.training.plan import describe
    from backbone.training.pretrain import PRETRAIN, accuracy, open_data

    if flags["dry_run"]:
        rates = read_rates(rates_file) if rates_file else None
        try:
            train, val = open_data(recipe.data, recipe.seed)
        except UserError:
            with suppress(UserError):
                print(feeding.without_images(recipe, gpu_rate), end="")
            raise
        feed = feeding.measured(train, recipe.data, recipe.seed)
        print(describe(recipe, len(train), len(val), len(train.classes), rates, feed, gpu_rate))
        return
    outcome = submit(PRETRAIN, recipe)
    print(outcome.headline)
    print(f"accuracy  {accuracy(outcome.url)}")
    print(f"curves    {outcome.url}/curves.png")
    print(f"artifact  {outcome.artifact}")
    print(after_backbone(outcome.artifact, recipe.data.source == "synthetic"))


if __name__ == "__main__":
    run_main(main, "go on")
