"""What a way to detect costs: processor time an image, in turns in one process, so that other work on the machine
counts little."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from backbone.compute import Compute
from backbone.training import engine
from detection import artifact
from detection.data.contract import DetectionSource
from detection.data.loader import EvalSet, eval_loader
from detection.data.options import DetectionData
from detection.detections import Detections
from detection.evaluate import at_scale, detect_batches, detect_by_steps, relabel
from detection.improvements.steps import Steps

ONE_LOOK = Steps()


@dataclass(frozen=True)
class Way:
    """How an image is looked at."""

    members: tuple[artifact.Loaded, ...]  # in eval mode, on CPU
    data: DetectionData  # the size an image is seen at, where there are no scales
    steps: Steps = ONE_LOOK
    scales: tuple[int, ...] = ()


@dataclass(frozen=True)
class Cost:
    """Of a way, over all turns."""

    seconds: float
    """An image, median."""

    times: tuple[float, float, float]
    """The first way's: median and quartiles."""

    detections: int


def costs(ways: Mapping[str, Way], source: DetectionSource, count: int, turns: int = 3) -> dict[str, Cost]:
    """Each way's, from the first `count` images in memory to detections, over the first way's in the same turn.

    Args:
        ways: the baseline first.
        source: images.
        count: of images.
        turns: each goes through all ways.
    """
    count, autocast = min(count, len(source)), engine.autocast(Compute(precision="fp32"), torch.device("cpu"))
    seen: dict[str, tuple[Sequence, list[np.ndarray]]] = {}
    for name, way in ways.items():
        data = way.data.model_copy(update={"workers": 0})
        sizes = [at_scale(data, side) for side in way.scales]
        sizes = [data, *sizes] if way.steps.maxout else sizes or [data]
        batches = [list(eval_loader(EvalSet(source, one), range(count), 1)) for one in sizes]
        seen[name] = batches, [relabel(member.categories, source.categories) for member in way.members]

    def found(name: str) -> Detections:
        way, (batches, labels) = ways[name], seen[name]
        if way.steps == ONE_LOOK and not way.scales and len(way.members) == 1:
            one = way.members[0]
            return detect_batches(
                one.detector, one.inputs, batches[0], source.image_ids, torch.device("cpu"), autocast
            )[0]
        looks = zip(*batches, strict=True)
        return detect_by_steps(way.members, labels, looks, source.image_ids, torch.device("cpu"), autocast, way.steps)[
            0
        ]

    taken: dict[str, list[float]] = {name: [] for name in ways}
    judged = dict.fromkeys(ways, 0)
    found(next(iter(ways)))  # untimed: the first call pays for what all have
    for _ in range(turns):
        for name, seconds in taken.items():
            began = time.process_time()
            judged[name] = len(found(name))
            seconds.append(time.process_time() - began)
    first = next(iter(taken.values()))
    result = {}
    for name, seconds in taken.items():
        ratios = [b / a for a, b in zip(first, seconds, strict=True)]
        low, middle, high = np.percentile(ratios, [25, 50, 75]).tolist()
        result[name] = Cost(float(np.median(seconds)) / count, (middle, low, high), judged[name])
    return result
