"""What each test-time step of `detection.improvements` costs: processor time an image, on the data that a
detector was trained with. With several `--detector`, also their ensemble.

From images in memory to detections, in turns in one process; processor time, so that other work on the machine counts
little.
"""

import tempfile
import time
from typing import Any

import torch
from results import parser, spread, write

from backbone.cli import validate
from backbone.training import engine
from backbone.training.world import World
from detection import artifact
from detection.data.loader import EvalSet, eval_loader
from detection.data.sources import open_val
from detection.evaluate import at_scale, detect_batches, detect_by_steps, prepare, relabel
from detection.improvements.steps import Steps
from detection.recipe import DetectorEvaluation


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--detector", nargs="+", required=True, help="detector artifacts; the first is the baseline")
    words.add_argument("--images", type=int, default=200, help="the first of the validation images")
    words.add_argument("--turns", type=int, default=3)
    given = words.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        recipe = prepare(validate(DetectorEvaluation, {"detector": given.detector, "output": folder}, "")).options
    members = [artifact.load(url) for url in given.detector]
    source, own = open_val(recipe.data), recipe.data.shorter_side[-1]
    labels = [relabel(member.categories, source.categories) for member in members]
    count, world = min(given.images, len(source)), World(0, 1, torch.device("cpu"))
    sides = [own * 3 // 4, own, own * 5 // 4]
    loaders = {side: eval_loader(EvalSet(source, at_scale(recipe.data, side)), range(count), 1) for side in sides}
    batches = {side: list(loader) for side, loader in loaders.items()}
    scales = f"--scales {' '.join(map(str, sides))}"
    ways: dict[str, tuple[Steps, list[int], int]] = {
        "--refine": (Steps(refine=True), [own], 1),
        "--vote": (Steps(vote=True), [own], 1),
        "--refine --vote": (Steps(refine=True, vote=True), [own], 1),
        "--flip": (Steps(flip=True), [own], 1),
        scales: (Steps(), sides, 1),
        f"--refine --vote --flip {scales}": (Steps(True, True, True), sides, 1),
    }
    if len(members) > 1:
        ways[f"--detector, {len(members)} of them"] = (Steps(), [own], len(members))
    autocast = engine.autocast(recipe.compute, world.device)

    def found(way: str) -> Any:
        if way not in ways:
            first = members[0]
            return detect_batches(first.detector, first.inputs, batches[own], source.image_ids, world.device, autocast)[
                0
            ]
        steps, at, of = ways[way]
        looks = zip(*(batches[side] for side in at), strict=True)
        return detect_by_steps(members[:of], labels[:of], looks, source.image_ids, world.device, autocast, steps)[0]

    seconds: dict[str, list[float]] = {way: [] for way in ("one look", *ways)}
    judged: dict[str, Any] = {}
    for _ in range(given.turns):
        for way, taken in seconds.items():
            began = time.process_time()
            judged[way] = found(way)
            taken.append(time.process_time() - began)
    rows = []
    for way, taken in seconds.items():
        times, low, high = spread([b / a for a, b in zip(seconds["one look"], taken, strict=True)])
        rows.append(
            {
                "step": way,
                "ms an image": 1e3 * spread(taken)[0] / count,
                "times one look": times,
                "quartiles": f"{low:.2f} to {high:.2f}",
                "detections": len(judged[way]),
                "images": count,
                "turns": given.turns,
            }
        )
    write(given.output, rows)


if __name__ == "__main__":
    main()
