"""The backbone's stream, step by step the same samples; only their places differ."""

import pickle

import numpy as np
import pytest

from backbone.data.stream import Stream
from detection.data.augment import target_size
from detection.data.stream import DetectionStream

SHAPES = np.array([[480, 640], [640, 480], [427, 640], [500, 375], [375, 500], [640, 427], [612, 612]])
SIZES = SHAPES[np.random.default_rng(0).integers(0, len(SHAPES), 203)]
ASPECTS = SIZES[:, 1] / SIZES[:, 0]
STEPS = range(60)  # of 16: the fifth epoch has begun


def dealt(batch: int = 16) -> DetectionStream:
    return DetectionStream(7, batch, ASPECTS)


def test_a_step_trains_on_what_it_would_anyway():
    stream, plain = dealt(), Stream(7, 203)
    for step in STEPS:
        positions = range(16 * step, 16 * step + 16)
        assert sorted(stream[p] for p in positions) == sorted(plain[p] for p in positions)


def test_every_sample_once_an_epoch():
    stream = dealt()
    found = [stream[p] for p in range(16 * len(STEPS))]
    for epoch in range(4):
        assert sorted(sample for e, sample in found if e == epoch) == list(range(203))


def test_like_shapes_are_neighbours_and_ties_keep_the_shuffled_order():
    stream, plain = dealt(), Stream(7, 203)
    for step in STEPS:
        positions = range(16 * step, 16 * step + 16)
        shapes = [ASPECTS[stream[p][1]] for p in positions]
        assert shapes == sorted(shapes)
        for shape in set(shapes):
            assert [stream[p] for p in positions if ASPECTS[stream[p][1]] == shape] == [
                plain[p] for p in positions if ASPECTS[plain[p][1]] == shape
            ]


def test_padding_is_saved():
    """Portraits and landscapes at shorter side 800, in micro-batches of 4: a third of the padding is left."""
    views = np.array([target_size(*size, 800, 1333) for size in SIZES.tolist()])

    def padding(stream: Stream | DetectionStream) -> float:
        shown = padded = 0
        for first in range(0, 16 * len(STEPS), 4):
            sizes = views[[stream[p][1] for p in range(first, first + 4)]]
            shown += sizes.prod(1).sum()
            padded += 4 * (-(-sizes.max(0) // 32) * 32).prod()
        return 1 - shown / padded

    assert padding(Stream(7, 203)) == pytest.approx(0.318, abs=0.005)
    assert padding(dealt()) == pytest.approx(0.091, abs=0.005)


@pytest.mark.parametrize("batch", [1, 2, 16, 500])
def test_order_of_access_does_not_matter(batch: int):
    """Nor does a batch above the number of samples."""
    stream = dealt(batch)
    forward = [stream[p] for p in range(700)]
    assert [dealt(batch)[p] for p in range(0, 700, 7)] == forward[::7]
    places = np.random.default_rng(1).permutation(700).tolist()
    assert [stream[p] for p in places] == [forward[p] for p in places]
    if batch == 1:
        assert forward == [Stream(7, 203)[p] for p in range(700)]


def test_seeds_differ():
    other = DetectionStream(8, 16, ASPECTS)
    assert [other[p] for p in range(32)] != [dealt()[p] for p in range(32)]


def test_pickles_small():
    stream = DetectionStream(7, 16, np.random.default_rng(0).random(50_000))
    before = [stream[p] for p in range(32)]
    data = pickle.dumps(stream)
    assert len(data) < 50_000 * 4 + 2000
    assert [pickle.loads(data)[p] for p in range(32)] == before
