"""The order of training images: a permutation that never changes, and its cut into micro-batches."""

import hashlib
import pickle
from itertools import chain, pairwise

import numpy as np
import pytest

from backbone.data.stream import MicroBatches, Stream, mix, order, share


def test_mix_is_splitmix64():
    """Of one word: the first output of the published generator for that seed."""
    assert mix(0) == 0xE220A8397B1DCDAF
    assert mix(1234567) == 6457827717110365317
    assert mix(1, 2, 3) == 7702586659592502839
    assert mix(-1) == mix((1 << 64) - 1)


def test_mix_tells_words_apart():
    keys = [(), (0,), (0, 0), (1, 0), (0, 1), (1,), (0, 0, 1), (2, 3), (3, 2), (5,)]
    assert len({mix(*key) for key in keys}) == len(keys)


def test_mix_is_uniform_and_spreads_every_bit():
    values = np.array([mix(7, i) for i in range(8192)], np.uint64)
    for shift in range(0, 64, 8):  # every byte: chi-square of 255 degrees of freedom, mean 255, deviation 22.6
        counts = np.bincount((values >> np.uint64(shift) & np.uint64(255)).astype(int), minlength=256)
        assert ((counts - 32) ** 2 / 32).sum() < 255 + 5 * 22.6
    flips = [bin(mix(3, i) ^ mix(3, i ^ (1 << bit))).count("1") for i in range(16) for bit in range(64)]
    assert np.mean(flips) == pytest.approx(32, abs=5 * 4 / len(flips) ** 0.5)
    assert min(flips) > 8


def test_order_never_changes():
    assert order(0, 0, 12).tolist() == [10, 4, 7, 6, 9, 8, 0, 3, 2, 1, 11, 5]
    assert order(7, 3, 12).tolist() == [2, 8, 4, 1, 0, 9, 7, 10, 5, 11, 6, 3]
    digest = hashlib.sha256(order(0, 0, 1_281_167).astype("<i8").tobytes()).hexdigest()
    assert digest == "b0ccab4545ef0298bbc9cc9828be89a4573e69e4291ffffab50bd12635a5597f"


@pytest.mark.parametrize("num", [1, 2, 7, 1000])
def test_order_is_a_permutation(num: int):
    for epoch in range(3):
        found = order(5, epoch, num)
        assert found.dtype == np.int64
        assert np.array_equal(np.sort(found), np.arange(num))


def test_orders_of_epochs_and_seeds_are_unrelated():
    """Two random permutations of n agree in one place on average, and their ranks correlate as 1 / sqrt(n)."""
    orders = [order(seed, epoch, 2000) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    for i, one in enumerate(orders):
        for two in (*orders[:i], np.arange(2000)):
            assert (one == two).sum() < 10
            assert abs(np.corrcoef(one, two)[0, 1]) < 5 / 2000**0.5


def test_every_place_is_as_likely_for_every_sample():
    """Chi-square over 12 samples x 12 places, 121 degrees of freedom, deviation 15.6."""
    counts = np.zeros((12, 12))
    for epoch in range(6000):
        counts[order(1, epoch, 12), np.arange(12)] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 121 + 5 * 15.6


def test_stream_uses_every_sample_once_an_epoch():
    stream = Stream(3, 10)
    found = [stream[position] for position in range(35)]
    for epoch in range(3):
        assert [e for e, _ in found[10 * epoch : 10 * epoch + 10]] == [epoch] * 10
        assert [i for _, i in found[10 * epoch : 10 * epoch + 10]] == order(3, epoch, 10).tolist()
    again = Stream(3, 10)
    backwards = [again[position] for position in reversed(range(35))]
    assert backwards == found[::-1]


def test_stream_keeps_two_permutations_and_pickles_none():
    stream = Stream(3, 10_000)
    for position in range(0, 50_000, 5000):
        stream[position]
    assert sorted(stream._orders) == [3, 4]
    assert len(pickle.dumps(stream)) < 300
    assert pickle.loads(pickle.dumps(stream))[25_000] == stream[25_000]


def test_without_repeats_the_stream_is_as_ever():
    plain, repeated = Stream(3, 10), Stream(3, 10, 1, 4)
    assert [plain[p] for p in range(35)] == [repeated[p] for p in range(35)]


@pytest.mark.parametrize("apart", [4, 6, 7])
def test_repeated_samples_are_apart_and_differ_in_what_they_are_keyed_by(apart: int):
    num, repeats = 12 * apart, 3
    stream = Stream(3, num, repeats, apart)
    found = [stream[position] for position in range(2 * num)]
    for epoch in range(2):
        mine = found[epoch * num : (epoch + 1) * num]
        assert len(set(mine)) == num
        chosen = order(3, epoch, num)[: num // repeats].tolist()
        assert sorted(sample for _, sample in mine) == sorted(chosen * repeats)
        for first in range(0, num, apart):  # a micro-batch holds no two copies
            assert len({sample for _, sample in mine[first : first + apart]}) == apart
    turns = {turn for turn, _ in found}
    assert len({mix(3, turn) for turn in turns}) == len(turns) == 2 * repeats
    assert {0, 1} < turns  # the first copies are varied as without


def test_neighbours_of_a_repeated_sample_are_others_each_time():
    """Which mixup and CutMix mix."""
    stream = Stream(5, 72, 3, 8)
    pairs = [(stream[p][1], stream[p + 1][1]) for p in range(0, 72, 2)]
    assert len(set(pairs)) == len(pairs)
    assert all(one != two for one, two in pairs)


def test_repeats_of_few_samples_stay_in_range():
    stream = Stream(5, 5, 3, 8)
    assert {stream[p][1] for p in range(50)} <= set(range(5))
    assert [stream[p] for p in range(50)] == [pickle.loads(pickle.dumps(stream))[p] for p in range(50)]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 10, 50_000])
def test_shares_cover_everything_once(count: int, world: int):
    parts = [share(count, rank, world) for rank in range(world)]
    assert list(chain(*parts)) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def collected(batch: int, micro_batch: int, world: int, start: int, stop: int) -> list[range]:
    """The micro-batches of all ranks, step by step in the order of ranks."""
    ranks = [MicroBatches(batch, micro_batch, rank, world, start, stop) for rank in range(world)]
    for one in ranks:
        assert len(list(one)) == len(one) == (stop - start) * len(one.units)
    iterators = [iter(one) for one in ranks]
    return [next(it) for _ in range(start, stop) for it, one in zip(iterators, ranks, strict=True) for _ in one.units]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_micro_batches_are_the_same_for_every_world(world: int):
    """3 ranks share 4 micro-batches unevenly."""
    found = collected(32, 8, world, 0, 5)
    assert found == [range(first, first + 8) for first in range(0, 160, 8)]
    assert collected(32, 8, world, 2, 5) == found[8:]


def test_a_rank_without_work_has_no_micro_batches():
    assert [len(MicroBatches(16, 8, rank, 4, 0, 3)) for rank in range(4)] == [0, 3, 0, 3]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_sample_once_an_epoch_though_batches_straddle(world: int):
    """Batches of 12 from epochs of 50 samples: 25 steps are 6 epochs."""
    stream = Stream(9, 50)
    seen = [stream[position] for unit in collected(12, 3, world, 0, 25) for position in unit]
    assert any(stream[unit[0]][0] != stream[unit[-1]][0] for unit in collected(12, 3, world, 0, 25))
    assert sorted(seen) == [(epoch, sample) for epoch in range(6) for sample in range(50)]
    assert all(one[0] <= two[0] for one, two in pairwise(seen))
