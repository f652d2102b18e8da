"""In which order annotated images are trained on: the backbone's stream, like shapes together within each step."""

from dataclasses import dataclass, field

import numpy as np

from backbone.data.stream import Stream, mix, order

_TURNS = 0x7475726E  # of all that is drawn from the run's seed: the order of micro-batches


@dataclass
class DetectionStream:
    """Position -> (epoch, sample id), a pure function of (seed, position).

    The `batch` samples of a step are those of `Stream`, so a step trains on just what it would anyway. Only the places
    within it go by aspect ratio: images of like shape share a micro-batch, and little of it is padding. Samples of one
    shape stay shuffled. Which micro-batch comes first is drawn anew in each step: ranks take them in turn, and must not
    see the portraits always on one and the landscapes on another. The cached step is derived state and is not pickled.
    """

    seed: int
    batch: int
    micro_batch: int  # divides `batch`
    aspects: np.ndarray  # float [N], width / height of each sample
    _stream: Stream = field(init=False, repr=False)
    _dealt: dict[int, list[tuple[int, int]]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.aspects = np.asarray(self.aspects, np.float32)
        self._stream = Stream(self.seed, len(self.aspects))

    def __getitem__(self, position: int) -> tuple[int, int]:
        step, place = divmod(position, self.batch)
        if step not in self._dealt:
            samples = [self._stream[p] for p in range(step * self.batch, (step + 1) * self.batch)]
            samples.sort(key=lambda sample: self.aspects[sample[1]])
            turns = order(mix(self.seed, _TURNS), step, self.batch // self.micro_batch) * self.micro_batch
            # Loader workers meet one step after another.
            self._dealt = {step: [samples[first + i] for first in turns for i in range(self.micro_batch)]}
        return self._dealt[step][place]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_dealt": {}}
