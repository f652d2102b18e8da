"""Where views are cut and whether they are mirrored, against generators of the standard library made anew."""

import math
import random
from concurrent.futures import ThreadPoolExecutor

from backbone.data.augment import TrainingView
from backbone.data.options import ModernAugment
from backbone.data.stream import mix

FILL = (124, 116, 104)


def test_draws_are_those_of_generators_of_their_own():
    """Whatever was drawn before, and by whichever thread: generators are used again."""
    view = TrainingView(ModernAugment(), 32, 1.0, FILL)
    keys = [mix(7, i) for i in range(300)]

    def drawn(key: int) -> tuple:
        return view.box(300, 400, key), view.flips(key), view.box(300, 400, key), view.box(400, 300, key)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(drawn, keys))
    for key, (box, flips, again, other) in zip(keys, found, strict=True):
        assert flips == (random.Random(mix(key, 1)).random() < 0.5)
        assert (box, other) == (again, TrainingView(ModernAugment(), 32, 1.0, FILL).box(400, 300, key))
        draw = random.Random(mix(key, 0))
        area = draw.uniform(0.08 * 120_000, 120_000)
        aspect = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        if (side := round(math.sqrt(area / aspect))) <= 300 and round(math.sqrt(area * aspect)) <= 400:
            assert box.height == side
            assert box.top == int((300 - side + 1) * draw.random())
