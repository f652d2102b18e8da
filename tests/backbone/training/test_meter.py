"""What a window of steps has shown."""

import torch

from backbone.training.meter import Meter
from backbone.training.state import Progress
from backbone.training.world import World


def test_unreadable_images_are_kept_by_position() -> None:
    """Whatever rank met them, each with the step it was first met by; sets of names have another order each time."""
    meter, progress = Meter(World(0, 1, torch.device("cpu")), 8), Progress(step=3)
    places = {16: [f"picture {i}: torn" for i in range(20)], 8: ["b: torn", "a: torn"], 24: ["picture 3: torn"]}
    for position, names in places.items():
        meter.add(torch.ones(4), {}, {"position": position, "bad": names})
    meter.record(progress, str)
    assert list(progress.bad) == ["b: torn", "a: torn", *places[16]]
    progress.step = 5
    meter.add(torch.ones(4), {}, {"position": 40, "bad": ["a: torn", "late: torn"]})
    meter.record(progress, str)
    assert list(progress.bad.items())[-1] == ("late: torn", 5)
    assert progress.bad["a: torn"] == 3
