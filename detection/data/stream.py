"""In which order annotated images are trained on: the backbone's stream, dealt out by shape within each step."""

from dataclasses import dataclass, field

import numpy as np

from backbone.data.stream import Stream


@dataclass
class DetectionStream:
    """Position -> (epoch, sample id), a pure function of (seed, position).

    The `batch` samples of a step are those of `Stream`, so a step trains on just what it would anyway. Only the places
    within it are dealt by aspect ratio: images of like shape share a micro-batch, and little of it is padding. Samples
    of one shape stay shuffled. The cached step is derived state and is not pickled.
    """

    seed: int
    batch: int
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
            # Loader workers meet one step after another.
            self._dealt = {step: sorted(samples, key=lambda sample: self.aspects[sample[1]])}
        return self._dealt[step][place]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_dealt": {}}
