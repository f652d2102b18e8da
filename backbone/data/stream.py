"""In which order images are trained on: a pure function of (seed, epoch, position).

The position counts the samples all workers have consumed since the run began. It is the only thing a resume needs to
know about the data. Epochs follow one another without a seam: a batch may hold the end of one and the start of the
next, so every sample is used exactly once an epoch whatever the batch size, and nothing is padded or dropped.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_COPY = 1 << 32  # between the turns of one epoch


def mix(*words: int) -> int:
    """Hash integers to one of 64 bits (chained splitmix64, Steele et al. 2014). The source of every seed in raybone.

    Own code because it must give the same numbers for ever: library generators may change theirs between versions.
    """
    state = 0
    for word in words:
        state = (state + word + _GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """The permutation of one epoch, int64 [num_samples]: sample ids sorted by their hash.

    1.3 M take a tenth of a second.
    """
    keys = np.arange(num_samples, dtype=np.uint64) + np.uint64(mix(seed, epoch))
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(keys ^ (keys >> np.uint64(31)), kind="stable")


@dataclass
class Stream:
    """Position -> (turn, sample id), the turn being the epoch, or with `repeats` one of its own for each copy: what is
    drawn for a sample is keyed by it. The cached permutations are derived state and are not pickled.

    With `repeats` an epoch is as long, of fewer samples, each so many times (repeated augmentation, arXiv:1902.05509).
    The copies lie about `apart` positions from each other, a micro-batch: batch statistics are then of different
    samples, as where timm's sampler deals the copies to different GPUs. Every other sample moves on by two places from
    copy to copy, so that neighbours, which mixup and CutMix mix, are others each time, and never copies of one sample.
    """

    seed: int
    num_samples: int
    repeats: int = 1
    apart: int = 1
    _orders: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __getitem__(self, position: int) -> tuple[int, int]:
        epoch, offset = divmod(position, self.num_samples)
        if epoch not in self._orders:
            # Loader workers meet at most two epochs at a time: where one ends and the next begins.
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            # In the narrowest integers: every loader process holds one, of 14 M samples 56 MB in place of 112.
            self._orders[epoch] = order(self.seed, epoch, self.num_samples).astype(np.min_scalar_type(self.num_samples))
        if self.repeats == 1:
            return epoch, int(self._orders[epoch][offset])
        block, place = divmod(offset, self.apart * self.repeats)
        copy, place = divmod(place, self.apart)
        if place % 2:
            place = 2 * ((place // 2 + copy) % (self.apart // 2)) + 1
        chosen = (block * self.apart + place) % self.num_samples  # beyond the last where there are fewer than `apart`
        return epoch + copy * _COPY, int(self._orders[epoch][chosen])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_orders": {}}


def share(count: int, rank: int, world: int) -> range:
    """The contiguous, unpadded part of `range(count)` that belongs to a rank; parts differ in size by at most one."""
    return range(rank * count // world, (rank + 1) * count // world)


@dataclass(frozen=True)
class MicroBatches:
    """The positions in each of one rank's micro-batches, from `start` (a step) to `stop`: a DataLoader batch sampler.

    A step is `batch` consecutive positions, cut into `batch / micro_batch` micro-batches, dealt to ranks in order. So
    the micro-batches, and with them batch statistics, are the same for every number of ranks.
    """

    batch: int
    micro_batch: int
    rank: int
    world: int
    start: int
    stop: int

    @property
    def units(self) -> range:
        """This rank's micro-batches of a step, as indices into the step's."""
        return share(self.batch // self.micro_batch, self.rank, self.world)

    def __len__(self) -> int:
        return (self.stop - self.start) * len(self.units)

    def __iter__(self) -> Iterator[range]:
        for step in range(self.start, self.stop):
            for unit in self.units:
                first = step * self.batch + unit * self.micro_batch
                yield range(first, first + self.micro_batch)
