"""Annotations of COCO's size, opened by all ranks of a machine at once: seconds, and memory a rank.

    python benchmarks/annotations.py --ranks 1 32

Drawn at random, as many images and objects as COCO's train2017 holds, each object an outline of some twenty points.
The first time nothing is kept of them: one rank parses the JSON, and the others wait for the arrays it makes, which all
map. The second time they are there. The images themselves are empty files, listed as real ones are.
"""

import json
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from results import parser, write
from scale import memory

from detection.data.coco import open_coco

IMAGES, OBJECTS, CLASSES = 118_287, 860_001, 80
HEIGHT, WIDTH = 480, 640
POINTS = 22  # of an outline, on average about COCO's


def make(root: Path, images: int, objects: int) -> Path:
    """A folder of empty images, and the JSON beside it that its name asks for."""
    rng = np.random.default_rng(0)
    folder = root / "train2017"
    folder.mkdir()
    (root / "annotations").mkdir()
    names = [f"{number:012d}.jpg" for number in range(1, images + 1)]
    for name in names:
        (folder / name).touch()
    centres = rng.random((objects, 1, 2)) * [WIDTH - 160, HEIGHT - 160] + 80
    turns = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    outlines = centres + rng.uniform(8, 80, (objects, 1, 1)) * np.stack([np.cos(turns), np.sin(turns)], 1)
    low, high = outlines.min(1), outlines.max(1)
    boxes = np.round(np.concatenate([low, high - low], 1), 2)
    owners, labels = rng.integers(1, images + 1, objects), rng.integers(1, CLASSES + 1, objects)
    with (root / "annotations" / "instances_train2017.json").open("w") as file:
        sizes = [{"id": i, "file_name": n, "height": HEIGHT, "width": WIDTH} for i, n in enumerate(names, 1)]
        classes = [{"id": k, "name": f"class {k}"} for k in range(1, CLASSES + 1)]
        file.write(f'{{"images": {json.dumps(sizes)}, "categories": {json.dumps(classes)}, "annotations": [')
        for number in range(objects):
            one = {"id": number + 1, "image_id": int(owners[number]), "category_id": int(labels[number]), "iscrowd": 0}
            box, outline = boxes[number].tolist(), np.round(outlines[number].reshape(-1), 2).tolist()
            area = round(box[2] * box[3] * 0.78, 2)
            file.write(
                (", " if number else "") + json.dumps({**one, "bbox": box, "area": area, "segmentation": [outline]})
            )
        file.write("]}")
    return folder


def on_rank(folder: Path, cache: Path, together: Any, told: Any) -> None:
    together.wait()
    began = time.perf_counter()
    source = open_coco(str(folder), cache=str(cache))
    seconds = time.perf_counter() - began
    for number in np.random.default_rng(0).permutation(len(source))[:100].tolist():
        source.objects(number, masks=True)
    together.wait()  # all are there, so that what is shared counts as shared
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told.put({"seconds": seconds, "peak": peak, **memory()})
    together.wait()


def all_ranks(folder: Path, cache: Path, ranks: int) -> dict[str, Any]:
    """What the ranks say, in MiB; `PSS` shares what is mapped among them."""
    start = multiprocessing.get_context("spawn")
    together, told = start.Barrier(ranks), start.Queue()
    processes = [start.Process(target=on_rank, args=(folder, cache, together, told)) for _ in range(ranks)]
    for process in processes:
        process.start()
    rows = [told.get(timeout=1800) for _ in processes]
    for process in processes:
        process.join()
    return {
        "opened, s (the last)": max(row["seconds"] for row in rows),
        "highest peak of one, MiB": max(row["peak"] for row in rows),
        "ranks that parsed it": sum(row["peak"] > 2048 for row in rows),
        "own memory of a rank, MiB": float(np.median([row["own"] for row in rows])),
        "with its share of the arrays, MiB": float(np.median([row["PSS"] for row in rows])),
    }


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 32])
    words.add_argument("--images", type=int, default=IMAGES)
    words.add_argument("--objects", type=int, default=OBJECTS)
    given = words.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = []
    with tempfile.TemporaryDirectory() as root:
        folder = make(Path(root), given.images, given.objects)
        size = (Path(root) / "annotations" / "instances_train2017.json").stat().st_size
        for ranks in given.ranks:
            for kept in (False, True):
                rows.append({"ranks": ranks, "kept": kept, **all_ranks(folder, Path(root, f"cache-{ranks}"), ranks)})
                write(given.output, rows, images=given.images, objects=given.objects, json_mb=size / 1e6)


if __name__ == "__main__":
    main()
