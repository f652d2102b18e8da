"""What each test-time step of `detection.improvements` costs: processor time an image, on the data that a
detector was trained with. With several `--detector`, also their ensemble.

From images in memory to detections, in turns in one process; processor time, so that other work on the machine counts
little.
"""

import tempfile

import torch
from results import parser, write

from backbone.cli import validate
from detection import artifact
from detection.data.sources import open_val
from detection.evaluate import prepare
from detection.improvements.cost import Way, costs
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
    members = tuple(artifact.load(url) for url in given.detector)
    data, first = recipe.data, members[:1]
    source, own = open_val(data), data.shorter_side[-1]
    sides = (own * 3 // 4, own, own * 5 // 4)
    scales = f"--scales {' '.join(map(str, sides))}"
    ways = {
        "one look": Way(first, data),
        "--refine": Way(first, data, Steps(refine=True)),
        "--vote": Way(first, data, Steps(vote=True)),
        "--refine --vote": Way(first, data, Steps(refine=True, vote=True)),
        "--flip": Way(first, data, Steps(flip=True)),
        scales: Way(first, data, scales=sides),
        f"--refine --vote --flip {scales}": Way(first, data, Steps(True, True, True), sides),
    }
    if len(members) > 1:
        ways[f"--detector, {len(members)} of them"] = Way(members, data)
    count = min(given.images, len(source))
    rows = []
    for way, cost in costs(ways, source, count, given.turns).items():
        times, low, high = cost.times
        rows.append(
            {
                "step": way,
                "ms an image": 1e3 * cost.seconds,
                "times one look": times,
                "quartiles": f"{low:.2f} to {high:.2f}",
                "detections": cost.detections,
                "images": count,
                "turns": given.turns,
            }
        )
    write(given.output, rows)


if __name__ == "__main__":
    main()
