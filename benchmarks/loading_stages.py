"""Where the time between an image's file and its view goes: stages of `TrainSet`, microseconds of a core an image.

An ImageFolder is read as it is, and as shards of shorter side 256, JPEG and raw, as in `input_pipeline.py`; crop and
flip alone. Each function that does a stage is measured where it is called, in the thread's processor time, without the
stages inside it; what measuring takes (the clock is read twice a call) stays with the stage around it.
"""

import functools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from input_pipeline import SIDE, encode_jpeg, repack
from pydantic import TypeAdapter
from results import parser, write

from backbone.data import augment, batches
from backbone.data.batches import TrainSet
from backbone.data.index import IndexedSource
from backbone.data.options import Data
from backbone.data.raw import encode_raw
from backbone.data.sources import open_source

STAGES: list[tuple[str, Any, str]] = [
    ("read", IndexedSource, "data"),
    ("read", batches, "read_box"),
    ("header", batches, "jpeg_header"),
    ("decode", batches, "decode_down_to"),
    ("decode", batches, "decode"),
    ("draw", augment.TrainingView, "box"),
    ("draw", augment.TrainingView, "flips"),
    ("resize", augment, "resize"),
    ("to planes", augment, "to_planes"),
]
REST = "all else"


class Watch:
    """Adds up each stage's own time."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = {}
        self.inside = [0]  # time of stages within the one that runs, by depth

    def of(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, watched."""

        @functools.wraps(work)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.inside.append(0)
            began = time.thread_time_ns()
            try:
                return work(*args, **kwargs)
            finally:
                took = time.thread_time_ns() - began
                self.spent[stage] = self.spent.get(stage, 0) + took - self.inside.pop()
                self.inside[-1] += took

        return watched


def stages(train_set: TrainSet, batch: int, watch: Watch) -> dict[str, float]:
    """Microseconds an image of each stage, of one pass."""
    watch.spent.clear()
    firsts = range(0, len(train_set.source) // batch * batch, batch)
    load = watch.of(REST, train_set.batch)
    for first in firsts:
        load(range(first, first + batch))
    return {stage: spent / 1000 / (len(firsts) * batch) for stage, spent in watch.spent.items()}


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--images", type=Path, required=True, help="an ImageFolder: <class>/*.jpg")
    words.add_argument("--turns", type=int, default=10)
    words.add_argument("--batch", type=int, default=25, help="images; what is over is left out")
    given = words.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    watch = Watch()
    for stage, where, name in STAGES:
        setattr(where, name, watch.of(stage, getattr(where, name)))
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name), name + "/cache"
        source = open_source("imagefolder", str(given.images), cache)
        kinds = {
            "original files": ("imagefolder", str(given.images)),
            "shards, 256 px JPEG": ("webdataset", repack(source, folder / "jpeg", "jpg", encode_jpeg)),
            "shards, 256 px raw": ("webdataset", repack(source, folder / "raw", "rgb.npy", encode_raw)),
        }
        times: dict[str, list[dict[str, float]]] = {data: [] for data in kinds}
        sets = {}
        for data, (kind, root) in kinds.items():
            asked = {"source": kind, "train": root, "val": root, "size": SIDE, "augment": {"kind": "modern"}}
            options = TypeAdapter(Data).validate_python(asked)
            sets[data] = TrainSet(open_source(kind, root, cache), options, 0, (124, 116, 104))
        for _ in range(given.turns + 1):
            for data, train_set in sets.items():
                times[data].append(stages(train_set, given.batch, watch))
    rows, names = [], [*dict.fromkeys(stage for stage, _, _ in STAGES), REST]
    for data, turns in times.items():
        means = {stage: float(np.median([turn.get(stage, 0.0) for turn in turns[1:]])) for stage in names}
        rows.append({"from": data, "turns": given.turns, **means, "sum": sum(means.values())})
    print(json.dumps(rows, indent=1))
    write(given.output, rows)


if __name__ == "__main__":
    main()
