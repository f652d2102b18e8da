"""What a window of steps has shown: means, speed, and whether all of it was finite."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from backbone.training.state import Progress
from backbone.training.world import World

CURE = "the newest checkpoint is from before; lower optim.lr, or warm up (schedule.warmup)"

Blame = Callable[[int], str]
"""Position in the stream -> what to look at where the loss there is not finite: `Task.blame`."""


class Meter:
    """Sums on the device between two log records; no step waits for the device."""

    def __init__(self, world: World, batch: int) -> None:
        self.world, self.batch = world, batch
        self._nowhere = torch.tensor(torch.iinfo(torch.int64).max, device=world.device)
        self.restart()

    def restart(self) -> None:
        """Begin a new window, e.g. after an evaluation, whose time is not training's."""
        self._sums: dict[str, Tensor] = {}
        self._first_broken = self._nowhere
        self._bad: list[tuple[int, str]] = []  # each with the position of its micro-batch
        self._steps_samples = 0
        self._waited = 0.0
        self._apart = (0, 0.0, 0.0)  # samples, seconds, seconds waited
        self._began = time.perf_counter()
        self._mark = (0, self._began, 0.0)

    def begin_apart(self) -> None:
        """What comes now, up to `set_apart`, shows no speed: the net is compiled meanwhile."""
        self._mark = self._steps_samples, self._now(), self._waited

    def set_apart(self) -> float:
        """Set apart what came since `begin_apart`, beside what already is in this window. Returns its seconds."""
        samples, began, waited = self._mark
        seconds = self._now() - began
        more = self._steps_samples - samples, seconds, self._waited - waited
        self._apart = (self._apart[0] + more[0], self._apart[1] + more[1], self._apart[2] + more[2])
        return seconds

    def _now(self) -> float:
        """The time once the device has done what it was given."""
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)
        return time.perf_counter()

    def wait_for(self, batches: Any) -> Any:
        """The next batch on the device; counts the time it was waited for."""
        began = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - began
        device = self.world.device
        return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def add(self, losses: Tensor, sums: dict[str, Tensor], batch: dict[str, Any]) -> None:
        """Count one micro-batch; remembers the first position whose loss is not finite."""
        self._steps_samples += len(losses)
        self._bad += [(batch["position"], name) for name in batch["bad"]]
        for name, value in {"loss": losses.sum(), **sums}.items():
            value = value.detach().to(torch.float64, copy=True)  # a CUDA graph overwrites what it gave
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        positions = batch["position"] + torch.arange(len(losses), device=losses.device)
        broken = torch.where(torch.isfinite(losses), self._nowhere, positions).min()
        self._first_broken = torch.minimum(self._first_broken, broken)

    def check(self, blame: Blame) -> None:
        """FloatingPointError where a loss since the last record is not finite. All ranks call it."""
        first = int(self.world.min(self._first_broken.clone()))
        if first != self._nowhere:
            raise self._broken(first, "loss", blame)

    def _broken(self, first: int, terms: str, blame: Blame) -> FloatingPointError:
        return FloatingPointError(
            f"{terms or 'loss'} is not finite at step {first // self.batch}, {blame(first)} (position {first}); "
            f"{CURE}, or look at the sample"
        )

    def record(self, progress: Progress, blame: Blame) -> dict[str, float]:
        """Means over all ranks since the last record, speed, and a new window. All ranks call it."""
        first = int(self.world.min(self._first_broken.clone()))
        seconds = time.perf_counter() - self._began  # after the reduction above, which waited for the device
        names = sorted(self._sums)
        # Of a window that holds nothing else, even what was set apart tells the speed.
        apart, apart_seconds, apart_waited = self._apart if self._steps_samples > self._apart[0] else (0, 0.0, 0.0)
        seconds -= apart_seconds
        counts = (self._steps_samples, self._steps_samples - apart, self._waited - apart_waited, len(self._bad))
        mine = [*(self._sums[name] for name in names), *(self._sums["loss"].new_tensor(count) for count in counts)]
        *sums, samples, timed, waited, bad = self.world.sum(torch.stack(mine)).tolist()
        if first != self._nowhere:
            terms = ", ".join(n for n, total in zip(names, sums, strict=True) if not math.isfinite(total))
            raise self._broken(first, terms, blame)
        record = {name: total / samples for name, total in zip(names, sums, strict=True)}
        record |= {"images_per_second": timed / seconds, "data_wait": waited / self.world.size / seconds}
        if bad:  # names are gathered where there are any: of a thousand ranks that takes longer than a step
            named = [pair for pairs in self.world.gather(self._bad) for pair in pairs]
            for _, name in sorted(named, key=lambda pair: pair[0]):
                progress.bad.setdefault(name, progress.step)
        self.restart()
        return {name: float(value) if math.isfinite(value) else math.nan for name, value in record.items()}
