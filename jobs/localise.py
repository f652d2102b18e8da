"""Fine-tune a classifier into a localiser and judge it as ImageNet LOC is judged, on this machine or on a Ray cluster:

python jobs/localise.py --config jobs/recipes/quickstart/localiser.yaml --backbone runs/quickstart-residual/artifact
python jobs/localise.py --config jobs/recipes/quickstart/localiser-rcnn.yaml \\
    --backbone runs/quickstart-residual/artifact --proposals runs/localiser/artifact
python jobs/localise.py --config jobs/recipes/loc-paper/localiser.yaml --backbone runs/my-resnet101/artifact --dry-run
ray job submit --working-dir . -- python jobs/localise.py --config ... --run.storage /shared/runs
"""

import sys

import backbone.begin  # noqa: F401
from backbone.cli import parse, run_main
from detection.localisation.recipe import Localise


def main() -> None:
    told = {"dry_run": "check everything, print the plan, then stop"}
    recipe, flags = parse(Localise, sys.argv[1:], told, __doc__, recipe=True)
    from backbone.job import submit  # from here on torch and Ray are imported, which takes seconds
    from detection.localisation.localise import LOCALISE
    from detection.localisation.picture import table
    from detection.localisation.plan import describe

    if flags["dry_run"]:
        print(describe(recipe))
        return
    outcome = submit(LOCALISE, recipe)
    print(outcome.headline)
    print(table(outcome.results))
    print(f"curves    {outcome.url}/curves.png")
    print(f"pictures  {outcome.url}/results/pictures.png")
    print(f"results   {outcome.url}/results")
    print(f"artifact  {outcome.artifact}")


if __name__ == "__main__":
    run_main(main, "go on")
