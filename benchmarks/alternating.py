"""AP of Faster R-CNN (kind c4) trained in four steps and jointly, on rendered scenes, from one backbone.

In four steps proposals, heads and shared layers are trained twice each, so joint training is given twice as many epochs
as a step. Seed by seed both ways train on the same scenes. Finished runs are not done again.
"""

from typing import Any

import numpy as np
from results import parser, write

from backbone.cli import laid_over, read_yaml, validate
from backbone.job import submit_all
from backbone.storage import join
from backbone.training.run import run_url
from detection.alternating import Alternating, plan
from detection.finetune import FINETUNE
from detection.improvements.table import gains
from detection.recipe import Finetune
from detection.report.bootstrap import paired_draws
from detection.report.stored import load

RECIPE = "jobs/recipes/quickstart/detector-c4.yaml"
WAYS = ("jointly", "in four steps")
RESAMPLES = 1000


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--backbone", required=True, help="backbone artifact")
    words.add_argument("--seeds", type=int, default=3, help="trainings each way")
    words.add_argument("--epochs", type=int, default=4, help="of each of the four steps")
    words.add_argument("--storage", default="runs", help="folder of all runs")
    args = words.parse_args()

    ends: dict[str, list[Finetune]] = {way: [] for way in WAYS}
    for seed in range(args.seeds):
        both = {"scaling": {"num_workers": 0}, "schedule": {"total": args.epochs}}
        name = f"alternating-{args.epochs}-seed{seed}"
        told: dict[str, Any] = {"backbone": args.backbone, "seed": seed, "storage": args.storage}
        steps = plan(Alternating(name=name, finetune=RECIPE, finetune_with=both, **told))
        tree = laid_over(laid_over(read_yaml(RECIPE), both), {"schedule": {"total": 2 * args.epochs}})
        own = {"backbone": args.backbone, "seed": seed, "name": f"{name}-jointly", "run.storage": args.storage}
        joint = validate(Finetune, tree, RECIPE, own)
        submit_all(FINETUNE, [joint, *steps])
        for way, last in zip(WAYS, (joint, steps[-1]), strict=True):
            ends[way].append(last)
    matches = {way: [load(join(run_url(one), "results"))["bbox"] for one in runs] for way, runs in ends.items()}
    draws = paired_draws(matches, RESAMPLES)
    images = len(matches[WAYS[0]][0].image_ids)
    rows = []
    for way, found in draws.items():
        row: dict[str, Any] = {"trained": way, "trainings": len(found[0])}
        for i, metric in enumerate(("AP", "AP50")):
            each = 100 * np.asarray(found[i, :, 0])
            row |= {metric: f"{each.mean():.1f}", f"{metric} of each": ", ".join(f"{one:.1f}" for one in each)}
            gain = gains(found[i], draws[WAYS[0]][i], False, images) if way != WAYS[0] else None
            held = gain.joint if gain else None
            said = f"{100 * gain.value:+.1f}" if gain else ""
            row[f"gain in {metric}"] = said + (f" ({100 * held.low:+.1f} to {100 * held.high:+.1f})" if held else "")
        rows.append(row)
    write(args.output, rows, epochs=args.epochs, images=images)


if __name__ == "__main__":
    main()
