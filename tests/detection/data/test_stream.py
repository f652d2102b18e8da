"""The backbone's stream, step by step the same samples; only their places differ."""

import pickle

import numpy as np
import pytest

from backbone.data.stream import MicroBatches, Stream
from detection.data.augment import target_size
from detection.data.stream import DetectionStream

SHAPES = np.array([[480, 640], [640, 480], [427, 640], [500, 375], [375, 500], [640, 427], [612, 612]])
SIZES = SHAPES[np.random.default_rng(0).integers(0, len(SHAPES), 203)]
ASPECTS = SIZES[:, 1] / SIZES[:, 0]
STEPS = range(60)  # of 16: the fifth epoch has begun


def dealt(batch: int = 16, micro_batch: int = 4) -> DetectionStream:
    return DetectionStream(7, batch, micro_batch, ASPECTS)


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


def test_like_shapes_share_a_micro_batch_and_ties_keep_the_shuffled_order():
    stream, plain = dealt(), Stream(7, 203)
    for step in STEPS:
        units = [[stream[p] for p in range(first, first + 4)] for first in range(16 * step, 16 * step + 16, 4)]
        units.sort(key=lambda unit: [ASPECTS[sample] for _, sample in unit])
        by_shape = sorted((plain[p] for p in range(16 * step, 16 * step + 16)), key=lambda one: ASPECTS[one[1]])
        assert [ASPECTS[sample] for unit in units for _, sample in unit] == [ASPECTS[sample] for _, sample in by_shape]
        for unit in units:
            places = [by_shape.index(one) for one in unit]
            assert places == list(range(places[0], places[0] + 4))


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_see_all_shapes_alike(world: int):
    """500 steps of 16 in micro-batches of 2. Portraits are a fixed share of all; of 8 ranks dealt in order, the first
    would get nearly nothing else and the last none."""
    stream, portraits = dealt(micro_batch=2), ASPECTS < 1
    shares, means = [], []
    for rank in range(world):
        mine = [stream[p][1] for positions in MicroBatches(16, 2, rank, world, 0, 500) for p in positions]
        shares.append(portraits[mine].mean())
        means.append(ASPECTS[mine].mean())
    # A micro-batch is nearly of one shape, so a share is a mean of 500 * 8 / world draws: four standard errors.
    error = 4 * np.sqrt(world / 4000)
    np.testing.assert_allclose(shares, portraits.mean(), rtol=0, atol=error * portraits.std())
    np.testing.assert_allclose(means, ASPECTS.mean(), rtol=0, atol=error * ASPECTS.std())


def test_the_turns_change_from_step_to_step():
    """Not by a pattern: the micro-batch of the narrowest images comes at each place about equally often."""
    stream = dealt()
    first = []
    for step in range(400):
        units = [[ASPECTS[stream[p][1]] for p in range(f, f + 4)] for f in range(16 * step, 16 * step + 16, 4)]
        first.append(int(np.argmin([sum(unit) for unit in units])))
    counts = np.bincount(first, minlength=4)
    assert np.abs(counts - 100).max() < 4 * np.sqrt(400 * 0.25 * 0.75)
    repeats = np.mean(np.array(first[1:]) == np.array(first[:-1]))
    assert abs(repeats - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 399)


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
    stream = dealt(batch, min(batch, 4) // 2 or 1)
    forward = [stream[p] for p in range(700)]
    assert [dealt(batch, stream.micro_batch)[p] for p in range(0, 700, 7)] == forward[::7]
    places = np.random.default_rng(1).permutation(700).tolist()
    assert [stream[p] for p in places] == [forward[p] for p in places]
    if batch == 1:
        assert forward == [Stream(7, 203)[p] for p in range(700)]


def test_seeds_differ():
    other = DetectionStream(8, 16, 4, ASPECTS)
    assert [other[p] for p in range(32)] != [dealt()[p] for p in range(32)]


def test_pickles_small():
    stream = DetectionStream(7, 16, 4, np.random.default_rng(0).random(50_000))
    before = [stream[p] for p in range(32)]
    data = pickle.dumps(stream)
    assert len(data) < 50_000 * 4 + 2000
    assert [pickle.loads(data)[p] for p in range(32)] == before
